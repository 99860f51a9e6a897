//! The kernel's file as the loader takes it: any bytes, of which only what can be loaded is taken.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_loader::image::{Image, LOWEST_ADDRESS};
use muster_loader::memory_map::PAGE;

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
