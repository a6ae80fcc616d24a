//! What the benches pack: store paths without a Nix database.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use layerhold::nix::StorePath;

/// Store paths of some 4 MiB each: many small files, some large ones, contents that compress as programs do. The first
/// ones are the same however many are asked for.
pub(crate) fn write(root: &Path, count: u8) -> Vec<StorePath> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    // Words out of a small vocabulary, so that codecs find what they find in real programs.
    let vocabulary: Vec<[u8; 12]> =
        (0..4096).map(|_| [next().to_le_bytes().as_slice(), &[0; 4]].concat().try_into().unwrap()).collect();
    let mut contents = |length: usize| -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 12);
        while bytes.len() < length {
            bytes.extend_from_slice(&vocabulary[(next() % 4096) as usize]);
        }
        bytes.truncate(length);
        bytes
    };
    (0..count)
        .map(|n| {
            let path = StorePath::synthetic(blake3::hash(&[n]).as_bytes(), &format!("package{n}-1.0")).unwrap();
            let base = root.join("nix/store").join(path.base_name());
            fs::create_dir_all(base.join("share/doc")).unwrap();
            fs::create_dir_all(base.join("bin")).unwrap();
            for file in 0..120 {
                fs::write(base.join(format!("share/doc/file{file}")), contents(1 << (file % 14 + 3))).unwrap();
            }
            let program = base.join("bin/program");
            fs::write(&program, contents(3 << 20)).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            path
        })
        .collect()
}
