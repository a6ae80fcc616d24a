//! One layer: its contents, its key, and its bytes.

use std::io;

use super::Compression;
use super::tar_writer::{Attributes, TarWriter};
use crate::blob::{DiffId, Digest, LayerKey, LayerKeyBuilder};
use crate::nix::{Node, PathInfo, Source, StorePath, TreeState, Visitor, WalkError};
use crate::rootfs::{RootFs, RootNodeKind};

/// The blake3 context of keys of store path layers: another packing format gets another number.
const STORE_PATHS_CONTEXT: &str = "layerhold 2026 layer of store paths, packing format 1";
/// The same for layers of the image's own files. Format 2: the root's links lead through `/nix/environment`.
const ROOT_FS_CONTEXT: &str = "layerhold 2026 layer of own files, packing format 2";

/// What goes into a layer.
pub enum LayerContents<'a> {
    /// Whole store paths. Their order does not matter.
    StorePaths(Vec<&'a PathInfo>),
    /// The image's own files.
    RootFs {
        /// The files.
        root: &'a RootFs,
        /// The store paths among them.
        store_paths: &'a [StorePath],
    },
}

/// What packing a layer yields beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Length of the blob in bytes.
    pub size: u64,
    /// Length of the uncompressed tar in bytes.
    pub tar_size: u64,
}

/// A layer could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A store path could not be read.
    #[error(transparent)]
    Walk(WalkError),
    /// The bytes could not be written, or the user interrupted.
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
}

impl LayerContents<'_> {
    /// What this layer is made from, known before a file is read.
    pub fn key(&self, compression: Compression) -> LayerKey {
        let mut key;
        match self {
            Self::StorePaths(paths) => {
                key = LayerKeyBuilder::new(STORE_PATHS_CONTEXT);
                for info in in_layer_order(paths) {
                    key.field(info.path.base_name().as_bytes()).field(&info.content.to_key_field());
                }
            }
            Self::RootFs { root, .. } => {
                key = LayerKeyBuilder::new(ROOT_FS_CONTEXT);
                for (path, node) in root.iter() {
                    let (kind, contents) = match &node.kind {
                        RootNodeKind::Directory => (b"d", &[][..]),
                        RootNodeKind::File(contents) => (b"f", contents.as_slice()),
                        RootNodeKind::Symlink(target) => (b"l", target.as_slice()),
                    };
                    key.field(path).field(kind).field(contents);
                    for number in [node.mode, node.uid, node.gid] {
                        key.field(&number.to_le_bytes());
                    }
                }
            }
        }
        key.field(compression.key_field().as_bytes());
        key.finish()
    }

    /// The store paths, in the order in which they are packed.
    pub fn store_paths(&self) -> Vec<StorePath> {
        match self {
            Self::StorePaths(paths) => in_layer_order(paths).into_iter().map(|info| info.path.clone()).collect(),
            Self::RootFs { store_paths, .. } => store_paths.to_vec(),
        }
    }

    /// The store paths with their shares of the layer, in bytes of NAR, in the order in which they are packed.
    pub fn sizes(&self) -> impl Iterator<Item = (StorePath, u64)> {
        let paths = match self {
            Self::StorePaths(paths) => in_layer_order(paths),
            Self::RootFs { .. } => Vec::new(),
        };
        paths.into_iter().map(|info| (info.path.clone(), info.nar_size))
    }

    /// About how many bytes there are to pack: for progress, and to start with the largest layer.
    pub fn estimated_size(&self) -> u64 {
        match self {
            Self::StorePaths(paths) => paths.iter().map(|info| info.nar_size).sum(),
            Self::RootFs { root, .. } => root.iter().count() as u64 * 512,
        }
    }

    /// The length in bytes of the layer's tar. Reads names and lengths, no contents.
    pub(super) fn tar_size(&self, source: &dyn Source) -> Result<u64, PackError> {
        Ok(self.write_tar(source, TarWriter::measuring(), &mut Lost::default())?.0)
    }

    /// The state of the trees of which the layer would be made now; `None` where it cannot be told.
    pub(super) fn state(&self, source: &dyn Source) -> Option<TreeState> {
        let Self::StorePaths(paths) = self else { return None };
        let state = |info: &PathInfo| source.walk_in_state(&info.path, &mut |_: &[u8], _: Node<'_>| Ok(())).ok()?;
        Some(TreeState::of_all(in_layer_order(paths).into_iter().map(state).collect::<Option<Vec<_>>>()?))
    }

    /// Writes the layer's tar. Gives its length in bytes, and the state of the trees that it was made of; counts in `lost`
    /// what runtimes will not unpack.
    pub(super) fn write_tar(
        &self,
        source: &dyn Source,
        mut tar: TarWriter<'_>,
        lost: &mut Lost,
    ) -> Result<(u64, Option<TreeState>), PackError> {
        let mut states = Some(Vec::new());
        match self {
            Self::StorePaths(paths) => {
                // Every layer brings its parent directories, so that none depends on another's being there.
                for parent in ["nix", "nix/store"] {
                    tar.directory(parent.as_bytes(), Attributes::root(0o755)).map_err(PackError::Write)?;
                }
                for info in in_layer_order(paths) {
                    match (write_store_path(&mut tar, source, &info.path, lost)?, &mut states) {
                        (Some(state), Some(states)) => states.push(state),
                        _ => states = None,
                    }
                }
            }
            Self::RootFs { root, .. } => {
                for (path, node) in root.iter() {
                    let attributes = Attributes { mode: node.mode, uid: node.uid, gid: node.gid };
                    match &node.kind {
                        RootNodeKind::Directory => tar.directory(path, attributes),
                        RootNodeKind::File(bytes) => {
                            tar.file(path, bytes.len() as u64, &mut bytes.as_slice(), attributes)
                        }
                        RootNodeKind::Symlink(target) => tar.symlink(path, target, attributes),
                    }
                    .map_err(PackError::Write)?;
                }
            }
        }
        Ok((tar.finish().map_err(PackError::Write)?, states.map(TreeState::of_all)))
    }
}

