//! How much was compared.

#[derive(Default)]
pub struct Counts {
    pub steps: u32,
    pub reads: u32,
    pub pending: u32,
    pub refused: u32,
    pub stalls: u32,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.steps += other.steps;
        self.reads += other.reads;
        self.pending += other.pending;
        self.refused += other.refused;
        self.stalls += other.stalls;
    }
}
