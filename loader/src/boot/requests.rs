//! The kernel's requests, found in its loaded image.

use core::fmt;
use core::ops::Range;

use heapless::Vec;
use muster_loader::arguments::Feature;

use super::physical;

/// First half of every request's id.
const COMMON: [u64; 2] = [0xc7b1_dd30_df4c_8b88, 0x0a82_e883_a194_f07b];

/// Marks the place after which requests are looked for, if it is there.
const START: [u64; 4] = [
    0xf6b8_f4b3_9de7_d1ae,
    0xfab9_1a69_40fc_b9cf,
    0x785c_6ed0_15d3_e316,
    0x181e_920a_7852_b9d9,
];

/// Marks the place up to which they are looked for, if it is there.
const END: [u64; 2] = [0xadc0_e053_1bb1_0d03, 0x9572_709f_3176_4c62];

/// The base revision tag; the wanted revision follows.
const BASE_REVISION: [u64; 2] = [0xf956_2b2d_5c95_a6c8, 0x6a7b_3849_4453_6bdc];

/// The requests that the loader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Who loads.
    BootloaderInfo,
    /// How large stacks are to be.
    StackSize,
    /// Where the direct map begins.
    Hhdm,
    /// How many levels the page tables are to have.
    PagingMode,
    /// The other CPUs, started.
    Mp,
    /// What physical memory there is.
    MemoryMap,
    /// Where to enter, if not at the ELF file's entry point.
    EntryPoint,
    /// The kernel's file.
    ExecutableFile,
    /// The ACPI root pointer.
    Rsdp,
    /// Where the kernel lies.
    ExecutableAddress,
    /// The kernel's words on the command line.
    CommandLine,
}

impl Request {
    /// Second half of each request's id, and the feature it can be denied by.
    const KNOWN: [(Self, [u64; 2], Option<Feature>); 11] = [
        (
            Self::BootloaderInfo,
            [0xf550_38d8_e2a1_202f, 0x2794_26fc_f5f5_9740],
            Some(Feature::BootloaderInfo),
        ),
        (
            Self::StackSize,
            [0x224e_f046_0a8e_8926, 0xe1cb_0fc2_5f46_ea3d],
            Some(Feature::StackSize),
        ),
        (
            Self::Hhdm,
            [0x48dc_f1cb_8ad2_b852, 0x6398_4e95_9a98_244b],
            Some(Feature::Hhdm),
        ),
        (
            Self::PagingMode,
            [0x95c1_a0ed_ab09_44cb, 0xa4e5_cb38_42f7_488a],
            Some(Feature::PagingMode),
        ),
        (
            Self::Mp,
            [0x95a6_7b81_9a1b_857e, 0xa0b6_1b72_3b6a_73e0],
            Some(Feature::Mp),
        ),
        (
            Self::MemoryMap,
            [0x67cf_3d9d_378a_806f, 0xe304_acdf_c50c_3c62],
            Some(Feature::MemoryMap),
        ),
        (
            Self::EntryPoint,
            [0x13d8_6c03_5a1c_d3e1, 0x2b0c_aa89_d8f3_026a],
            None,
        ),
        (
            Self::ExecutableFile,
            [0xad97_e90e_83f1_ed67, 0x31eb_5d1c_5ff2_3b69],
            None,
        ),
        (
            Self::Rsdp,
            [0xc5e7_7b6b_397e_7b43, 0x2763_7845_accd_cf3c],
            Some(Feature::Rsdp),
        ),
        (
            Self::ExecutableAddress,
            [0x71ba_7686_3cc5_5f63, 0xb264_4a48_c516_a487],
            Some(Feature::ExecutableAddress),
        ),
        (
            Self::CommandLine,
            [0x4b16_1536_e598_651e, 0xb390_ad4a_2f1f_303a],
            Some(Feature::CommandLine),
        ),
    ];
}

// Places within a request, in words of 8 bytes: four words of id first.
const REVISION: usize = 4;
const RESPONSE: usize = 5;
const FIELDS: usize = 6;

