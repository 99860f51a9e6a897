//! The events of memory: its owners, the account and the audit.

use alloc::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A virtual address, or one in a table: a text in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub u64);

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or_else(|| de::Error::custom("an address is 0x and hexadecimal digits"))
    }
}

/// How memory is mapped, as a walk of the tables found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mapped {
    /// Where the direct map of physical memory begins; null unless addresses are shown.
    pub hhdm: Option<Address>,
    /// Regions of the plan.
    pub regions: u32,
    /// Bytes that are mapped.
    pub bytes: u64,
    /// Pages of 4 KiB.
    pub pages_4kib: u64,
    /// Pages of 2 MiB.
    pub pages_2mib: u64,
    /// Pages of 1 GiB.
    pub pages_1gib: u64,
    /// Tables.
    pub tables: u64,
}

/// What became of the loader's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reclaim<'a> {
    /// Bytes that were taken over.
    pub taken_bytes: u64,
    /// Bytes that are still the loader's.
    pub kept_bytes: u64,
    /// Why these are kept; null if none are.
    pub why: Option<Cow<'a, str>>,
}

/// Whose a stretch of physical memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// Without an owner, or in a CPU's cache.
    Free,
    /// The boot loader's.
    Loader,
    /// The kernel's image.
    Kernel,
    /// The frame allocator's records.
    FrameTable,
    /// Page tables.
    PageTables,
    /// The heap's.
    Heap,
    /// The CPUs' stacks.
    Stacks,
    /// The CPUs' own blocks.
    PerCpu,
    /// Memory that is mapped at run time.
    Mappings,
    /// ACPI tables.
    AcpiReclaimable,
    /// The firmware's, kept across sleep states.
    AcpiNvs,
    /// A framebuffer.
    Framebuffer,
    /// Reserved by the firmware or the loader.
    Reserved,
    /// Memory with defects.
    Bad,
    /// Frame 0, which is never handed out.
    NullFrame,
    /// The first megabyte, which is left to the firmware and to CPUs that start.
    LowMemory,
    /// Memory that the MTRRs do not make write-back, which is not used.
    NotWriteBack,
}

/// Bytes of each owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owners {
    /// [`Owner::Free`].
    pub free: u64,
    /// [`Owner::Loader`].
    pub loader: u64,
    /// [`Owner::Kernel`].
    pub kernel: u64,
    /// [`Owner::FrameTable`].
    pub frame_table: u64,
    /// [`Owner::PageTables`].
    pub page_tables: u64,
    /// [`Owner::Heap`].
    pub heap: u64,
    /// [`Owner::Stacks`].
    pub stacks: u64,
    /// [`Owner::PerCpu`].
    pub per_cpu: u64,
    /// [`Owner::Mappings`].
    pub mappings: u64,
    /// [`Owner::AcpiReclaimable`].
    pub acpi_reclaimable: u64,
    /// [`Owner::AcpiNvs`].
    pub acpi_nvs: u64,
    /// [`Owner::Framebuffer`].
    pub framebuffer: u64,
    /// [`Owner::Reserved`].
    pub reserved: u64,
    /// [`Owner::Bad`].
    pub bad: u64,
    /// [`Owner::NullFrame`].
    pub null_frame: u64,
    /// [`Owner::LowMemory`].
    pub low_memory: u64,
    /// [`Owner::NotWriteBack`].
    pub not_write_back: u64,
}

/// When the physical memory was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// When all CPUs were at work and the loader's memory was taken over.
    Boot,
    /// In the end, after everything was given back.
    End,
}

/// A stretch of physical memory. Those of one moment follow one another, lowest first; between them
/// there is no memory, or none that the loader speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// When.
    pub moment: Moment,
    /// Its physical address. All physical addresses fit a number.
    pub start: u64,
    /// Its length.
    pub bytes: u64,
    /// Whose it is.
    pub owner: Owner,
}

/// What one CPU has of memory, and what it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountCpu {
    /// The CPU.
    pub cpu: u32,
    /// In free frames in its cache.
    pub frame_cache_bytes: u64,
    /// In free blocks in its cache.
    pub cached_bytes: u64,
    /// Allocated on it so far, as asked for.
    pub allocated_bytes: u64,
    /// Freed on it so far.
    pub freed_bytes: u64,
    /// In frames that it mapped, less those that it unmapped.
    pub mapped_bytes: i64,
    /// The most that its stack has had.
    pub stack_bytes: u64,
    /// Interrupts taken.
    pub interrupts: u64,
    /// Calls to others, one for each of them.
    pub calls_sent: u64,
    /// Calls from others that it served.
    pub calls_served: u64,
    /// Shootdowns that it began.
    pub shootdowns: u64,
    /// CPUs that it let sleep on in those.
    pub spared: u64,
    /// Flushes of its TLB.
    pub flushes: u64,
}

/// What no CPU has of memory. What all CPUs and this allocated, less what they freed, is live: in the
/// heap's frames or in the boot arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountCommon {
    /// In free frames that no CPU caches.
    pub free_bytes: u64,
    /// In free blocks that depots keep.
    pub cached_bytes: u64,
    /// Allocated past the CPUs' caches so far, as asked for: before there were any, by code that
    /// interrupted a CPU inside the heap, and from the boot arena and the list.
    pub allocated_bytes: u64,
    /// Freed past them so far.
    pub freed_bytes: u64,
    /// In frames that were mapped past them, less those that were unmapped.
    pub mapped_bytes: i64,
}

/// Whose all memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// All that the machine has, without what is reserved.
    pub memory_bytes: u64,
    /// Free, and in no CPU's cache.
    pub free_bytes: u64,
    /// Free, in CPUs' caches.
    pub frame_cache_bytes: u64,
    /// Of the heap's frames, what is live: allocated and not freed, as asked for.
    pub heap_live_bytes: i64,
    /// Of the boot arena, what is live. It is part of the kernel's image.
    pub boot_live_bytes: i64,
    /// Of the heap's frames, what is cached: free blocks that CPUs and depots keep.
    pub heap_cached_bytes: u64,
    /// By owner.
    pub owners: Owners,
}

/// What was found of what is left in the end. There is one only if it is clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Memory of which each frame has one owner.
    pub memory_bytes: u64,
    /// Bytes live on the heap before the work.
    pub live_before_bytes: i64,
    /// And after it.
    pub live_after_bytes: i64,
    /// Bytes of the frames that the heap has, drained.
    pub heap_bytes: u64,
    /// The most that it had.
    pub heap_peak_bytes: u64,
    /// Free bytes in whole pages of 2 MiB.
    pub whole_free_bytes: u64,
}
