//! The loader's memory, taken over once no CPU can reach it any more.
//!
//! In it lie the loader's tables, GDT and stacks, the responses, and the code in which parked APs wait. The
//! kernel copies the parts of the responses that it keeps ([`crate::boot::limine`]), does not use an AP's
//! parking slot after it has released the AP, and reads firmware tables elsewhere. That leaves the CPUs
//! themselves: as long as it is not certain that every one has left, nothing is taken.

use alloc::format;
use alloc::string::String;

use muster_arguments::Reclaim;
use muster_paging::VirtAddr;

use super::roll::RollCall;
use crate::boot::bytes::Bytes;
use crate::mm::shared;
use crate::report::events;
use crate::smp::online;
use crate::smp::snapshot::SNAPSHOT;

/// The byte that loader memory is poisoned with: as an address or an instruction it faults (`int3`,
/// and 0xcccc… is not canonical), as a table entry it is not present.
const POISON: u8 = 0xcc;

/// Takes the loader's memory over, unless a CPU may still be in it: then the log names the CPU.
///
/// # Errors
///
/// In words, if an online CPU uses something that lies in the loader's memory.
pub fn reclaim(roll: &RollCall, choice: Reclaim) -> Result<(), String> {
    let shared = shared::get();
    let keep = |why: &str| {
        let kept_bytes = shared.loader_bytes();
        log::warn!("the loader keeps its {}: {why}", Bytes(kept_bytes));
        events::emit(muster_events::Reclaim {
            taken_bytes: 0,
            kept_bytes,
            why: Some(why.into()),
        });
    };
    if choice == Reclaim::No {
        keep("reclaim=no asks for it");
        return Ok(());
    }
    if let Some(why) = roll.who_may_be_in_the_loader() {
        keep(&why);
        return Ok(());
    }
    for (index, cpu) in online::cpus() {
        for (what, address) in cpu.get(&SNAPSHOT).addresses() {
            if shared.is_loader_memory(VirtAddr::new(address.get())) {
                return Err(format!(
                    "CPU {index} has its {what} in the loader's memory, at {address:#x}"
                ));
            }
        }
    }
    let (byte, how) = match choice {
        Reclaim::Poison => (POISON, ", and poisoned"),
        Reclaim::Yes | Reclaim::No => (0, ""),
    };
    // SAFETY: every CPU the machine has came from the loader to its own tables, stack and
    // descriptors, none of which lie there (above), and nothing else refers to the memory.
    let bytes = unsafe { shared.adopt_loader_memory(byte) }.map_err(|error| format!("{error}"))?;
    log::info!("reclaimed {} from the loader{how}", Bytes(bytes));
    events::emit(muster_events::Reclaim {
        taken_bytes: bytes,
        kept_bytes: shared.loader_bytes(),
        why: None,
    });
    Ok(())
}
