//! What is kept of a store path that is costly to walk: its structure, and the small files that environments are made by.

use std::collections::BTreeMap;
use std::io;

use super::{EntryKind, Node, TreeListing, Visitor};

/// Files below this directory are kept whole, as nixpkgs' `propagated-*` files are.
const KEPT: &[u8] = b"nix-support/";
/// But no longer ones, in bytes.
const LONGEST_KEPT: u64 = 64 * 1024;

/// A store path's structure with the contents of its small files in `nix-support`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skeleton {
    /// The structure.
    pub listing: TreeListing,
    files: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Skeleton {
    /// The contents of a file, where they are kept.
    pub fn file(&self, path: &[u8]) -> Option<&[u8]> {
        self.files.get(path).map(Vec::as_slice)
    }

    /// One node after the other, each field with its length; read by [`Skeleton::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut field = |field: &[u8]| {
            bytes.extend_from_slice(&(field.len() as u32).to_le_bytes());
            bytes.extend_from_slice(field);
        };
        for (path, kind) in self.listing.iter() {
            field(path);
            match kind {
                EntryKind::Directory => field(b"d"),
                EntryKind::Regular => field(b"r"),
                EntryKind::Symlink(target) => {
                    field(b"l");
                    field(target);
                }
            }
        }
        for (path, contents) in &self.files {
            field(path);
            field(b"c");
            field(contents);
        }
        bytes
    }

    /// Reads what [`Skeleton::to_bytes`] wrote; `None` for anything else.
    pub fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let mut field = || -> Option<Option<&[u8]>> {
            let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
                return bytes.is_empty().then_some(None);
            };
            let (field, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            bytes = rest;
            Some(Some(field))
        };
        let mut skeleton = Self::default();
        while let Some(path) = field()? {
            let path = path.to_vec();
            let kind = match field()?? {
                b"d" => EntryKind::Directory,
                b"r" => EntryKind::Regular,
                b"l" => EntryKind::Symlink(field()??.to_vec()),
                b"c" => {
                    let contents = field()??.to_vec();
                    skeleton.files.insert(path, contents);
                    continue;
                }
                _ => return None,
            };
            skeleton.listing.insert(path, kind);
        }
        Some(skeleton)
    }
}

/// Shows a walk to another visitor, and keeps its skeleton.
pub struct SkeletonRecorder<'v> {
    /// Who sees the nodes.
    pub visitor: &'v mut dyn Visitor,
    /// What was kept until now.
    pub skeleton: Skeleton,
}

impl Visitor for SkeletonRecorder<'_> {
    fn node(&mut self, path: &[u8], node: Node<'_>) -> io::Result<()> {
        self.skeleton.listing.insert(path.to_vec(), EntryKind::of(&node));
        match node {
            Node::Regular { executable, size, contents } if size <= LONGEST_KEPT && path.starts_with(KEPT) => {
                let mut bytes = Vec::with_capacity(size as usize);
                contents.read_to_end(&mut bytes)?;
                self.visitor.node(path, Node::Regular { executable, size, contents: &mut bytes.as_slice() })?;
                self.skeleton.files.insert(path.to_vec(), bytes);
                Ok(())
            }
            node => self.visitor.node(path, node),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{model, record_nodes};
    use super::super::{MemoryTree, read_nar};
    use super::*;

    fn skeleton(tree: &MemoryTree) -> Skeleton {
        let mut nothing = |_: &[u8], _: Node<'_>| Ok(());
        let mut recorder = SkeletonRecorder { visitor: &mut nothing, skeleton: Skeleton::default() };
        tree.walk(&mut recorder).unwrap();
        recorder.skeleton
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(model in model()) {
            let skeleton = skeleton(&model.tree());
            prop_assert_eq!(Skeleton::from_bytes(&skeleton.to_bytes()), Some(skeleton));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Skeleton::from_bytes(&bytes);
        }
    }

    #[test]
    fn small_files_of_nix_support_are_kept_and_shown_all_the_same() {
        let mut tree = MemoryTree::new();
        tree.file(b"nix-support/propagated-build-inputs", false, *b"/nix/store/x").unwrap();
        tree.file(b"nix-support/large", false, vec![0; 70_000]).unwrap();
        tree.file(b"bin/x", true, *b"x").unwrap();
        let skeleton = skeleton(&tree);
        assert_eq!(skeleton.file(b"nix-support/propagated-build-inputs"), Some(&b"/nix/store/x"[..]));
        assert_eq!((skeleton.file(b"nix-support/large"), skeleton.file(b"bin/x")), (None, None));
        assert_eq!(skeleton.listing.get(b"bin/x"), Some(&EntryKind::Regular));

        let nar = super::super::testing::nar_of_tree(&tree);
        let shown = record_nodes(|visitor| {
            read_nar(&mut &nar[..], &mut SkeletonRecorder { visitor, skeleton: Skeleton::default() })
        });
        assert_eq!(shown.unwrap(), record_nodes(|visitor| tree.walk(visitor)).unwrap());
    }
}