/// Two copies of one request: a kernel linked wrongly.
#[derive(Clone, Copy, Debug)]
pub struct DuplicateRequest(pub Request);

impl fmt::Display for DuplicateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel has two requests of the kind {:?}", self.0)
    }
}

/// The requests in a kernel, by their place in its image.
pub struct Requests {
    image: &'static mut [u64],
    found: Vec<(Request, usize), { Request::KNOWN.len() }>,
    base_revision: Option<usize>,
}

impl Requests {
    /// Looks for requests in an image, a page-aligned range of physical memory.
    ///
    /// # Errors
    /// [`DuplicateRequest`].
    ///
    /// # Safety
    /// The range is the loader's alone until the kernel runs.
    pub unsafe fn find(image: Range<u64>) -> Result<Self, DuplicateRequest> {
        // SAFETY: the caller has the range alone.
        let bytes = unsafe { physical::bytes_mut(image.start, image.end - image.start) };
        // SAFETY: any bytes make a `u64`.
        let (_, image, _) = unsafe { bytes.unwrap_or_default().align_to_mut::<u64>() };
        let start = image.windows(START.len()).position(|words| words == START);
        let start = start.map_or(0, |marker| marker + START.len());
        let area = image.get(start..).unwrap_or_default();
        let end = area
            .windows(END.len())
            .position(|words| words == END)
            .unwrap_or(area.len());
        let area = area.get(..end).unwrap_or_default();

        let mut found = Vec::new();
        for (index, words) in area.windows(FIELDS).enumerate() {
            let Some(id) = words.strip_prefix(&COMMON) else {
                continue;
            };
            let Some(&(request, ..)) = Request::KNOWN
                .iter()
                .find(|(_, known, _)| id.starts_with(known))
            else {
                continue;
            };
            if found.iter().any(|&(other, _)| other == request) {
                return Err(DuplicateRequest(request));
            }
            // Never full: there is room for each request once.
            let _ = found.push((request, start + index));
        }
        let base_revision = area
            .windows(BASE_REVISION.len() + 1)
            .position(|words| words.starts_with(&BASE_REVISION))
            .map(|index| start + index);
        Ok(Self {
            image,
            found,
            base_revision,
        })
    }

    /// Forgets the requests, and the base revision tag, that are denied.
    pub fn deny(&mut self, denied: impl Fn(Feature) -> bool) {
        self.found.retain(|(request, _)| {
            let feature = Request::KNOWN.iter().find(|(known, ..)| known == request);
            !feature
                .and_then(|&(_, _, feature)| feature)
                .is_some_and(&denied)
        });
        if denied(Feature::BaseRevision) {
            self.base_revision = None;
        }
    }

    /// Answers the base revision tag with `used`, the revision that the kernel
    /// is loaded by; if it is the one the kernel wants, the tag says so.
    pub fn answer_base_revision(&mut self, used: u64) {
        let tag = self
            .base_revision
            .and_then(|index| self.image.get_mut(index..));
        if let Some([_, loaded, wanted, ..]) = tag {
            *loaded = used;
            if *wanted == used {
                *wanted = 0;
            }
        }
    }

    /// Returns whether the kernel asks for this (and it is not denied).
    pub fn has(&self, request: Request) -> bool {
        self.words(request).is_some()
    }

    /// Returns the revision of a request.
    pub fn revision(&self, request: Request) -> Option<u64> {
        self.words(request)?.get(REVISION).copied()
    }

    /// Returns a request's own field, by its index.
    pub fn field(&self, request: Request, index: usize) -> Option<u64> {
        self.words(request)?.get(FIELDS + index).copied()
    }

    /// Answers a request with the response at an address in the direct map.
    pub fn answer(&mut self, request: Request, response: u64) {
        let place = self.found.iter().find(|(found, _)| *found == request);
        let word = place.and_then(|&(_, index)| self.image.get_mut(index + RESPONSE));
        if let Some(word) = word {
            *word = response;
        }
    }

    fn words(&self, request: Request) -> Option<&[u64]> {
        let &(_, index) = self.found.iter().find(|(found, _)| *found == request)?;
        self.image.get(index..)
    }
}
