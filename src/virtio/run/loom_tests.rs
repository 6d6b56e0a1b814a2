//! `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`
