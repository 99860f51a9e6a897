//! The state that the CPUs of a workload share.

use alloc::vec::Vec;

use crossbeam_utils::CachePadded;

use super::{handover, mappings, mixed, shootdown};

/// The state that the CPUs of a workload share.
pub struct SharedState {
    pub mailboxes: Vec<handover::Mailbox>,
    pub shared_mappings: Vec<CachePadded<mappings::SharedMapping>>,
    pub range: shootdown::Range,
    pub ledger: mixed::Ledger,
}

impl SharedState {
    pub fn new(cpus: usize) -> Self {
        Self {
            mailboxes: handover::mailboxes(cpus),
            shared_mappings: mappings::shared_mappings(cpus),
            range: shootdown::Range::new(),
            ledger: mixed::Ledger::new(),
        }
    }
}
