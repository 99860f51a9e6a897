//! What can be wrong with a loader's answers.

use core::fmt;

use muster_frames::PhysAddr;
use muster_paging::VirtAddr;

use crate::REVISION;

/// Why the kernel can't start from what the loader answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootError {
    /// The loader does not speak the base revision asked for; the one it chose
    /// instead, if it says.
    Revision(Option<u64>),
    /// A feature without which there is no kernel was not answered.
    Missing(&'static str),
    /// The HHDM does not start at a multiple of 2 MiB in the higher half: large pages
    /// would be of no use in it, and blocks of the heap not aligned.
    Hhdm(u64),
    /// The image is not where the loader says it is.
    Image {
        /// Its first virtual address, as the loader reports it.
        virtual_: VirtAddr,
        /// Its first physical address, as the loader reports it.
        physical: PhysAddr,
        /// Its first virtual address, as the linker set it.
        linked: VirtAddr,
    },
    /// A usable or reclaimable entry that is no physical range.
    MemoryEntry {
        /// Its base.
        base: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// There is no entry for the BSP among the CPUs.
    NoBsp(u32),
    /// The command line is not UTF-8.
    CommandLine,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revision(got) => {
                write!(
                    f,
                    "the loader does not speak base revision {REVISION} of the protocol ("
                )?;
                match got {
                    Some(got) => write!(f, "it chose {got}")?,
                    None => write!(f, "it does not say which it speaks")?,
                }
                write!(f, "); use Limine 9 or later")
            }
            Self::Missing(feature) => {
                write!(
                    f,
                    "the loader did not answer the {feature} request, which Muster needs"
                )
            }
            Self::Hhdm(offset) => write!(
                f,
                "the loader's HHDM offset {offset:#x} is no multiple of 2 MiB in the higher half"
            ),
            Self::Image {
                virtual_,
                physical,
                linked,
            } => write!(
                f,
                "the loader says the image is at {virtual_} (physical {physical}), but it runs at {linked}"
            ),
            Self::MemoryEntry { base, length } => write!(
                f,
                "the loader's memory map has a usable entry at {base:#x} of {length:#x} bytes, which is no range of memory"
            ),
            Self::NoBsp(lapic_id) => write!(
                f,
                "the loader says the BSP has LAPIC id {lapic_id}, but does not list that CPU"
            ),
            Self::CommandLine => write!(f, "the kernel's command line is not UTF-8"),
        }
    }
}

impl core::error::Error for BootError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loader_of_another_revision_is_told_from_one_that_does_not_say() {
        let words = BootError::Revision(Some(2)).to_string();
        assert!(
            words.contains("revision 3")
                && words.contains("it chose 2")
                && words.contains("Limine 9")
        );
        let words = BootError::Revision(None).to_string();
        assert!(words.contains("it does not say which it speaks"));
    }

    #[test]
    fn each_error_tells_the_loader_s_answer() {
        let image = BootError::Image {
            virtual_: VirtAddr::new(0xa000),
            physical: PhysAddr::new(0xb000),
            linked: VirtAddr::new(0xc000),
        };
        let entry = BootError::MemoryEntry {
            base: 0xd000,
            length: 0xe000,
        };
        let told: [(BootError, &[&str]); 6] = [
            (BootError::Missing("HHDM"), &["HHDM request"]),
            (BootError::Hhdm(0x1000), &["0x1000", "2 MiB"]),
            (image, &["0xa000", "0xb000", "0xc000"]),
            (entry, &["0xd000", "0xe000"]),
            (BootError::NoBsp(77), &["77"]),
            (BootError::CommandLine, &["not UTF-8"]),
        ];
        for (error, parts) in told {
            let words = error.to_string();
            assert!(parts.iter().all(|part| words.contains(part)), "{words}");
        }
    }
}
