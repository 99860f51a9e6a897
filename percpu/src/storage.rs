//! Access to this CPU's block, and the guard that keeps the code on the CPU.

use core::fmt;
use core::marker::PhantomData;
use core::ptr;

use crate::variable::at;
use crate::{Block, Header, Key, Unregistered};

/// The register in which a CPU keeps the address of its own block: GS base on x86-64, `TPIDR_EL1` on
/// AArch64, a thread-local in a test on the host.
///
/// The type of the head belongs to the register, so that one register can't be read as two
/// different kinds of block.
///
/// # Safety
///
/// 1. `load` returns null until `store` has been called on this CPU with a block's header, and also
///    after it was called with that of [`unregistered`](Self::unregistered); otherwise it returns the
///    pointer last stored on this CPU. A register that is a segment base gets this for free by reading
///    the pointer at offset 0 of what it points to, provided it never points anywhere else: see
///    [`Storage::reset`]. Each call reads it again: where code can go on on another CPU than it began
///    on, the assembly of `load` must not carry `options(pure)`, nor may anything else let the compiler
///    take the result of one call for that of the next. It merges the two where it sees no reason for
///    them to differ, and the move between them is none that it knows of. All this goes for `load_base`, too,
///    which returns null where `load` does, and else the base in the block that `load` returns. These and
///    `disable_preemption` are called at any time: if they need a header in the register, every CPU calls
///    [`Storage::reset`] before any code that may use [`Storage`].
/// 2. No other implementation, and nothing else in the kernel, uses the same register.
/// 3. While a `NoPreempt` is alive that was made where `load` does not return null, the code that holds it is neither
///    preempted, so that no other task runs on this CPU in between, nor migrated, so that it stays on this CPU. That begins
///    before `disable_preemption` returns, for the compiler as well: no access after the call may be moved before it, nor
///    one before the drop behind it.
/// 4. Where `load` returns null, code is neither preempted nor migrated, and no task is migrated there: a CPU that has no
///    block runs no task.
pub unsafe trait Register {
    /// The part of a block that code may reach by the register alone, [`head_offset`](crate::head_offset)
    /// bytes from where it points to; `()` if there is no such code.
    type Head: Sync + 'static;
    /// While alive, the running code is neither preempted by another task nor migrated to another CPU.
    /// Interrupts may come, and return. `()` in a kernel whose code is never preempted.
    type NoPreempt;

    /// Disables preemption and migration until the result is dropped, on a CPU that has a block. Calls nest.
    ///
    /// On a CPU without a block it need do nothing; and what it does there must not touch the head, which is the
    /// sentinel's, that all such CPUs share.
    fn disable_preemption() -> Self::NoPreempt;

    /// Returns the sentinel of CPUs that have no block, a `static` of the kernel's own, or
    /// [`UNREGISTERED`](crate::UNREGISTERED) where blocks have no head.
    fn unregistered() -> &'static Unregistered<Self::Head>;

    /// Returns this CPU's block, or null if it has none.
    fn load() -> *const Header;

    /// Returns the [base](Header#bases) of this CPU's variables of a kind, or null if the CPU has no block.
    ///
    /// Where the register is a segment base, one instruction reads it: `mov reg, gs:[K::BASE]`.
    #[inline]
    fn load_base<K: Key>() -> *const u8 {
        // SAFETY: not null, so it is a header of a 'static block, by the contract.
        unsafe { Self::load().as_ref() }.map_or(ptr::null(), K::base)
    }

    /// Makes `header` this CPU's block.
    ///
    /// # Safety
    ///
    /// The conditions of [`Storage::reset`] hold, and `header` is that of [`unregistered`](Self::unregistered); or those of
    /// [`Storage::register`], and it is the header of a `'static` `Block<Self::Head>` that this CPU, which has no block
    /// now, and no other has claimed.
    unsafe fn store(header: *const Header);
}

/// This CPU's storage, reached through the register `R`.
///
/// There is nothing to instantiate: `type Cpu = Storage<GsBase>;` and then `Cpu::with(…)`.
pub struct Storage<R>(PhantomData<R>);

