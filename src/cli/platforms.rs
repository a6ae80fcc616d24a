//! `--platform` and what depends on it: which kinds of machine images are made for, and the shell on each.

use std::collections::BTreeMap;

use super::failure::Failure;
use crate::environment::System;
use crate::nix::StorePath;

/// The kind of machine that this is, if images are made for it.
pub(super) fn this_system() -> Option<System> {
    system_of(std::env::consts::OS, std::env::consts::ARCH)
}

/// The kind of a machine by Rust's names. What is built on macOS does not run in an image.
fn system_of(os: &str, architecture: &str) -> Option<System> {
    if os == "linux" { System::of_machine(architecture) } else { None }
}

/// The kind of machine that images are for where none is named: under any system it is Linux on the same processor, for
/// that is what runtimes have there.
fn default_system(architecture: &str) -> Option<System> {
    System::of_machine(architecture)
}

/// The platforms that were asked for, each once, in their order; this machine's where none was.
pub(super) fn chosen(given: &[System]) -> Result<Vec<System>, Failure> {
    let mut systems = Vec::new();
    for system in given {
        if !systems.contains(system) {
            systems.push(*system);
        }
    }
    if systems.is_empty() {
        systems.push(default_system(std::env::consts::ARCH).ok_or_else(|| {
            Failure::new(
                format!("images cannot be made for this machine's architecture, {}", std::env::consts::ARCH),
                Some("name another one: --platform linux/amd64, --platform linux/arm64".to_owned()),
            )
        })?);
    }
    Ok(systems)
}

/// `--shell [PLATFORM=]STORE-PATH`, for each platform.
pub(super) fn shells(texts: &[String], systems: &[System]) -> Result<BTreeMap<System, StorePath>, Failure> {
    let mut shells = BTreeMap::new();
    for text in texts {
        let (system, path) = shell(text, systems)?;
        if shells.insert(system, path).is_some() {
            return Err(Failure::usage(
                format!("two shells for {}", system.platform()),
                Some("name one: --shell /nix/store/...-bash-5.2".to_owned()),
            ));
        }
    }
    Ok(shells)
}

fn shell(text: &str, systems: &[System]) -> Result<(System, StorePath), Failure> {
    // A store path may have a "=" in its name.
    let (system, path) = match (text.split_once('='), systems) {
        (Some((platform, path)), _) if !platform.starts_with('/') => {
            let system: System = platform.parse().map_err(|error| Failure::usage(error, None))?;
            if !systems.contains(&system) {
                return Err(Failure::usage(
                    format!("a shell for {}, and no image for it", system.platform()),
                    Some(format!("ask for one: --platform {}", system.platform())),
                ));
            }
            (system, path)
        }
        (_, [only]) => (*only, text),
        _ => {
            return Err(Failure::usage(
                "a shell runs on one platform, and there are several",
                Some(
                    "name one for each: --shell linux/amd64=/nix/store/...-bash-5.2 --shell linux/arm64=...".to_owned(),
                ),
            ));
        }
    };
    let path = path.parse().map_err(|error: crate::nix::InvalidStorePath| {
        Failure::usage(error, Some("name a store path that has bin/bash: --shell /nix/store/...-bash-5.2".into()))
    })?;
    Ok((system, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const AMD64: System = System::X86_64Linux;
    const ARM64: System = System::Aarch64Linux;
    const BASH: &str = "/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-bash-5.2";

    fn shells_of(texts: &[&str], systems: &[System]) -> Option<Vec<System>> {
        let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
        Some(shells(&texts, systems).ok()?.into_keys().collect())
    }

    #[test]
    fn a_platform_counts_once_where_it_was_named_first() {
        assert_eq!(chosen(&[ARM64, AMD64, ARM64]).unwrap(), [ARM64, AMD64]);
        assert_eq!(chosen(&[]).ok(), System::of_machine(std::env::consts::ARCH).map(|system| vec![system]));
    }

    #[rstest]
    #[case("linux", "x86_64", Some(AMD64), Some(AMD64))]
    #[case("linux", "aarch64", Some(ARM64), Some(ARM64))]
    #[case("macos", "aarch64", None, Some(ARM64))]
    #[case("macos", "x86_64", None, Some(AMD64))]
    #[case("freebsd", "x86_64", None, Some(AMD64))]
    #[case("linux", "riscv64", None, None)]
    #[case("macos", "powerpc", None, None)]
    fn images_are_for_linux_wherever_they_are_made(
        #[case] os: &str,
        #[case] architecture: &str,
        #[case] here: Option<System>,
        #[case] by_default: Option<System>,
    ) {
        assert_eq!(system_of(os, architecture), here);
        assert_eq!(default_system(architecture), by_default);
    }

    #[test]
    fn a_shell_belongs_to_a_platform() {
        assert_eq!(shells_of(&[], &[AMD64, ARM64]), Some(vec![]));
        assert_eq!(shells_of(&[BASH], &[ARM64]), Some(vec![ARM64]));
        assert_eq!(shells_of(&[&format!("{BASH}=odd")], &[ARM64]), Some(vec![ARM64]));
        let of = |platform: &str| format!("{platform}={BASH}");
        assert_eq!(shells_of(&[&of("arm64"), &of("linux/amd64")], &[AMD64, ARM64]), Some(vec![AMD64, ARM64]));
        assert_eq!(shells_of(&[BASH], &[AMD64, ARM64]), None, "whose?");
        assert_eq!(shells_of(&[&of("arm64")], &[AMD64]), None, "no image for it");
        assert_eq!(shells_of(&[&of("arm64"), &of("arm64")], &[ARM64]), None, "two");
        assert_eq!(shells_of(&["arm64=bash"], &[ARM64]), None, "no store path");
    }
}
