//! How many CPUs a machine has, by `smp=` in QEMU's words or in Bochs'.

use std::collections::BTreeMap;
use std::fmt;

use muster_arguments::Form;

use crate::emulators::emulator::Kind;

/// The parts that CPUs may be in, from the outermost to the innermost, as QEMU names them.
const PARTS: [&str; 8] = [
    "drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads",
];

/// The CPUs of a machine, in numbers that hold the product of eight parts of 16 bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Those that are there from the start.
    pub cpus: u128,
    /// Those and the ones that may be plugged in.
    pub max_cpus: u128,
    /// The last APIC id of `max_cpus`. It is higher than their number if some ids belong to no CPU.
    pub last_id: u128,
}

/// A topology that no machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopologyError {
    /// Not a part with a number of it.
    Part(String),
    /// More CPUs at the start than there may ever be.
    TooMany {
        /// CPUs at the start.
        cpus: u128,
        /// All CPUs.
        max_cpus: u128,
    },
    /// The parts contain another number of CPUs.
    Product {
        /// The product of all parts.
        product: u128,
        /// All CPUs.
        max_cpus: u128,
    },
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Part(part) => write!(
                f,
                "`{part}` must be a number of CPUs, 1 to {}, or such a number of maxcpus=, sockets=, \
                 cores= or threads=",
                u16::MAX
            ),
            Self::TooMany { cpus, max_cpus } => {
                write!(f, "{cpus} CPUs are more than maxcpus={max_cpus}")
            }
            Self::Product { product, max_cpus } => write!(
                f,
                "its sockets, cores and threads make {product} CPUs, not {max_cpus}: change one of them"
            ),
        }
    }
}

impl std::error::Error for TopologyError {}

impl Topology {
    /// Reads a number of CPUs, or what `smp=` says.
    ///
    /// # Errors
    /// [`TopologyError`].
    pub fn parse(smp: &str, emulator: Kind) -> Result<Self, TopologyError> {
        match emulator {
            Kind::Qemu => Self::parse_qemu(smp),
            Kind::Bochs => Self::parse_bochs(smp),
        }
    }

    /// Reads `8,sockets=2`. What is not given is computed as QEMU does it from 6.2 on (its
    /// hw/core/machine-smp.c): of cores, sockets and threads the first one has what the others leave.
    fn parse_qemu(smp: &str) -> Result<Self, TopologyError> {
        let mut numbers = BTreeMap::new();
        for (index, word) in smp.split(',').enumerate() {
            let alone = (index == 0).then_some(("cpus", word));
            let (name, number) = word.split_once('=').or(alone).unwrap_or((word, ""));
            let is_known = ["cpus", "maxcpus"].contains(&name) || PARTS.contains(&name);
            let number = read(number).filter(|_| is_known);
            numbers.insert(
                name,
                number.ok_or_else(|| TopologyError::Part(word.into()))?,
            );
        }
        let cpus = numbers.remove("cpus");
        let max_cpus = numbers.remove("maxcpus").or(cpus);
        let product = |numbers: &BTreeMap<_, u128>| numbers.values().product();
        let computed = ["cores", "sockets", "threads"];
        let computed = computed
            .into_iter()
            .find(|name| !numbers.contains_key(name));
        if let (Some(name), Some(max_cpus)) = (computed, max_cpus) {
            let others: u128 = product(&numbers);
            numbers.insert(name, max_cpus / others);
        }
        let product = product(&numbers);
        let max_cpus = max_cpus.unwrap_or(product);
        let cpus = cpus.unwrap_or(max_cpus);
        if product != max_cpus {
            return Err(TopologyError::Product { product, max_cpus });
        }
        if cpus > max_cpus {
            return Err(TopologyError::TooMany { cpus, max_cpus });
        }
        // The number within each part has whole bits of the id.
        let last_id = PARTS.iter().fold(0, |id, part| {
            let number = numbers.get(part).copied().unwrap_or(1);
            (id << number.next_power_of_two().ilog2()) + number - 1
        });
        Ok(Self {
            cpus,
            max_cpus,
            last_id,
        })
    }

    /// Reads `8`, or `2:4:1`: processors, cores and threads (Bochs user manual, `cpu: count=`).
    fn parse_bochs(smp: &str) -> Result<Self, TopologyError> {
        let part = || TopologyError::Part(smp.into());
        let numbers: Option<Vec<_>> = smp.split(':').map(read).collect();
        let numbers = numbers.filter(|numbers| numbers.len() <= 3);
        let cpus: u128 = numbers.ok_or_else(part)?.iter().product();
        Ok(Self {
            cpus,
            max_cpus: cpus,
            last_id: cpus - 1,
        })
    }
}

/// Reads a number of 16 bits that is not 0.
fn read(number: &str) -> Option<u128> {
    let form = Form::Number(1, u16::MAX.into());
    number.parse().ok().filter(|_| form.admits(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the number of CPUs, all of them, and the last id.
    fn qemu(smp: &str) -> Result<(u128, u128, u128), TopologyError> {
        let topology = Topology::parse(smp, Kind::Qemu)?;
        Ok((topology.cpus, topology.max_cpus, topology.last_id))
    }

    #[test]
    fn what_is_not_given_is_computed() {
        for (smp, expected) in [
            ("8", (8, 8, 7)),
            ("cpus=8", (8, 8, 7)),
            ("8,sockets=2", (8, 8, 7)),
            ("3,maxcpus=8", (3, 8, 7)),
            ("sockets=2,cores=3", (6, 6, 6)),
            ("6,sockets=2,cores=3,threads=1", (6, 6, 6)),
            ("9,sockets=3,cores=1,threads=3,maxcpus=9", (9, 9, 10)),
            ("108,sockets=12,cores=3,threads=3", (108, 108, 186)),
            ("240,sockets=80,cores=3,threads=1", (240, 240, 318)),
        ] {
            assert_eq!(qemu(smp), Ok(expected), "{smp}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_told() {
        let product = |product, max_cpus| TopologyError::Product { product, max_cpus };
        assert_eq!(qemu("8,sockets=3"), Err(product(6, 8)));
        assert_eq!(qemu("8,sockets=16"), Err(product(0, 8)));
        assert_eq!(qemu("8,cores=3,threads=2,sockets=1"), Err(product(6, 8)));
        let (cpus, max_cpus) = (8, 4);
        assert_eq!(
            qemu("8,maxcpus=4"),
            Err(TopologyError::TooMany { cpus, max_cpus })
        );
        let huge = format!("{}=65535", PARTS.join("=65535,"));
        assert_eq!(qemu(&huge).unwrap().0, 65_535_u128.pow(8));
        for wrong in [
            "",
            "0",
            "x",
            "-1",
            "+8",
            "8,",
            "8,4",
            "8,cpu=2",
            "8,cores=0",
            "8,cores=x",
            "99999",
        ] {
            assert!(
                matches!(qemu(wrong), Err(TopologyError::Part(_))),
                "{wrong}"
            );
        }
    }

    #[test]
    fn bochs_has_words_of_its_own() {
        let bochs = |smp| Topology::parse(smp, Kind::Bochs).map(|topology| topology.cpus);
        assert_eq!(
            [bochs("8"), bochs("2:4"), bochs("2:4:2")],
            [Ok(8), Ok(8), Ok(16)]
        );
        for wrong in ["", "0", "2:0", "1:2:3:4", "8,sockets=2"] {
            assert_eq!(
                bochs(wrong),
                Err(TopologyError::Part(wrong.into())),
                "{wrong}"
            );
        }
    }
}