impl<R: Register> Storage<R> {
    /// Leaves this CPU without a block, so that [`with`](Self::with) fails loudly instead of
    /// reading address 0.
    ///
    /// Where the register is a segment base (x86-64: GS base, which a loader leaves at 0), this is
    /// the very first thing every CPU does. A block that this CPU had registered stays claimed.
    ///
    /// # Safety
    ///
    /// If this CPU has a block: nothing on it is in the midst of using the block (no closure of
    /// [`with`](Self::with), no code that uses the register and that this interrupted, no handler), and nothing
    /// relies on the CPU keeping the block. A heap that finds its cache by the register does: half of
    /// an operation on one block and half on another breaks it, and what the first block's cache has is
    /// never found again. No `NoPreempt` is alive that was made on this CPU, as what it counts in the block would be
    /// taken from another; so until this returns, other means keep the code from being preempted and migrated.
    ///
    /// A CPU that has none yet, as at its very first instructions, may always do it.
    pub unsafe fn reset() {
        // SAFETY: the header of the sentinel; the caller's promise.
        unsafe { R::store(R::unregistered().header()) };
    }

    /// Makes `block` this CPU's own, for good. For the code that starts the CPU.
    ///
    /// ```compile_fail,E0133
    /// # muster_percpu::thread_register!(struct Threads);
    /// # type Cpu = muster_percpu::Storage<Threads>;
    /// # let template = muster_percpu::Template::find(|_| true)?;
    /// # let block = muster_percpu::Block::allocate(&template, 0, ())?;
    /// Cpu::register(block)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Safety
    ///
    /// If this CPU has no block yet:
    ///
    /// 1. No code on this CPU is in the midst of using `Storage<R>` or the register. This is not called in a handler, and no
    ///    handler that interrupts it calls it, or [`reset`](Self::reset). Otherwise there is a block half-way
    ///    through what began without one, a handler too, or the block that a handler has registered is replaced.
    /// 2. No [`NoPreempt`](Register::NoPreempt) is alive that was made on this CPU.
    ///
    /// # Errors
    ///
    /// [`RegisterError`] if this CPU has a block already, or if another CPU has claimed this one.
    /// Nothing has changed then.
    pub unsafe fn register(block: &'static Block<R::Head>) -> Result<(), RegisterError> {
        if let Some(here) = Self::try_with(|here| here.index()) {
            return Err(RegisterError::AlreadyRegistered { here });
        }
        // No block, and no handler registers one: so the code stays here, by (4) of the contract of `Register`.
        let header = block.claim().ok_or(RegisterError::AlreadyClaimed {
            block: block.index(),
        })?;
        // SAFETY: the caller's promise. `claim` succeeds once in the lifetime of a block, and it did so here, on this
        // CPU, which has none and on which the code stays; the block is 'static and of the register's own types.
        unsafe { R::store(header) };
        Ok(())
    }

