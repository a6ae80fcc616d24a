//! An image's own files, out of the tar that they were packed into.

use std::io::{self, Read};

use tar::{Archive, EntryType};

use crate::rootfs::{RootFs, RootNode, RootNodeKind};

/// Reads a tar of files, directories and links: what [`LayerContents::RootFs`](super::LayerContents::RootFs) packs to.
pub fn read_own_files(tar: &[u8]) -> io::Result<RootFs> {
    let mut root = RootFs::new();
    for entry in Archive::new(tar).entries()? {
        let mut entry = entry?;
        let path = entry.path_bytes();
        let path = path.strip_suffix(b"/").unwrap_or(&path).to_vec();
        let kind = match entry.header().entry_type() {
            EntryType::Directory => RootNodeKind::Directory,
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| io::Error::other("a link without a target"))?;
                RootNodeKind::Symlink(target.into_owned())
            }
            EntryType::Regular => {
                let mut contents = Vec::new();
                entry.read_to_end(&mut contents)?;
                RootNodeKind::File(contents)
            }
            other => return Err(io::Error::other(format!("an entry of type {other:?}"))),
        };
        let header = entry.header();
        let owner = |id: io::Result<u64>| u32::try_from(id?).map_err(io::Error::other);
        let (uid, gid) = (owner(header.uid())?, owner(header.gid())?);
        root.insert(path, RootNode { kind, mode: header.mode()?, uid, gid });
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::super::{Compression, LayerContents, Packer};
    use super::*;
    use crate::event::Silent;
    use crate::nix::MemoryStore;

    #[test]
    fn own_files_are_read_as_they_were_packed() {
        let mut root = RootFs::new();
        root.directory("tmp", 0o1777);
        root.file("etc/passwd", 0o644, "root:x:0:0::/root:/bin/sh\n");
        root.symlink("bin/sh", "/nix/store/x/bin/sh");
        root.file(format!("long/{}/name", "n".repeat(150)), 0o755, vec![7; 70_000]);
        root.insert("run", RootNode { kind: RootNodeKind::Directory, mode: 0o755, uid: 70_000, gid: 12 });
        let source = MemoryStore::default();
        let packer = Packer::new(&source, Compression::None, &Silent);
        let pack = |root: &RootFs| {
            let mut tar = Vec::new();
            packer.pack(&LayerContents::RootFs { root, store_paths: &[] }, &mut tar).unwrap();
            tar
        };
        let tar = pack(&root);
        let read = read_own_files(&tar).unwrap();
        assert_eq!(read, root);
        assert!(pack(&read) == tar);
        assert!(read_own_files(&tar[..700]).is_err());
    }
}
