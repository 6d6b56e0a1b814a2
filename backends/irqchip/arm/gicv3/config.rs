//! What a GICv3 has, and the errors of asking for what it cannot have.

use std::fmt;

use super::super::gic::{
    IntId, Ppi, Spi,
    ids::{PRIVATE, SGIS},
};
use crate::backends::irqchip::CpuId;

/// Where a CPU is in the hierarchy of the machine: Aff3.Aff2.Aff1.Aff0, a byte each, the last in bits 7:0.
///
/// ```
/// use devisor::backends::irqchip::gicv3::Affinity;
///
/// assert_eq!(Affinity::from_mpidr(0x01_8000_0203), Affinity(0x0100_0203));
/// assert_eq!(Affinity(0x0100_0203).to_string(), "1.0.2.3");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Affinity(pub u32);

impl Affinity {
    /// From a CPU's MPIDR_EL1, which has Aff3 in bits 39:32 and other fields between.
    pub const fn from_mpidr(mpidr: u64) -> Self {
        Self((mpidr >> 8 & 0xff00_0000) as u32 | mpidr as u32 & 0x00ff_ffff)
    }

    /// Aff0, which the target list of an SGI counts in.
    pub const fn aff0(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [aff3, aff2, aff1, aff0] = self.0.to_be_bytes();
        write!(f, "{aff3}.{aff2}.{aff1}.{aff0}")
    }
}

/// Whether a GICv3 has LPIs, and who makes them pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LpiSupport {
    /// There are none: GICD_TYPER.LPIS and GICR_TYPER.PLPIS are clear.
    #[default]
    None,
    /// An ITS.
    Its,
    /// The guest and the embedder by the redistributors' own registers, GICR_SETLPIR and its like: GICR_TYPER.DirectLPI.
    Direct,
}

/// What a [`GicV3`](super::GicV3) has. The guest reads it from GICD_TYPER, GICR_TYPER and ICC_CTLR_EL1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GicV3Config {
    /// Where each CPU is: one entry for each of them, all different, 512 at most.
    pub affinities: Vec<Affinity>,
    /// How many CPUs have their redistributor in each region of the address space, the first CPUs in the first.
    /// Together they are all.
    pub redistributor_regions: Vec<u32>,
    /// SPIs: a multiple of 32 up to 960, or 988, which is all that INTIDs 32 to 1019 have room for.
    pub spis: u32,
    /// SPIs of the extended range, from INTID 4096 on: a multiple of 32 up to 1024, whatever the
    /// number of the others.
    pub extended_spis: u32,
    /// PPIs of the extended range, from INTID 1056 on: 0, 32 or 64.
    pub extended_ppis: u32,
    /// Bits of priority: 4 to 8, which are 16 to 256 priorities.
    pub priority_bits: u32,
    /// Whether an SPI can go to any one of the CPUs (GICD_IROUTERn.Interrupt_Routing_Mode, GICD_TYPER.No1N clear).
    pub one_of_n: bool,
    /// Whether a write to GICD_SETSPI_NSR makes an SPI pending (GICD_TYPER.MBIS).
    pub message_based_spis: bool,
    /// LPIs: INTIDs 8192 to 65535.
    pub lpis: LpiSupport,
    /// Whether redistributors are awake from the start and after a reset, with GICR_WAKER.ProcessorSleep clear. By the
    /// architecture they are asleep, and software wakes them: Linux does. UEFI by EDK2 leaves that to the firmware before it,
    /// and where there is none, as in a virtual machine, gets no interrupt without this. KVM's GIC never sleeps.
    pub redistributors_awake: bool,
}

impl GicV3Config {
    /// The most CPUs there can be.
    pub const MAX_CPUS: usize = 512;
    /// The most SPIs there can be below the extended range: INTIDs 32 to 1019.
    pub const MAX_SPIS: u32 = 988;

    /// So many CPUs, 16 to each value of Aff1, in one region; 96 SPIs, 5 bits of priority, routing to one of several CPUs
    /// and message-based SPIs; no extended ranges and no LPIs. Redistributors start asleep.
    pub fn new(cpus: u32) -> Self {
        // Beyond what is accepted it need not be right, but it must not be large.
        let affinities = (0..cpus.min(Self::MAX_CPUS as u32 + 1)).map(|cpu| Affinity(((cpu / 16) << 8) | (cpu % 16)));
        Self {
            affinities: affinities.collect(),
            redistributor_regions: vec![cpus],
            spis: 96,
            extended_spis: 0,
            extended_ppis: 0,
            priority_bits: 5,
            one_of_n: true,
            message_based_spis: true,
            lpis: LpiSupport::None,
            redistributors_awake: false,
        }
    }

    /// How many CPUs there are.
    pub fn cpus(&self) -> u32 {
        self.affinities.len() as u32
    }

