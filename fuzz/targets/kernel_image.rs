//! The kernel's file as the loader takes it: any bytes, of which only what can be loaded is taken, and
//! as a naive reader of its headers finds it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_loader::image::{Image, LOWEST_ADDRESS};
use muster_loader::memory_map::PAGE;

/// The little-endian number at an offset.
fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let digits = bytes[at..at + length].iter().rev();
    digits.fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// What is to be loaded, by the layout of ELF64's headers: where, how much, what from the file, and
/// whether it may be written and executed. `None` if the number of headers stands elsewhere.
fn naive(file: &[u8]) -> Option<Vec<(u64, u64, &[u8], bool, bool)>> {
    let (first, length, count) = (
        number(file, 32, 8),
        number(file, 54, 2),
        number(file, 56, 2),
    );
    if count == 0xffff {
        return None;
    }
    let headers = (0..count).map(|index| &file[(first + index * length) as usize..][..56]);
    let loaded = headers.filter(|header| number(header, 0, 4) == 1 && number(header, 40, 8) > 0);
    let segments = loaded.map(|header| {
        let flags = number(header, 4, 4);
        let data = &file[number(header, 8, 8) as usize..][..number(header, 32, 8) as usize];
        let (address, size) = (number(header, 16, 8), number(header, 40, 8));
        (address, size, data, flags & 2 != 0, flags & 1 != 0)
    });
    Some(segments.collect())
}

fuzz_target!(|file: &[u8]| {
    let image = match Image::parse(file) {
        Ok(image) => image,
        Err(error) => {
            assert!(
                error
                    .to_string()
                    .starts_with("the kernel can't be loaded: ")
            );
            return;
        }
    };
    // A 64-bit, static executable for x86-64.
    assert_eq!(&file[..5], b"\x7fELF\x02");
    assert_eq!((number(file, 16, 2), number(file, 18, 2)), (2, 62));
    assert_eq!(image.entry, number(file, 24, 8));
    if let Some(segments) = naive(file) {
        let taken = image.segments().iter().map(|segment| {
            let rights = (segment.writable, segment.executable);
            (
                segment.address,
                segment.size,
                segment.data,
                rights.0,
                rights.1,
            )
        });
        assert!(taken.eq(segments));
    }
    assert!(image.align.is_power_of_two() && image.align >= PAGE);
    assert!(image.is_executable(image.entry));
    assert!(image.start() >= LOWEST_ADDRESS && image.size() > 0);
    let mut end = image.start();
    for segment in image.segments() {
        // In order, on pages of its own.
        assert!(end <= segment.start() && segment.start() <= segment.address);
        assert!(segment.size > 0 && segment.address + segment.size <= segment.end());
        // What is copied fits, and comes from the file.
        assert!(segment.data.len() as u64 <= segment.size);
        assert!(file.as_ptr_range().contains(&segment.data.as_ptr()) || segment.data.is_empty());
        end = segment.end();
    }
    assert_eq!(end, image.start() + image.size());
});
