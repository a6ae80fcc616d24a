//! Pins: images that no garbage collection takes.

use std::collections::BTreeSet;

use super::files::{self, IoContext};
use super::gc::means;
use super::{LayerStore, StoreError};

impl LayerStore {
    /// What is pinned: `NAME` or `NAME:TAG`, sorted.
    pub fn pins(&self) -> Result<BTreeSet<String>, StoreError> {
        let path = self.root.join("pins");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(error).context("read", &path),
        }
    }

    /// Pins `name`; says whether an image has that name now.
    pub fn pin(&self, name: &str) -> Result<bool, StoreError> {
        self.change_pins(|pins| {
            pins.insert(name.to_owned());
        })?;
        Ok(self.images()?.iter().any(|image| means(name, &image.record)))
    }

    /// Takes a pin back; says whether there was one.
    pub fn unpin(&self, name: &str) -> Result<bool, StoreError> {
        let mut was_there = false;
        self.change_pins(|pins| was_there = pins.remove(name))?;
        Ok(was_there)
    }

    fn change_pins(&self, change: impl FnOnce(&mut BTreeSet<String>)) -> Result<(), StoreError> {
        // Two changes at once must not lose one; a collection must not run between a look and a pin.
        let _held = self.hold()?;
        let mut pins = self.pins()?;
        change(&mut pins);
        let text: String = pins.iter().map(|pin| format!("{pin}\n")).collect();
        files::write_atomically(&self.tmp(), &self.root.join("pins"), text.as_bytes())
    }
}
