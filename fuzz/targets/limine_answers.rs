//! The loader's answers: whatever they are, the kernel refuses them in words or can plan by them.
#![no_main]

#[path = "../../frames/tests/frames/owner.rs"]
mod owner;

use crate::owner::{Owner, physical_map};
use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use muster_boot::{
    Answer, BootError, Cpus, Framebuffer, Kind, MemoryMap, Placement, Unusable, command_line, hhdm,
};
use muster_frames::{FRAME_SIZE, PhysAddr, PhysRange};
use muster_paging::{Access, Cache, Levels, PageSize, Plan, PlanError, Region, VirtAddr};
use muster_screen::Channel;

/// The answers; what is `None` is right, as far as the others allow.
#[derive(Arbitrary, Debug)]
struct Input<'a> {
    hhdm: Option<Number>,
    entries: Vec<(Number, Number, u8)>,
    bsp: Option<u8>,
    lapic_ids: Vec<u8>,
    image: (Option<Number>, Number, [u8; 3]),
    lacks_image_entry: bool,
    screen: Screen,
    command_line: &'a [u8],
    has_five_levels: bool,
    physical_bits: u8,
}

/// A screen that begins in one of the entries; what is `None` is right.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Screen {
    entry: u8,
    bytes_behind: Option<Number>,
    width: Number,
    height: Number,
    pitch: Option<Number>,
    pixel: Option<(u8, [(u8, u8); 3], bool)>,
}

/// A number as a loader might give it, or any other.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Frames(u16),
    ManyFrames(u16, u8),
    HigherHalf(u16),
    TopOfMemory(u16),
    Any(u64),
}

/// Where the kernel is linked.
const LINKED: VirtAddr = VirtAddr::new(0xffff_ffff_8000_0000);

/// Where Limine has its direct map, with four levels.
const LOWEST_HHDM: u64 = 0xffff_8000_0000_0000;

impl Number {
    fn value(self) -> u64 {
        match self {
            Self::Frames(frames) => u64::from(frames) * FRAME_SIZE,
            Self::ManyFrames(frames, shift) => (u64::from(frames) * FRAME_SIZE) << (shift % 36),
            Self::HigherHalf(pages) => LOWEST_HHDM + u64::from(pages) * PageSize::Size1GiB.bytes(),
            Self::TopOfMemory(frames) => LINKED.get() + u64::from(frames) * FRAME_SIZE,
            Self::Any(number) => number,
        }
    }
}

