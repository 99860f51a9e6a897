//! Hand-over: the blocks that one CPU allocates, the next one checks and frees.

use alloc::vec::Vec;

use crossbeam_utils::CachePadded;
use heapless::Deque;
use muster::internals::smp::lock::{Level, Lock};

use super::block::TestBlock;
use super::worker::Worker;

/// Blocks that may wait for one CPU.
const WAITING: usize = 64;

/// The blocks that wait for one CPU.
pub type Mailbox = CachePadded<Lock<Deque<TestBlock, WAITING>>>;

/// Creates a mailbox for each CPU.
pub fn mailboxes(cpus: usize) -> Vec<Mailbox> {
    (0..cpus)
        .map(|_| CachePadded::new(Lock::new(Level::Workload, Deque::new())))
        .collect()
}

/// Runs the workload on this CPU.
pub fn run(worker: &mut Worker<'_>, mailboxes: &[Mailbox]) {
    work(worker, mailboxes);
    // Another CPU may have put a last block in after this CPU looked.
    worker.wait_for_all();
    settle(worker, mailboxes);
}

/// Frees the blocks in this CPU's mailbox, once no CPU hands any over.
pub fn settle(worker: &mut Worker<'_>, mailboxes: &[Mailbox]) {
    if let Some(mine) = mailboxes.get(worker.slot) {
        empty(worker, mine);
    }
}

/// Hands over until the time is up.
pub fn work(worker: &mut Worker<'_>, mailboxes: &[Mailbox]) {
    let next = (worker.slot + 1) % worker.cpus;
    let (Some(mine), Some(next)) = (mailboxes.get(worker.slot), mailboxes.get(next)) else {
        return;
    };
    while worker.goes_on() {
        let size = worker.random.size(4, 12);
        if let Some(block) = TestBlock::allocate(worker, size, 16) {
            // The mailbox's lock is not held while the heap is used.
            let refused = next.lock().push_back(block).err();
            if let Some(block) = refused {
                block.free(worker);
            }
        }
        empty(worker, mine);
    }
}

fn empty(worker: &mut Worker<'_>, mailbox: &Mailbox) {
    loop {
        let block = mailbox.lock().pop_front();
        match block {
            Some(block) => block.free(worker),
            None => return,
        }
    }
}
