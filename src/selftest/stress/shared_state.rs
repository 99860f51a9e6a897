//! What the CPUs of a workload share of what it is about.

use alloc::vec::Vec;

use crossbeam_utils::CachePadded;

use super::{handover, mappings, mixed, shootdown};

/// What the CPUs of a workload share of what it is about.
pub struct Grounds {
    pub mailboxes: Vec<handover::Mailbox>,
    pub boards: Vec<CachePadded<mappings::Board>>,
    pub range: shootdown::Range,
    pub ledger: mixed::Ledger,
}

impl Grounds {
    pub fn new(cpus: usize) -> Self {
        Self {
            mailboxes: handover::mailboxes(cpus),
            boards: mappings::boards(cpus),
            range: shootdown::Range::new(),
            ledger: mixed::Ledger::new(),
        }
    }
}