    /// Runs `f` with this CPU's block.
    ///
    /// Until `f` returns, the code is neither preempted nor migrated, so `f` must not wait for another
    /// task, nor let one run. Neither a local variable nor the guard can leave `f`.
    ///
    /// # Panics
    ///
    /// If this CPU has not registered a block. Code that must not panic (log, panic and NMI paths)
    /// uses [`try_with`](Self::try_with).
    #[track_caller]
    #[inline]
    pub fn with<T>(f: impl for<'here> FnOnce(&Here<'here, R::Head>) -> T) -> T {
        match Self::try_with(f) {
            Some(result) => result,
            None => panic!("per-CPU storage used on a CPU that has not registered its block"),
        }
    }

    /// Runs `f` with this CPU's block, or returns `None` if the CPU has not registered one.
    #[inline]
    pub fn try_with<T>(f: impl for<'here> FnOnce(&Here<'here, R::Head>) -> T) -> Option<T> {
        let _no_preempt = R::disable_preemption();
        Self::here().map(|here| f(&here))
    }

    /// Runs `f` with this CPU's own of a variable, as [`with`](Self::with) and [`Here::get`] do
    /// together, by the shortest way: where the register is a segment base, and addresses are constants,
    /// that is one load, one test, and what `f` does.
    ///
    /// ```
    /// # use muster_percpu::LocalWord;
    /// # muster_percpu::thread_register!(struct Threads);
    /// # type Cpu = muster_percpu::Storage<Threads>;
    /// # let template = muster_percpu::Template::find(|_| true)?;
    /// # Threads::register(muster_percpu::Block::allocate(&template, 0, ())?)?;
    /// muster_percpu::cpu_local! { static TICKS: LocalWord<u64> = LocalWord::new(0); }
    /// Cpu::with_own(&TICKS, |ticks| ticks.set(ticks.get() + 1));
    /// # assert_eq!(Cpu::with_own(&TICKS, LocalWord::get), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// The variable can't leave `f`:
    ///
    /// ```compile_fail
    /// # use muster_percpu::LocalWord;
    /// # muster_percpu::thread_register!(struct Threads);
    /// # type Cpu = muster_percpu::Storage<Threads>;
    /// muster_percpu::cpu_local! { static TICKS: LocalWord<u64> = LocalWord::new(0); }
    /// let ticks: &LocalWord<u64> = Cpu::with_own(&TICKS, |ticks| ticks);
    /// ```
    ///
    /// # Panics
    ///
    /// If this CPU has not registered a block, or one without variables.
    #[track_caller]
    #[inline]
    pub fn with_own<K: Key, T>(variable: &K, f: impl FnOnce(&K::Value) -> T) -> T {
        match Self::try_with_own(variable, f) {
            Some(result) => result,
            None => no_variables(Self::try_with(|here| here.index())),
        }
    }

    /// Runs `f` with this CPU's own of a variable, or returns `None` if the CPU has not registered a
    /// block, or one without variables.
    ///
    /// ```compile_fail
    /// # use muster_percpu::LocalWord;
    /// # muster_percpu::thread_register!(struct Threads);
    /// # type Cpu = muster_percpu::Storage<Threads>;
    /// muster_percpu::cpu_local! { static TICKS: LocalWord<u64> = LocalWord::new(0); }
    /// let ticks: Option<&LocalWord<u64>> = Cpu::try_with_own(&TICKS, |ticks| ticks);
    /// ```
    #[inline]
    pub fn try_with_own<K: Key, T>(variable: &K, f: impl FnOnce(&K::Value) -> T) -> Option<T> {
        let _no_preempt = R::disable_preemption();
        let base = R::load_base::<K>();
        // SAFETY: not null, so it is the base of this CPU's block, by the contract of `Register`. The code
        // stays on this CPU until `f` returns; and `f` keeps no reference, as it takes one of any
        // lifetime.
        (!base.is_null()).then(|| f(unsafe { at(variable, base) }))
    }

    /// Returns this CPU's block. The caller holds a `NoPreempt` for as long as it uses the result.
    #[inline]
    fn here<'here>() -> Option<Here<'here, R::Head>> {
        let block = R::load().cast::<Block<R::Head>>();
        // SAFETY: (1) not null, so by the contract of `Register` it is the pointer that `register`
        // stored on this CPU: `reset` is the only other caller of `store`, and what it stores loads
        // as null. (2) `register` stored the address of a 'static block of exactly this type.
        unsafe { block.as_ref() }.map(|block| Here {
            block,
            _on_this_cpu: PhantomData,
        })
    }
}

