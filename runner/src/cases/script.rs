//! Lines that a test types at the kernel's prompt, each once the log says something; and a picture of
//! the screen before the last of them.

use std::io;

use anyhow::Result;
use muster_runner::session::{KernelInput, Typist};
use regex_lite::Regex;

use crate::emulators::camera::Camera;

/// What the log has to say, as a regular expression, and the line that is typed then.
pub type Cue = (&'static str, &'static str);

/// A test's fingers.
pub struct Script<'a> {
    /// What is still to be typed, the next first.
    cues: std::vec::IntoIter<(Regex, &'static str)>,
    next: Option<(Regex, &'static str)>,
    keyboard: Option<KernelInput>,
    camera: Option<&'a Camera>,
}

impl<'a> Script<'a> {
    /// Types these, one after the other, and takes a picture before the last, if there is a camera.
    ///
    /// # Errors
    /// If what the log has to say is no regular expression.
    pub fn new(cues: &[Cue], camera: Option<&'a Camera>) -> Result<Self> {
        let cues: Result<Vec<_>> = (cues.iter())
            .map(|(says, line)| Ok((Regex::new(says)?, *line)))
            .collect();
        let mut cues = cues?.into_iter();
        Ok(Self {
            next: cues.next(),
            cues,
            keyboard: None,
            camera,
        })
    }

    /// Returns the text that the log did not contain, so that the rest was not typed.
    pub fn missing(&self) -> Option<&str> {
        self.next.as_ref().map(|(says, _)| says.as_str())
    }
}

impl Typist for Script<'_> {
    fn take_keyboard(&mut self, keyboard: KernelInput) -> Result<()> {
        self.keyboard = Some(keyboard);
        Ok(())
    }

    fn see(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn read(&mut self, text: &str) -> io::Result<()> {
        if let Some((_, line)) = self.next.take_if(|(says, _)| says.is_match(text)) {
            self.next = self.cues.next();
            if let (None, Some(camera)) = (&self.next, self.camera) {
                camera.take().map_err(io::Error::other)?;
            }
            if let Some(keyboard) = &mut self.keyboard {
                // The kernel may have ended, and the test will say why.
                let _ = keyboard.write_all(line.as_bytes());
                let _ = keyboard.write_all(b"\r");
                let _ = keyboard.flush();
            }
        }
        Ok(())
    }
}
