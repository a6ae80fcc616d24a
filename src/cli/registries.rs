//! How registries are reached: arguments, what `docker login` and `podman login` have left, certificates.

use std::fs;
use std::path::PathBuf;

use super::args::RegistryArgs;
use super::failure::Failure;
use super::surroundings::{absolute, config_home, variable};
use crate::registry::{Credentials, Settings};

/// The settings of this run.
pub(super) fn settings(args: &RegistryArgs) -> Result<Settings, Failure> {
    let mut certificates = Vec::new();
    for file in &args.registry_ca {
        let bytes = fs::read(file).map_err(|error| Failure::unreadable(file, &error))?;
        if !bytes.windows(BEGIN.len()).any(|window| window == BEGIN) {
            let hint = "--registry-ca takes a file of certificates in PEM: -----BEGIN CERTIFICATE-----".to_owned();
            return Err(Failure::new(format!("there is no certificate in '{}'", file.display()), Some(hint)));
        }
        certificates.extend_from_slice(&bytes);
        certificates.push(b'\n');
    }
    Ok(Settings {
        credentials: Credentials { files: login_files(), path: std::env::var_os("PATH") },
        insecure: args.insecure_registry.clone(),
        certificates,
        certificate_directories: certificate_directories(),
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
