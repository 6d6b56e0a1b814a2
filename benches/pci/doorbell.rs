//! From the driver's store to the device, and from the used buffer to the vector.

use criterion::Criterion;

use crate::{compare, driven::Driven};

pub fn kick(criterion: &mut Criterion) {
    let (told, untold) = (Driven::new(1), Driven::new(0xffff));
    let mut group = criterion.benchmark_group("pci/doorbell");
    group.bench_function("to a device with nothing to do", |bencher| bencher.iter(|| told.kick()));
    group.bench_function("to a request of one byte, used, no vector", |bencher| {
        bencher.iter(|| untold.request())
    });
    group.bench_function("to a request of one byte, used, message sent", |bencher| {
        bencher.iter(|| told.request())
    });
    group.finish();
    compare(
        "used buffer with its message sent",
        &|| told.request(),
        "without a vector",
        &|| untold.request(),
    );
}
