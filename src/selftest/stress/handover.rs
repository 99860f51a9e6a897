//! Hand-over: what one CPU allocates, the next one checks and frees.

use alloc::vec::Vec;

use crossbeam_utils::CachePadded;
use heapless::Deque;

use super::block::Block;
use super::worker::Shift;
use crate::smp::lock::{Level, Lock};

/// Blocks that may wait for one CPU.
const WAITING: usize = 64;

/// What waits for one CPU.
pub type Mailbox = CachePadded<Lock<Deque<Block, WAITING>>>;

/// A mailbox for each CPU.
pub fn mailboxes(cpus: usize) -> Vec<Mailbox> {
    (0..cpus)
        .map(|_| CachePadded::new(Lock::new(Level::Workload, Deque::new())))
        .collect()
}

/// Runs the workload on this CPU.
pub fn run(shift: &mut Shift<'_>, mailboxes: &[Mailbox]) {
    work(shift, mailboxes);
    // Someone may have put a last block in after this CPU looked.
    shift.meet();
    settle(shift, mailboxes);
}

/// Frees what has come for this CPU, once nobody hands anything over.
pub fn settle(shift: &mut Shift<'_>, mailboxes: &[Mailbox]) {
    if let Some(mine) = mailboxes.get(shift.place) {
        empty(shift, mine);
    }
}

/// Hands over until the time is up.
pub fn work(shift: &mut Shift<'_>, mailboxes: &[Mailbox]) {
    let next = (shift.place + 1) % shift.cpus;
    let (Some(mine), Some(next)) = (mailboxes.get(shift.place), mailboxes.get(next)) else {
        return;
    };
    while shift.goes_on() {
        let size = shift.random.size(4, 12);
        if let Some(block) = Block::allocate(shift, size, 16) {
            // The mailbox's lock is not held while the heap is at work.
            let refused = next.lock().push_back(block).err();
            if let Some(block) = refused {
                block.free(shift);
            }
        }
        empty(shift, mine);
    }
}

fn empty(shift: &mut Shift<'_>, mailbox: &Mailbox) {
    loop {
        let block = mailbox.lock().pop_front();
        match block {
            Some(block) => block.free(shift),
            None => return,
        }
    }
}
