//! stub
mod board; mod devicetree; mod machine;
fn main() { let _ = (devicetree::build("", 0..1), devisor::backends::irqchip::CpuId(0)); println!("hi"); }
