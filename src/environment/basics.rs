//! What Flox adds to every environment: bash, coreutils, certificates; and which of them a closure lacks.

use crate::nix::{Closure, StorePath};

/// Something that serves every environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Basic {
    /// Runs the activation.
    Bash,
    /// `env`, `ls` and the like.
    Coreutils,
    /// The certificates that Mozilla trusts.
    Certificates,
}

impl Basic {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Bash, Self::Coreutils, Self::Certificates];

    /// The attributes of nixpkgs that it may be, the best first: which names bash has depends on nixpkgs' age.
    pub fn attributes(self) -> &'static [&'static str] {
        match self {
            Self::Bash => &["bashInteractive", "bash"],
            Self::Coreutils => &["coreutils"],
            Self::Certificates => &["cacert"],
        }
    }

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Coreutils => "coreutils",
            Self::Certificates => "certificates",
        }
    }

    /// Those that no path of the closure has the name of. A `shell` that was named is a bash whatever its name.
    ///
    /// Names have to do: to look into paths that lie far away is to fetch them.
    pub fn lacking(closure: &Closure, shell: Option<&StorePath>) -> Vec<Self> {
        let has = |basic: Self| match basic {
            Self::Bash if shell.is_some() => true,
            _ => closure.paths().any(|info| basic.is_named(info.path.name())),
        };
        Self::ALL.into_iter().filter(|basic| !has(*basic)).collect()
    }

    /// Whether nixpkgs calls this one's main output so: `bash-interactive-5.3p15`, but not `bash-5.3p15-man` or
    /// `bash-completion-2.16`.
    fn is_named(self, name: &str) -> bool {
        let prefixes: &[&str] = match self {
            Self::Bash => &["bash-interactive-", "bash-"],
            Self::Coreutils => &["coreutils-full-", "coreutils-"],
            Self::Certificates => &["nss-cacert-"],
        };
        let is_version = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit()) && !rest.contains('-');
        prefixes.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(is_version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn main_outputs_are_told_from_others_and_from_namesakes() {
        for (basic, names) in [
            (Basic::Bash, &["bash-5.3p15", "bash-interactive-5.2p37"][..]),
            (Basic::Coreutils, &["coreutils-9.8", "coreutils-full-9.5"]),
            (Basic::Certificates, &["nss-cacert-3.115"]),
        ] {
            assert!(names.iter().all(|name| basic.is_named(name)), "{names:?}");
        }
        for name in
            ["bash-5.3p15-man", "bash-completion-2.16.0", "coreutils-9.8-info", "nss-cacert-3.115-p11kit", "nss"]
        {
            assert!(!Basic::ALL.iter().any(|basic| basic.is_named(name)), "{name}");
        }
    }
}