    /// Whether a CPU is in a place that the target list of an SGI reaches by a range selector only.
    pub(super) fn range_selector(&self) -> bool {
        self.affinities.iter().any(|affinity| affinity.aff0() > 15)
    }

    pub(super) fn layout(&self) -> Layout {
        Layout {
            spis: self.spis,
            extended_spis: self.extended_spis,
            extended_ppis: self.extended_ppis,
            priority_bits: self.priority_bits,
            lpis: self.lpis,
            one_of_n: self.one_of_n,
            redistributors_awake: self.redistributors_awake,
        }
    }

    pub(super) fn check(&self) -> Result<(), GicV3Error> {
        let Self {
            affinities,
            redistributor_regions,
            spis,
            extended_spis,
            extended_ppis,
            priority_bits,
            one_of_n: _,
            message_based_spis: _,
            lpis: _,
            redistributors_awake: _,
        } = self;
        if !(1..=Self::MAX_CPUS).contains(&affinities.len()) {
            return Err(GicV3Error::Cpus(affinities.len()));
        }
        let mut sorted = affinities.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(GicV3Error::Affinity(twice[0]));
        }
        let in_regions: u64 = redistributor_regions.iter().copied().map(u64::from).sum();
        if in_regions != affinities.len() as u64 || redistributor_regions.contains(&0) {
            return Err(GicV3Error::Regions {
                regions: redistributor_regions.len(),
                cpus: affinities.len(),
            });
        }
        if *spis != Self::MAX_SPIS && (*spis > Self::MAX_SPIS || !spis.is_multiple_of(32)) {
            return Err(GicV3Error::Spis(*spis));
        }
        if *extended_spis > 1024 || !extended_spis.is_multiple_of(32) {
            return Err(GicV3Error::ExtendedSpis(*extended_spis));
        }
        if !matches!(extended_ppis, 0 | 32 | 64) {
            return Err(GicV3Error::ExtendedPpis(*extended_ppis));
        }
        if !(4..=8).contains(priority_bits) {
            return Err(GicV3Error::PriorityBits(*priority_bits));
        }
        Ok(())
    }
}

/// Which INTIDs there are, and what each CPU has to know of the rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) spis: u32,
    pub(super) extended_spis: u32,
    pub(super) extended_ppis: u32,
    pub(super) priority_bits: u32,
    pub(super) lpis: LpiSupport,
    pub(super) one_of_n: bool,
    pub(super) redistributors_awake: bool,
}

/// The first INTID of the extended PPIs.
pub(super) const EXTENDED_PPIS: u32 = 1056;
/// The first INTID of the extended SPIs.
pub(super) const EXTENDED_SPIS: u32 = 4096;
/// The first INTID of the LPIs.
pub(super) const LPIS: u32 = 8192;
/// One more than the last INTID: those of 16 bits are implemented.
pub(super) const INTIDS: u32 = 1 << 16;

impl Layout {
    /// The place of a private interrupt in a CPU's list, if there is such an interrupt.
    pub(super) fn private(&self, intid: u32) -> Option<usize> {
        match intid {
            0..PRIVATE => Some(intid as usize),
            _ => {
                let extended = intid.checked_sub(EXTENDED_PPIS)?;
                (extended < self.extended_ppis).then_some((PRIVATE + extended) as usize)
            }
        }
    }

    /// How many private interrupts each CPU has.
    pub(super) fn privates(&self) -> u32 {
        PRIVATE + self.extended_ppis
    }

    /// The INTID of a private interrupt at this place.
    pub(super) fn private_intid(&self, place: u32) -> u32 {
        match place.checked_sub(PRIVATE) {
            None => place,
            Some(extended) => EXTENDED_PPIS + extended,
        }
    }

    /// The place of an SPI in the distributor's list, if there is such an SPI.
    pub(super) fn shared(&self, intid: u32) -> Option<usize> {
        if let Some(extended) = intid.checked_sub(EXTENDED_SPIS) {
            return (extended < self.extended_spis).then_some((self.spis + extended) as usize);
        }
        let spi = intid.checked_sub(PRIVATE)?;
        (spi < self.spis).then_some(spi as usize)
    }

    /// The INTID of the SPI at this place.
    pub(super) fn shared_intid(&self, place: u32) -> u32 {
        match place.checked_sub(self.spis) {
            None => PRIVATE + place,
            Some(extended) => EXTENDED_SPIS + extended,
        }
    }

    /// Whether it is an LPI by its number.
    pub(super) fn is_lpi(&self, intid: u32) -> bool {
        self.lpis != LpiSupport::None && (LPIS..INTIDS).contains(&intid)
    }

