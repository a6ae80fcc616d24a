//! Nix's name for a kind of machine, and the OCI platform that it is.

use std::fmt;
use std::str::FromStr;

/// A system that packages are built for. Images run Linux only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum System {
    /// `x86_64-linux`, `linux/amd64`.
    X86_64Linux,
    /// `aarch64-linux`, `linux/arm64`.
    Aarch64Linux,
}

impl System {
    /// Nix's name, as lockfiles have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64Linux => "x86_64-linux",
            Self::Aarch64Linux => "aarch64-linux",
        }
    }

    /// OCI's `architecture` (Go's `GOARCH`).
    pub fn architecture(self) -> &'static str {
        match self {
            Self::X86_64Linux => "amd64",
            Self::Aarch64Linux => "arm64",
        }
    }

    /// The platform as runtimes spell it: `linux/arm64`.
    pub fn platform(self) -> &'static str {
        match self {
            Self::X86_64Linux => "linux/amd64",
            Self::Aarch64Linux => "linux/arm64",
        }
    }

    /// Whether a file is a program for the system: its ELF header says so.
    pub fn runs(self, program: &[u8]) -> bool {
        let machine: u16 = match self {
            Self::X86_64Linux => 0x3e,
            Self::Aarch64Linux => 0xb7,
        };
        program.starts_with(b"\x7fELF\x02\x01") && program.get(18..20) == Some(&machine.to_le_bytes())
    }

    /// The Linux system for an architecture as Rust names it (`std::env::consts::ARCH`), if images are made for it.
    pub fn of_machine(architecture: &str) -> Option<Self> {
        match architecture {
            "x86_64" => Some(Self::X86_64Linux),
            "aarch64" => Some(Self::Aarch64Linux),
            _ => None,
        }
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A platform that no image is made for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a platform that images are made for: linux/amd64 or linux/arm64")]
pub struct UnknownPlatform(String);

impl FromStr for System {
    type Err = UnknownPlatform;

    /// A platform as Docker reads it (containerd: platforms.Parse), or Nix's name.
    ///
    /// `linux/` may be left out. The variants that are the architecture itself, `arm64/v8` and `amd64/v1`, fall away; an
    /// image for any other would promise less than its packages need, or more than they give.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.to_ascii_lowercase();
        match name.strip_prefix("linux/").or(name.strip_suffix("-linux")).unwrap_or(&name) {
            "amd64" | "x86_64" | "x86-64" | "amd64/v1" | "x86_64/v1" => Ok(Self::X86_64Linux),
            "arm64" | "aarch64" | "arm64/v8" | "aarch64/v8" => Ok(Self::Aarch64Linux),
            _ => Err(UnknownPlatform(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("linux/amd64", System::X86_64Linux)]
    #[case("linux/arm64", System::Aarch64Linux)]
    #[case("linux/arm64/v8", System::Aarch64Linux)]
    #[case("linux/amd64/v1", System::X86_64Linux)]
    #[case("Linux/ARM64", System::Aarch64Linux)]
    #[case("arm64", System::Aarch64Linux)]
    #[case("aarch64", System::Aarch64Linux)]
    #[case("linux/x86_64", System::X86_64Linux)]
    #[case("x86_64-linux", System::X86_64Linux)]
    #[case("aarch64-linux", System::Aarch64Linux)]
    fn platforms_are_read_in_dockers_spellings_and_nixs(#[case] text: &str, #[case] system: System) {
        assert_eq!(text.parse(), Ok(system));
    }

    #[rstest]
    fn other_platforms_are_refused(
        #[values(
            "",
            "linux",
            "linux/",
            "windows/amd64",
            "darwin/arm64",
            "aarch64-darwin",
            "linux/arm/v7",
            "linux/arm64/v9",
            "linux/amd64/v3",
            "linux/riscv64",
            "linux/linux/arm64",
            " linux/arm64"
        )]
        text: &str,
    ) {
        let error = text.parse::<System>().unwrap_err().to_string();
        assert!(error.starts_with(&format!("'{text}' is not a platform")), "{error}");
    }

    #[test]
    fn every_name_of_a_system_is_read_as_that_system() {
        for system in [System::X86_64Linux, System::Aarch64Linux] {
            for name in [system.as_str(), system.platform(), system.architecture()] {
                assert_eq!(name.parse(), Ok(system));
            }
        }
    }

    #[test]
    fn a_program_runs_on_its_own_machine() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let systems = [System::X86_64Linux, System::Aarch64Linux];
        let running: Vec<_> = systems.into_iter().filter(|system| system.runs(&own)).collect();
        assert_eq!(running, Vec::from_iter(System::of_machine(std::env::consts::ARCH)));
        assert!(systems.iter().all(|system| !system.runs(b"#!/bin/sh\n") && !system.runs(b"\x7fELF\x02\x01")));
    }
}
