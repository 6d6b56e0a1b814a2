//! What the driver has written to the configuration space, which a back end that has come anew is told again.

/// Each byte, if the driver has written it.
#[derive(Default)]
pub(super) struct Written(Vec<Option<u8>>);

impl Written {
    /// Of a configuration space of so many bytes.
    pub fn new(len: usize) -> Self {
        Self(vec![None; len])
    }

    pub fn note(&mut self, offset: usize, data: &[u8]) {
        for (place, &byte) in self.0.iter_mut().skip(offset).zip(data) {
            *place = Some(byte);
        }
    }

    pub fn forget(&mut self) {
        self.0.iter_mut().for_each(|byte| *byte = None);
    }

    /// All that the driver has written: where, and what.
    pub fn all(&self) -> Vec<(u16, u8)> {
        let written = self.0.iter().zip(0..);
        written.filter_map(|(byte, at)| Some((at, (*byte)?))).collect()
    }

    /// Whether all of this is within the configuration space.
    pub fn can_be(&self, written: &[(u16, u8)]) -> bool {
        written.iter().all(|(at, _)| usize::from(*at) < self.0.len())
    }

    /// The driver has written this, elsewhere.
    pub fn set(&mut self, written: &[(u16, u8)]) {
        self.forget();
        for &(at, byte) in written {
            self.note(at.into(), &[byte]);
        }
    }

    /// The same in runs of bytes, each with where it begins.
    pub fn runs(&self) -> Vec<(usize, Vec<u8>)> {
        let mut runs = Vec::new();
        let mut at = 0;
        while let Some(start) = (at..self.0.len()).find(|&at| self.0[at].is_some()) {
            let data: Vec<_> = self.0[start..].iter().map_while(|byte| *byte).collect();
            at = start + data.len();
            runs.push((start, data));
        }
        runs
    }
}
