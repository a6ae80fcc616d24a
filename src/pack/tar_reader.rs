//! What was packed into a layer, out of its tar: an image's own files, store paths.

use std::io::{self, Read};

use tar::{Archive, EntryType};

use crate::nix::{Contents, Node};
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

/// Shows the nodes of a layer of store paths in their order: the store path's name, what is relative to it, the node.
/// Whatever such a layer does not have is an error.
pub fn read_store_paths(
    mut tar: impl Read,
    mut show: impl FnMut(&str, &[u8], Node<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let foreign = |path: &[u8]| io::Error::other(format!("it has an entry '{}'", String::from_utf8_lossy(path)));
    for entry in Archive::new(&mut tar).entries()? {
        let mut entry = entry?;
        let path = entry.path_bytes().into_owned();
        let path = path.strip_suffix(b"/").unwrap_or(&path);
        let (kind, size) = (entry.header().entry_type(), entry.size());
        if !is_plain(&mut entry)? {
            return Err(foreign(path));
        }
        if kind == EntryType::Directory && matches!(path, b"nix" | b"nix/store") {
            match entry.header().mode()? {
                0o755 => continue,
                _ => return Err(foreign(path)),
            }
        }
        let inside = path.strip_prefix(b"nix/store/").ok_or_else(|| foreign(path))?;
        let slash = inside.iter().position(|&byte| byte == b'/').unwrap_or(inside.len());
        let name = std::str::from_utf8(&inside[..slash]).map_err(|_| foreign(path))?;
        let relative = inside.get(slash + 1..).unwrap_or_default();
        match (kind, entry.header().mode()?) {
            (EntryType::Directory, 0o555) => show(name, relative, Node::Directory)?,
            (EntryType::Symlink, 0o777) => {
                let target = entry.link_name_bytes().ok_or_else(|| foreign(path))?.into_owned();
                show(name, relative, Node::Symlink { target: &target })?;
            }
            (EntryType::Regular, mode @ (0o444 | 0o555)) => {
                show(name, relative, Node::Regular { executable: mode == 0o555, size, contents: &mut entry })?;
            }
            _ => return Err(foreign(path)),
        }
    }
    // Not all readers agree on where a tar ends: behind its end some would find more.
    let mut rest = [0; 512];
    loop {
        match tar.read(&mut rest)? {
            0 => return Ok(()),
            read if rest[..read].iter().all(|&byte| byte == 0) => {}
            _ => return Err(io::Error::other("it has something behind its end")),
        }
    }
}

impl<R: Read> Contents for tar::Entry<'_, R> {}

/// Whether an entry is root's, and has nothing that store paths do not have: capabilities, say.
fn is_plain(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<bool> {
    let is_roots = entry.header().uid()? == 0 && entry.header().gid()? == 0;
    let Some(extensions) = entry.pax_extensions()? else { return Ok(is_roots) };
    for extension in extensions {
        if !matches!(extension?.key_bytes(), b"path" | b"linkpath" | b"size") {
            return Ok(false);
        }
    }
    Ok(is_roots)
}

#[cfg(test)]
mod tests {
    use super::super::{Compression, LayerContents, Packer};
    use super::*;
    use crate::event::Silent;
    use crate::nix::MemoryStore;

    /// A tar with one entry in a store path, made another one by `change`.
    fn store_path_with(change: impl Fn(&mut tar::Builder<Vec<u8>>, &mut tar::Header)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_path("nix/store/name/file").unwrap();
        header.set_mode(0o444);
        header.set_size(0);
        header.set_uid(0);
        header.set_gid(0);
        change(&mut builder, &mut header);
        header.set_cksum();
        builder.append(&header, io::empty()).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn what_no_store_path_has_is_in_no_layer_of_store_paths() {
        let read = |tar: Vec<u8>| read_store_paths(tar.as_slice(), |_, _, _| Ok(())).is_ok();
        assert!(read(store_path_with(|_, _| {})));
        let extension = |key: &'static str| {
            store_path_with(move |builder, _| builder.append_pax_extensions([(key, &b"nix/store/name/x"[..])]).unwrap())
        };
        assert!(read(extension("path")));
        assert!(!read(extension("SCHILY.xattr.security.capability")));
        assert!(!read(extension("uid")));
        assert!(!read(store_path_with(|_, header| header.set_mode(0o4555))));
        assert!(!read(store_path_with(|_, header| header.set_uid(1000))));
        assert!(!read(store_path_with(|_, header| header.set_gid(1))));
        assert!(!read(store_path_with(|_, header| header.set_path("etc/passwd").unwrap())));
        assert!(!read(store_path_with(|_, header| header.set_entry_type(EntryType::Fifo))));
        let (tar, more) = (store_path_with(|_, _| {}), store_path_with(|_, _| {}));
        assert!(read([&tar[..], &[0; 512]].concat()) && !read([&tar[..], &more].concat()));
    }

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
