//! The return of frames: each is checked to have been handed out to the owner that returns it, and is then
//! marked free in its zone.

use core::ops::Range;

use super::{FrameAllocator, FreeError, check};
use crate::owner::{FREE, Owner};
use crate::range::Frame;
use crate::zone::Zone;

impl<O: Owner> FrameAllocator<O> {
    /// Takes frames back that were handed out to `owner`, all or none.
    pub(super) fn take_back(&self, numbers: Range<u64>, owner: u8) -> Result<(), FreeError<O>> {
        if let Some(zone) = self
            .zone_of(numbers.start)
            .and_then(|index| self.zone(index))
            .filter(|zone| numbers.end <= zone.end())
            && zone.is_open()
            && owner != FREE
        {
            return zone.take_back(numbers.clone(), owner).or_else(|number| {
                self.check_all(numbers, owner)?;
                // The frame is the owner's again now, but was not when this call checked it.
                Frame::from_number(number)
                    .map_or(Ok(()), |frame| Err(FreeError::AlreadyFree { frame }))
            });
        }
        // A caller that does not own the frames leaves no trace by which the owner could be refused.
        self.check_all(numbers.clone(), owner)?;
        let zones = || {
            self.parts(numbers.clone())
                .filter_map(|(part, zone)| Some((part, zone?)))
        };
        // No other CPU may do the same from here on; but one may have, just before.
        let mut begun = numbers.start;
        let begin = |(part, zone): (Range<u64>, &Zone)| match zone.begin_return(part.clone()) {
            Ok(()) => {
                begun = part.end;
                Ok(())
            }
            Err(number) => Frame::from_number(number)
                .map_or(Ok(()), |frame| Err(FreeError::AlreadyFree { frame })),
        };
        let checked = zones()
            .try_for_each(begin)
            .and_then(|()| self.check_all(numbers.clone(), owner));
        for (part, zone) in zones().take_while(|(part, _)| part.start < begun) {
            if checked.is_ok() {
                zone.owners().set(part.clone(), FREE);
            }
            zone.end_return(part.clone());
            if checked.is_ok() {
                zone.release(part);
            }
        }
        checked
    }

    /// Checks that the frames were all handed out to `owner`.
    fn check_all(&self, numbers: Range<u64>, owner: u8) -> Result<(), FreeError<O>> {
        self.parts(numbers).try_for_each(|(part, zone)| {
            if owner != FREE && zone.is_some_and(|zone| zone.owners().are_all(part.clone(), owner))
            {
                return Ok(());
            }
            part.filter_map(Frame::from_number)
                .try_for_each(|frame| check(zone, frame, owner))
        })
    }

    /// Splits frames by their zones; a frame in none is a part of its own.
    fn parts(&self, numbers: Range<u64>) -> impl Iterator<Item = (Range<u64>, Option<&Zone>)> {
        let mut from = numbers.start;
        core::iter::from_fn(move || {
            let start = from;
            if start >= numbers.end {
                return None;
            }
            let zone = self.zone_of(start).and_then(|index| self.zone(index));
            from = zone.map_or(start + 1, |zone| zone.end().min(numbers.end));
            Some((start..from, zone))
        })
    }
}
