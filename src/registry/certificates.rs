//! Certificates of single registries, where Docker and Podman look for them, too.

use std::fs;
use std::path::{Path, PathBuf};

/// The certificates, in PEM, that these directories have for a registry: `HOST` or `HOST:PORT`. An error says which file
/// cannot be read.
pub(super) fn of_registry(directories: &[PathBuf], registry: &str) -> Result<Vec<u8>, String> {
    let mut certificates = Vec::new();
    for file in directories.iter().flat_map(|directory| files(&directory.join(registry))) {
        let bytes = fs::read(&file).map_err(|error| format!("cannot read '{}': {error}", file.display()))?;
        certificates.extend(bytes);
        // A file may end in the midst of its last line.
        certificates.push(b'\n');
    }
    Ok(certificates)
}

/// Certificates have the ending `.crt`; `.cert` and `.key` are a client's own. A directory that is not there, or that this
/// user may not list, has none.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "crt"));
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_has_the_certificates_of_its_host_and_port_and_no_other_ones() {
        let directory = tempfile::tempdir().unwrap();
        let places = ["own", "system"].map(|place| directory.path().join(place));
        for (file, text) in [
            ("own/registry.example/b.crt", "two"),
            ("own/registry.example/a.crt", "one"),
            ("own/registry.example/client.cert", "not this"),
            ("own/registry.example/client.key", "nor this"),
            ("own/registry.example:5000/ca.crt", "of a port"),
            ("system/registry.example/ca.crt", "three"),
        ] {
            let file = directory.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let of = |registry| String::from_utf8(of_registry(&places, registry).unwrap()).unwrap();
        assert_eq!(of("registry.example"), "one\ntwo\nthree\n");
        assert_eq!(of("registry.example:5000"), "of a port\n");
        assert_eq!(of("other.example"), "");
        // What is there and cannot be read is not passed over.
        fs::create_dir_all(directory.path().join("own/other.example/ca.crt")).unwrap();
        let said = of_registry(&places, "other.example").unwrap_err();
        assert!(said.starts_with("cannot read '") && said.contains("other.example/ca.crt'"), "{said}");
    }
}
