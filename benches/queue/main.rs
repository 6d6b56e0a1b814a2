//! What a request costs in the queue: [`work::CHAINS`] chains at a time, found, completed, their signal suppressed.
//!
//! Beside it, in the same run, the same work with `virtio-queue` bare (which checks less) and with a bare loop over the
//! ring (which checks nothing). Read the ratios; absolute times are the machine's.

mod packed;
mod work;

use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};
use packed::{BarePacked, PackedRig};
use vm_memory::bitmap::NewBitmap;
use work::{BareLoop, Foreign, Offers, Rig, Shape, Tracked};

fn peers<B: NewBitmap + Send + Sync + 'static>(group: &mut BenchmarkGroup<'_, WallTime>, shape: Shape) {
    let mut rig = Rig::<B>::new(shape);
    let mut bare = BareLoop::new(&rig);
    group.bench_function("bare loop", |bencher| bencher.iter(|| bare.serve(&mut rig, 1)));
    let (mut rig, mut foreign) = (Rig::<B>::new(shape), Foreign::new());
    group.bench_function("virtio-queue", |bencher| bencher.iter(|| foreign.serve(&mut rig)));
    let mut rig = Rig::<B>::new(shape);
    let mut queue = rig.queue();
    group.bench_function("devisor", |bencher| bencher.iter(|| work::lent(&mut rig, &mut queue)));
}

fn queue(criterion: &mut Criterion) {
    for (name, shape) in [
        ("queue, chain of 1", Shape::One),
        ("queue, chain of 3", Shape::Three),
        ("queue, indirect table of 3", Shape::Indirect),
        ("queue, 16 bytes read and 512 written", Shape::Moved),
    ] {
        peers::<()>(&mut criterion.benchmark_group(name), shape);
    }
    let mut group = criterion.benchmark_group("queue, 16 bytes read and 512 written, marked");
    peers::<Tracked>(&mut group, Shape::Moved);
    group.finish();

    let mut group = criterion.benchmark_group("queue, chain of 3, 32 published at once");
    let mut rig = Rig::<()>::new(Shape::Three);
    let mut bare = BareLoop::new(&rig);
    group.bench_function("bare loop", |bencher| {
        bencher.iter(|| bare.serve(&mut rig, work::BATCH))
    });
    let mut rig = Rig::<()>::new(Shape::Three);
    let mut queue = rig.queue();
    group.bench_function("devisor", |bencher| bencher.iter(|| work::batch(&mut rig, &mut queue)));
    group.finish();

    for (name, shape, publish) in [
        ("packed queue, chain of 1", Shape::One, 1),
        ("packed queue, chain of 3", Shape::Three, 1),
        ("packed queue, indirect table of 3", Shape::Indirect, 1),
        ("packed queue, 16 bytes read and 512 written", Shape::Moved, 1),
        (
            "packed queue, chain of 3, 32 published at once",
            Shape::Three,
            work::BATCH,
        ),
    ] {
        let mut group = criterion.benchmark_group(name);
        let mut rig = PackedRig::new(shape);
        let mut bare = BarePacked::new(&rig);
        group.bench_function("bare loop", |bencher| bencher.iter(|| bare.serve(&mut rig, publish)));
        let mut rig = PackedRig::new(shape);
        let mut queue = rig.queue();
        group.bench_function("devisor", |bencher| {
            bencher.iter(|| match publish {
                1 => work::lent(&mut rig, &mut queue),
                _ => work::batch(&mut rig, &mut queue),
            });
        });
        group.finish();
    }

    let mut group = criterion.benchmark_group("queue, chain of 3, taken");
    let mut rig = Rig::<()>::new(Shape::Three);
    let mut queue = rig.queue();
    group.bench_function("devisor", |bencher| {
        bencher.iter(|| work::owned(&mut rig, &mut queue, |chain| chain.complete(1)));
    });
    group.finish();
}

criterion_group!(benches, queue);
criterion_main!(benches);