    /// Whether there is an interrupt of this number.
    pub(super) fn exists(&self, intid: u32) -> bool {
        self.private(intid).is_some() || self.shared(intid).is_some() || self.is_lpi(intid)
    }

    pub(super) fn spi(&self, spi: Spi) -> Result<u32, GicV3Error> {
        let intid = spi.0.saturating_add(PRIVATE);
        match self.shared(intid) {
            Some(_) => Ok(intid),
            None => Err(GicV3Error::NoSuchSpi {
                spi,
                spis: self.spis,
                extended: self.extended_spis,
            }),
        }
    }

    pub(super) fn ppi(&self, ppi: Ppi) -> Result<u32, GicV3Error> {
        let intid = ppi.0.saturating_add(SGIS);
        match self.private(intid) {
            Some(_) => Ok(intid),
            None => Err(GicV3Error::NoSuchPpi {
                ppi,
                extended: self.extended_ppis,
            }),
        }
    }
}

/// A [`GicV3`](super::GicV3) cannot be made, or has no such part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GicV3Error {
    /// [`GicV3Config::affinities`].
    #[error("{0} CPUs: a GICv3 has 1 to {max}", max = GicV3Config::MAX_CPUS)]
    Cpus(usize),
    /// [`GicV3Config::affinities`].
    #[error("two CPUs at affinity {0}: each needs one of its own")]
    Affinity(Affinity),
    /// [`GicV3Config::redistributor_regions`].
    #[error(
        "{regions} regions of redistributors do not hold {cpus} CPUs: each has at least one, and together they have all"
    )]
    Regions {
        /// How many regions there were.
        regions: usize,
        /// How many CPUs there are.
        cpus: usize,
    },
    /// [`GicV3Config::spis`].
    #[error("{0} SPIs: a GICv3 has a multiple of 32 up to 960, or 988")]
    Spis(u32),
    /// [`GicV3Config::extended_spis`].
    #[error("{0} extended SPIs: a GICv3 has a multiple of 32 up to 1024")]
    ExtendedSpis(u32),
    /// [`GicV3Config::extended_ppis`].
    #[error("{0} extended PPIs: a GICv3 has 0, 32 or 64")]
    ExtendedPpis(u32),
    /// [`GicV3Config::priority_bits`].
    #[error("{0} bits of priority: a GICv3 has 4 to 8")]
    PriorityBits(u32),
    /// [`GicV3Config::lpis`]: [`GicV3::new`](super::GicV3::new) makes a GIC without,
    /// [`GicV3::with_lpis`](super::GicV3::with_lpis) one with them.
    #[error("LPIs {lpis:?} {}: they are kept in guest memory, and only there", if *memory { "with guest memory" } else { "without guest memory" })]
    Lpis {
        /// What was asked for.
        lpis: LpiSupport,
        /// Whether there was guest memory for them.
        memory: bool,
    },
    /// One [`CpuOutputs`](super::CpuOutputs) is needed for each CPU.
    #[error("outputs for {outputs} CPUs: this GIC has {cpus}")]
    Outputs {
        /// How many there were.
        outputs: usize,
        /// How many are needed.
        cpus: u32,
    },
    /// There is no such SPI.
    #[error("{spi}: this GIC has {spis} SPIs from SPI 0 on, and {extended} from SPI 4064 on")]
    NoSuchSpi {
        /// The SPI that was asked for.
        spi: Spi,
        /// How many there are.
        spis: u32,
        /// How many there are in the extended range.
        extended: u32,
    },
    /// There is no such PPI.
    #[error("{ppi}: this GIC has PPIs 0 to 15, and {extended} from PPI 1040 on")]
    NoSuchPpi {
        /// The PPI that was asked for.
        ppi: Ppi,
        /// How many there are in the extended range.
        extended: u32,
    },
    /// There is no such CPU.
    #[error("{cpu}: this GIC has CPUs 0 to {}", cpus - 1)]
    NoSuchCpu {
        /// The CPU that was asked for.
        cpu: CpuId,
        /// How many there are.
        cpus: u32,
    },
    /// There is no such region of redistributors.
    #[error("region {region} of redistributors: this GIC has {regions}, from 0 on")]
    NoSuchRegion {
        /// The region that was asked for.
        region: usize,
        /// How many there are.
        regions: usize,
    },
    /// Message-based SPIs are not asked for, or the distributor cannot be at this address.
    #[error("messages to a distributor at {distributor:#x}: they need message-based SPIs, and a multiple of 0x10000")]
    NoMessages {
        /// Where the distributor was said to be.
        distributor: u64,
    },
    /// There is no such LPI.
    #[error("{intid} is no LPI that can be made pending so: with direct LPIs they are 8192 to 65535, otherwise none")]
    NoSuchLpi {
        /// What was asked for.
        intid: IntId,
    },
}
