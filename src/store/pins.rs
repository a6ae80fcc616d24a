//! Pins: images that no garbage collection takes.

use std::collections::BTreeSet;

use super::database::Held;
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

    /// Pins `name` if an image has that name now; says whether one has.
    pub fn pin(&self, name: &str) -> Result<bool, StoreError> {
        // A collection must not run between the look and the pin.
        let held = self.hold()?;
        let is_there = self.images()?.iter().any(|image| means(name, &image.record));
        if is_there {
            self.change_pins(&held, |pins| {
                pins.insert(name.to_owned());
            })?;
        }
        Ok(is_there)
    }

    /// Takes a pin back; says whether there was one.
    pub fn unpin(&self, name: &str) -> Result<bool, StoreError> {
        let mut was_there = false;
        self.change_pins(&self.hold()?, |pins| was_there = pins.remove(name))?;
        Ok(was_there)
    }

    /// Only under the index's lock: two changes at once must not lose one.
    fn change_pins(&self, _held: &Held, change: impl FnOnce(&mut BTreeSet<String>)) -> Result<(), StoreError> {
        let mut pins = self.pins()?;
        change(&mut pins);
        let text: String = pins.iter().map(|pin| format!("{pin}\n")).collect();
        files::write_atomically(&self.tmp(), &self.root.join("pins"), text.as_bytes())
    }
}
