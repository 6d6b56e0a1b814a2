//! How much was compared.

#[derive(Default)]
pub struct Counts {
    pub steps: u32,
    pub reads: u32,
    pub outputs: u32,
    pub acknowledged: u32,
    pub excluded: u32,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.steps += other.steps;
        self.reads += other.reads;
        self.outputs += other.outputs;
        self.acknowledged += other.acknowledged;
        self.excluded += other.excluded;
    }
}
