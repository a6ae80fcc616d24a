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

/// A system that no image is made for.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not a system that images are made for (x86_64-linux, aarch64-linux)")]
pub struct UnknownSystem(String);

impl FromStr for System {
    type Err = UnknownSystem;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "x86_64-linux" => Ok(Self::X86_64Linux),
            "aarch64-linux" => Ok(Self::Aarch64Linux),
            other => Err(UnknownSystem(other.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_runs_on_its_own_machine() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let systems = [System::X86_64Linux, System::Aarch64Linux];
        let running: Vec<_> = systems.into_iter().filter(|system| system.runs(&own)).collect();
        assert_eq!(running, Vec::from_iter(System::of_machine(std::env::consts::ARCH)));
        assert!(systems.iter().all(|system| !system.runs(b"#!/bin/sh\n") && !system.runs(b"\x7fELF\x02\x01")));
    }
}
