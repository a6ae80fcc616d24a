//! How registries are reached: arguments, what `docker login` and `podman login` have left, certificates.

use std::fs;
use std::path::{Path, PathBuf};

use super::args::RegistryArgs;
use super::failure::Failure;
use super::surroundings::{absolute, config_home, variable};
use crate::registry::{Credentials, Reference, Settings};

/// The settings of this run; `references` are what is going to be asked.
pub(super) fn settings<'r>(
    args: &RegistryArgs,
    references: impl Iterator<Item = &'r Reference>,
) -> Result<Settings, Failure> {
    let mut certificates = Vec::new();
    for file in &args.registry_ca {
        let bytes = fs::read(file).map_err(|error| Failure::unreadable(file, &error))?;
        if !bytes.windows(BEGIN.len()).any(|window| window == BEGIN) {
            let hint = "--registry-ca takes a file of certificates in PEM: -----BEGIN CERTIFICATE-----".to_owned();
            return Err(Failure::new(format!("there is no certificate in '{}'", file.display()), Some(hint)));
        }
        append(&mut certificates, &bytes);
    }
    let mut hosts: Vec<&str> = references.map(Reference::registry).collect();
    hosts.sort_unstable();
    hosts.dedup();
    for host in hosts {
        for directory in certificate_directories() {
            for file in certificates_in(&directory.join(host)) {
                append(&mut certificates, &fs::read(&file).map_err(|error| Failure::unreadable(&file, &error))?);
            }
        }
    }
    Ok(Settings {
        credentials: Credentials { files: login_files(), path: std::env::var_os("PATH") },
        insecure: args.insecure_registry.clone(),
        certificates,
        ..Settings::default()
    })
}

const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Podman's places, then Docker's (containers-auth.json(5)).
fn login_files() -> Vec<PathBuf> {
    let named = variable("REGISTRY_AUTH_FILE");
    // Whoever has no such directory, as in most containers, is root or has had one made.
    let running = absolute("XDG_RUNTIME_DIR").map(|directory| directory.join("containers"));
    let own = || PathBuf::from("/run/containers").join(rustix::process::getuid().as_raw().to_string());
    let running = Some(running.unwrap_or_else(own).join("auth.json"));
    let podman = config_home().map(|directory| directory.join("containers/auth.json"));
    let docker = variable("DOCKER_CONFIG").or_else(|| absolute("HOME").map(|home| home.join(".docker")));
    [named, running, podman, docker.map(|directory| directory.join("config.json"))].into_iter().flatten().collect()
}

/// Where Docker and Podman look for certificates of registries, a directory for each host (docker: "Test an insecure
/// registry"; containers-certs.d(5)).
fn certificate_directories() -> Vec<PathBuf> {
    let own = config_home().map(|directory| directory.join("containers/certs.d"));
    own.into_iter().chain(["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from)).collect()
}

/// Certificates have the ending `.crt`; `.cert` and `.key` are a client's own. A directory that is not there has none.
fn certificates_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "crt"));
    files.sort();
    files
}

fn append(certificates: &mut Vec<u8>, more: &[u8]) {
    certificates.extend_from_slice(more);
    certificates.push(b'\n');
}