impl Input<'_> {
    /// The lengths of the image's text, constants and data, in whole frames.
    fn sections(&self) -> [u64; 3] {
        self.image
            .2
            .map(|frames| (u64::from(frames) + 1) * FRAME_SIZE)
    }

    fn memory_map(&self) -> Result<MemoryMap, BootError> {
        let entries = self.entries.iter().take(300).map(|&(base, length, kind)| {
            let kind = Kind::ALL[usize::from(kind) % Kind::ALL.len()];
            (base.value(), length.value(), kind)
        });
        let length = self.sections().iter().sum();
        let image = (self.image.1.value(), length, Kind::ExecutableAndModules);
        MemoryMap::check(entries.chain((!self.lacks_image_entry).then_some(image)))
    }

    fn check_cpus(&self) -> Result<(), BootError> {
        let ids = self.lapic_ids.iter().map(|&id| u32::from(id));
        let bsp = self.bsp.or(self.lapic_ids.first().copied());
        let bsp = bsp.unwrap_or_default().into();
        let cpus = match Cpus::check(bsp, ids.clone().zip(0..)) {
            Ok(cpus) => cpus,
            Err(error) => {
                assert_eq!(error, BootError::NoBsp(bsp));
                assert!(!ids.clone().any(|id| id == bsp));
                return Err(error);
            }
        };
        assert_eq!(cpus.listed.len() + cpus.repeated.len(), ids.len());
        for (place, &(id, slot)) in cpus.listed.iter().enumerate() {
            // Each id once, with its first place; the BSP's comes first, and has none.
            assert_eq!(id == bsp, place == 0);
            let first = ids.clone().position(|other| other == id);
            assert_eq!(slot, first.filter(|_| place > 0));
        }
        Ok(())
    }

    fn check_screen(&self, hhdm: VirtAddr, memory: &MemoryMap) {
        let screen = self.screen;
        let bytes_behind = screen.bytes_behind.map_or(0, Number::value);
        let entry = usize::from(screen.entry).checked_rem(memory.entries.len());
        let start = entry.map_or(0, |entry| memory.entries[entry].range.start().get());
        // A frame of memory stands for a pixel, too, as screens are small.
        let pixels = |number: Number| number.value() / FRAME_SIZE;
        let (width, height) = (pixels(screen.width), pixels(screen.height));
        let right = (32, [(8, 16), (8, 8), (8, 0)], true);
        let (bits, channels, is_rgb) = screen.pixel.unwrap_or(right);
        let pitch = screen.pitch.map_or(width.wrapping_mul(4), Number::value);
        let answer = Answer {
            address: VirtAddr::new(hhdm.get().wrapping_add(start).wrapping_add(bytes_behind)),
            width,
            height,
            pitch,
            bits: bits.into(),
            is_rgb,
            channels: channels.map(|(bits, shift)| Channel { bits, shift }),
        };
        let found = Framebuffer::check(&answer, hhdm, memory);
        // All bytes of its rows, where there are any, in one entry, and aligned.
        let bytes = u128::from(bits.div_ceil(8));
        let align = if bytes == 3 { 1 } else { bytes.max(1) };
        let begin = u128::from(answer.address.get()).wrapping_sub(hhdm.get().into());
        let end = begin.wrapping_add(u128::from(pitch) * u128::from(height));
        let is_there = width > 0
            && height > 0
            && u128::from(width) * bytes <= u128::from(pitch)
            && (begin | u128::from(pitch)).is_multiple_of(align)
            && memory.entries.iter().any(|entry| {
                let range =
                    u128::from(entry.range.start().get())..=u128::from(entry.range.end().get());
                entry.kind == Kind::Framebuffer && range.contains(&begin) && range.contains(&end)
            });
        match found {
            Ok(found) => {
                assert!(is_there && is_rgb && found.format.bytes() as u128 == bytes);
                assert_eq!(
                    (found.address, found.width as u64, found.height as u64),
                    (answer.address, width, height)
                );
                assert_eq!(found.pitch as u64, pitch);
            }
            Err(error) => {
                assert!(!is_there || matches!(error, Unusable::Format { .. }));
                assert!(screen.pixel.is_some() || !matches!(error, Unusable::Format { .. }));
                assert!(error.to_string().len() > 10);
            }
        }
    }

    /// What the kernel does with the answers before it builds tables.
    fn plan(&self) -> Result<Plan, Box<dyn std::error::Error>> {
        self.check_cpus()?;
        command_line(self.command_line)?;
        let [text, constants, data] = self.sections();
        let linked = LINKED..LINKED + text + constants + data;
        let virtual_ = self
            .image
            .0
            .map_or(LINKED, |base| VirtAddr::new(base.value()));
        let physical = PhysAddr::new(self.image.1.value());
        let image = Placement::check(virtual_, physical, linked)?;
        let hhdm = hhdm(self.hhdm.map_or(LOWEST_HHDM, Number::value))?;
        let memory = self.memory_map()?;
        assert!(memory.usable_bytes() <= 300 << 52);
        self.check_screen(hhdm, &memory);

        let mut map = physical_map(&memory.entries)?;
        map.assign(image.range, Owner::Kernel, Owner::Kernel)?;
        let levels = match self.has_five_levels {
            true => Levels::Five,
            false => Levels::Four,
        };
        let mut plan = Plan::new(levels, self.physical_bits.into());
        let read_only = PhysRange::new(image.range.start(), text + constants);
        let read_only = read_only.as_slice();
        let largest = PageSize::Size1GiB;
        for region in muster_boot::hhdm_regions(&memory.entries, hhdm, largest, read_only)? {
            plan.add(region)?;
        }
        let mut at = LINKED;
        for (length, access) in [
            (text, Access::ReadExecute),
            (constants, Access::ReadOnly),
            (data, Access::ReadWrite),
        ] {
            plan.add(Region {
                name: "image",
                virt: at,
                phys: image.physical_of(at),
                length,
                access,
                cache: Cache::WriteBack,
                largest: PageSize::Size2MiB,
            })?;
            at += length;
        }
        Ok(plan)
    }
}

fuzz_target!(|input: Input| {
    let plan = match input.plan() {
        Ok(plan) => plan,
        Err(error) => {
            assert!(error.to_string().len() > 10);
            // The direct map spares the image, and has nothing twice.
            let contradicts = matches!(
                error.downcast_ref(),
                Some(PlanError::WritableAlias { .. } | PlanError::CacheAlias { .. })
            );
            assert!(!contradicts, "{error}");
            return;
        }
    };
    // The code is executable where it runs, and writable nowhere.
    let text = plan.region_at(LINKED);
    assert!(text.is_some_and(|text| text.access == Access::ReadExecute));
    let text = text.and_then(Region::physical);
    for region in plan.regions() {
        let shows_text = text
            .zip(region.physical())
            .is_some_and(|(a, b)| a.overlaps(b));
        assert!(
            !shows_text || region.access != Access::ReadWrite,
            "{region}"
        );
    }
});