fn write_store_path(
    tar: &mut TarWriter<'_>,
    source: &dyn Source,
    path: &StorePath,
    lost: &mut Lost,
) -> Result<Option<TreeState>, PackError> {
    let full = format!("nix/store/{}", path.base_name()).into_bytes();
    let root = full.len();
    source.walk_in_state(path, &mut StorePathWriter { tar, full, root, lost }).map_err(|error| match error {
        WalkError::Visitor(error) => PackError::Write(error),
        other => PackError::Walk(other),
    })
}

/// How names begin that runtimes take for whiteouts, and not for files (OCI image specification, layer.md).
const WHITEOUT: &[u8] = b".wh.";

/// Files that no container will have, for their names are those of whiteouts: layers have no other way to say it.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// The first one by name, as its path in the tar.
    pub(super) first: Option<Vec<u8>>,
    /// How many there are.
    pub(super) count: u64,
}

impl Lost {
    fn add(&mut self, path: &[u8]) {
        self.join(Self { first: Some(path.to_vec()), count: 1 });
    }

    /// Takes those of another layer, too.
    pub(super) fn join(&mut self, other: Self) {
        self.count += other.count;
        self.first = match (self.first.take(), other.first) {
            (Some(one), Some(another)) => Some(one.min(another)),
            (one, another) => one.or(another),
        };
    }
}

/// Writes the nodes of a store path to a tar.
struct StorePathWriter<'w, 't> {
    tar: &'w mut TarWriter<'t>,
    /// A node's path in the tar, behind that of the store path.
    full: Vec<u8>,
    /// The length of the store path's.
    root: usize,
    lost: &'w mut Lost,
}

impl Visitor for StorePathWriter<'_, '_> {
    fn node(&mut self, relative: &[u8], node: Node<'_>) -> io::Result<()> {
        self.full.truncate(self.root);
        if !relative.is_empty() {
            self.full.push(b'/');
            self.full.extend_from_slice(relative);
        }
        let name = relative.rsplit(|byte| *byte == b'/').next().unwrap_or(relative);
        if name.starts_with(WHITEOUT) {
            self.lost.add(&self.full);
        }
        // The modes that Nix's own canonicalisation sets; NAR has no others.
        match node {
            Node::Directory => self.tar.directory(&self.full, Attributes::root(0o555)),
            Node::Regular { executable, size, contents } => {
                let mode = if executable { 0o555 } else { 0o444 };
                self.tar.file(&self.full, size, contents, Attributes::root(mode))
            }
            Node::Symlink { target } => self.tar.symlink(&self.full, target, Attributes::root(0o777)),
        }
    }

    fn reads(&self) -> bool {
        !self.tar.is_measuring()
    }
}

/// A layer holds a set of store paths: they are packed in the order of their names, whatever order they came in.
fn in_layer_order<'a>(paths: &[&'a PathInfo]) -> Vec<&'a PathInfo> {
    let mut paths = paths.to_vec();
    paths.sort_by(|a, b| a.path.cmp(&b.path));
    paths
}