/// This CPU's block, for as long as the code can't leave the CPU.
///
/// Exists only inside [`Storage::with`] and [`Storage::try_with`]; can be neither kept nor sent:
///
/// ```compile_fail,E0521
/// # muster_percpu::thread_register!(struct Threads);
/// # type Cpu = muster_percpu::Storage<Threads>;
/// let mut kept = None;
/// Cpu::with(|here| kept = Some(here));
/// ```
///
/// ```compile_fail,E0277
/// # muster_percpu::thread_register!(struct Threads);
/// # type Cpu = muster_percpu::Storage<Threads>;
/// Cpu::with(|here| std::thread::scope(|scope| {
///     scope.spawn(|| here.index());
/// }));
/// ```
pub struct Here<'here, H: 'static = ()> {
    block: &'static Block<H>,
    // A raw pointer is neither `Send` nor `Sync`, and so is this.
    _on_this_cpu: PhantomData<(&'here (), *const ())>,
}

impl<H> Here<'_, H> {
    /// Returns this CPU's index.
    #[inline]
    pub fn index(&self) -> u32 {
        self.block.index()
    }

    /// Returns this CPU's block. The reference may leave the closure, as all CPUs may have one.
    #[inline]
    pub fn block(&self) -> &'static Block<H> {
        self.block
    }

    /// Returns this CPU's own of a variable.
    ///
    /// The reference can't leave the closure. In the closure, another CPU can be lent it only if the variable's type is
    /// `Sync`:
    ///
    /// ```compile_fail
    /// # use muster_percpu::LocalWord;
    /// # muster_percpu::thread_register!(struct Threads);
    /// # type Cpu = muster_percpu::Storage<Threads>;
    /// muster_percpu::cpu_local! { static TICKS: LocalWord<u64> = LocalWord::new(0); }
    /// let ticks: &LocalWord<u64> = Cpu::with(|here| here.get(&TICKS));
    /// ```
    ///
    /// ```compile_fail,E0277
    /// # use muster_percpu::LocalWord;
    /// # muster_percpu::thread_register!(struct Threads);
    /// # type Cpu = muster_percpu::Storage<Threads>;
    /// muster_percpu::cpu_local! { static TICKS: LocalWord<u64> = LocalWord::new(0); }
    /// Cpu::with(|here| {
    ///     let ticks: &LocalWord<u64> = here.get(&TICKS);
    ///     std::thread::scope(|scope| {
    ///         scope.spawn(|| ticks.get());
    ///     });
    /// });
    /// ```
    ///
    /// # Panics
    ///
    /// If the block was made without variables: by [`Block::new`], [`Block::with_head`] or [`Block::init`].
    #[track_caller]
    #[inline]
    pub fn get<K: Key>(&self, variable: &K) -> &K::Value {
        let base = K::base(self.block.header());
        if base.is_null() {
            no_variables(Some(self.index()));
        }
        // SAFETY: the block is this CPU's, and the code stays on the CPU while there is a `Here`, as long as
        // which the reference lives.
        unsafe { at(variable, base) }
    }

    /// Returns the part of this CPU's block that code may reach by the register alone. The reference
    /// may leave the closure, as all CPUs may have one.
    #[inline]
    pub fn head(&self) -> &'static H {
        self.block.head()
    }
}

/// Ends an access to a variable that a CPU does not have: one without a block, or with one that was made
/// without variables.
#[cold]
#[track_caller]
pub(crate) fn no_variables(index: Option<u32>) -> ! {
    match index {
        None => panic!("per-CPU storage used on a CPU that has not registered its block"),
        Some(index) => panic!(
            "the per-CPU block {index} has no CPU-local variables: make it by Block::place or Block::allocate"
        ),
    }
}

/// The reason why a block could not be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterError {
    /// The block belongs to another CPU (or to this one, before it was reset).
    AlreadyClaimed {
        /// The index of the block that was asked for.
        block: u32,
    },
    /// This CPU has a block already.
    AlreadyRegistered {
        /// The index of the block that this CPU has.
        here: u32,
    },
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyClaimed { block } => {
                write!(
                    f,
                    "block {block} is already claimed: give each CPU a block of its own"
                )
            }
            Self::AlreadyRegistered { here } => {
                write!(
                    f,
                    "this CPU already has block {here}: register once per CPU"
                )
            }
        }
    }
}

impl core::error::Error for RegisterError {}
