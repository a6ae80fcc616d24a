//! The whole way through, stage by stage: a table of contents.
//!
//! ```text
//! environment -> closure -> layer plan -> packing -> layer store -> image -> delivery
//! ```

use std::path::PathBuf;

use crate::delivery::{self, Delivered, Target};
use crate::environment::{self, ActivateMode, Environment, Selection, System};
use crate::event::Observer;
use crate::image::{Image, ImageName, ImageSpec};
use crate::layers::Layers;
use crate::nix::{Closure, LocalStore, StorePath};
use crate::pack::{Compression, LayerContents};
use crate::plan;
use crate::store::{ImageRecord, LayerStore};
