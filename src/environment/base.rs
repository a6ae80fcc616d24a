//! What serves any image, where the closure happens to have it: bash, coreutils, certificates, locales, process-compose.

use std::collections::BTreeSet;

use super::Package;
use super::store_view::{Location, StoreView};
use crate::nix::{Closure, EntryKind, StorePath, WalkError};

/// The certificates' place in a store path (nixpkgs: `cacert`) and in the image.
pub(super) const CA_BUNDLE: &str = "etc/ssl/certs/ca-bundle.crt";
/// The locales' place in a store path (nixpkgs: `glibcLocales`).
pub(super) const LOCALE_ARCHIVE: &str = "lib/locale/locale-archive";
/// What runs services.
const PROCESS_COMPOSE: &str = "bin/process-compose";

/// The store paths of a closure that serve every environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Base {
    /// Has `bin/bash`.
    pub(super) bash: Option<StorePath>,
    /// Whether that has `bin/sh` too.
    pub(super) bash_has_sh: bool,
    /// Has `bin/env` and `bin/ls`.
    pub(super) coreutils: Option<StorePath>,
    /// Has [`CA_BUNDLE`].
    pub(super) certificates: Option<StorePath>,
    /// Has [`LOCALE_ARCHIVE`].
    pub(super) locales: Option<StorePath>,
    /// Has [`PROCESS_COMPOSE`].
    pub(super) process_compose: Option<StorePath>,
}

impl Base {
    /// Looks through the closure. Of several candidates the installed one is taken (best priority first), then one
    /// with the usual name (for bash the interactive one first), then any; among equals the first by name.
    /// `shell`, where given, is where bash comes from.
    pub(super) fn find(
        view: &StoreView<'_>,
        closure: &Closure,
        packages: &[Package],
        shell: Option<&StorePath>,
    ) -> Result<Self, WalkError> {
        let mut installed: Vec<&Package> = packages.iter().collect();
        installed.sort_by_key(|package| package.priority);
        let rank = |path: &StorePath, usual: &[&str]| {
            let installed = installed.iter().position(|package| package.path == *path);
            let usual = usual.iter().position(|prefix| path.name().starts_with(prefix));
            (installed.unwrap_or(usize::MAX), usual.unwrap_or(usize::MAX), path.clone())
        };
        let (mut bash, mut coreutils, mut certificates, mut locales, mut process_compose) =
            (None, None, None, None, None);
        look_ahead(view, closure)?;
        for path in closure.paths().map(|info| &info.path) {
            let has = Contents::read(view, path)?;
            let better = |best: &mut Option<_>, usual: &[&str]| {
                let rank = rank(path, usual);
                if best.as_ref().is_none_or(|best| rank < *best) {
                    *best = Some(rank);
                }
            };
            if has.bash && shell.is_none_or(|shell| shell == path) {
                better(&mut bash, &["bash-interactive-", "bash-"]);
            }
            if has.env && has.ls {
                better(&mut coreutils, &["coreutils-"]);
            }
            if has.certificates {
                better(&mut certificates, &["nss-cacert-"]);
            }
            if has.locales {
                better(&mut locales, &["glibc-locales-"]);
            }
            if has.process_compose {
                better(&mut process_compose, &["process-compose-"]);
            }
        }
        let path = |found: Option<(usize, usize, StorePath)>| found.map(|(_, _, path)| path);
        let bash = path(bash);
        let bash_has_sh = match &bash {
            Some(bash) => Contents::read(view, bash)?.sh,
            None => false,
        };
        Ok(Self {
            bash,
            bash_has_sh,
            coreutils: path(coreutils),
            certificates: path(certificates),
            locales: path(locales),
            process_compose: path(process_compose),
        })
    }

    /// The absolute path of bash.
    pub(super) fn bash_program(&self) -> Option<String> {
        self.bash.as_ref().map(|bash| format!("{bash}/bin/bash"))
    }

    /// The absolute path of process-compose.
    pub(super) fn process_compose_program(&self) -> Option<String> {
        self.process_compose.as_ref().map(|path| format!("{path}/{PROCESS_COMPOSE}"))
    }
}

/// What of interest one store path has.
#[derive(Debug, Default)]
struct Contents {
    bash: bool,
    sh: bool,
    env: bool,
    ls: bool,
    certificates: bool,
    locales: bool,
    process_compose: bool,
}

impl Contents {
    fn read(view: &StoreView<'_>, path: &StorePath) -> Result<Self, WalkError> {
        let mut seen = BTreeSet::new();
        for file in wanted(path) {
            let at = Location { store_path: path.clone(), rel: file.into() };
            if view.entry(&at)?.is_some_and(|kind| kind != EntryKind::Directory) {
                seen.insert(file);
            }
        }
        Ok(Self::of(&seen))
    }

    fn of(seen: &BTreeSet<&'static str>) -> Self {
        let has = |file| seen.contains(file);
        Self {
            bash: has("bin/bash"),
            sh: has("bin/sh"),
            env: has("bin/env"),
            ls: has("bin/ls"),
            certificates: has(CA_BUNDLE),
            locales: has(LOCALE_ARCHIVE),
            process_compose: has(PROCESS_COMPOSE),
        }
    }
}

/// The files that are looked for in a store path; for the archive only where it is called locales.
fn wanted(path: &StorePath) -> impl Iterator<Item = &'static str> {
    let files = ["bin/bash", "bin/sh", "bin/env", "bin/ls", PROCESS_COMPOSE, CA_BUNDLE];
    files.into_iter().chain(path.name().contains("locales").then_some(LOCALE_ARCHIVE))
}

/// Has listed what there is of the directories that lead to those files. It is no more than must be: most store paths have
/// neither `bin` nor `etc`.
fn look_ahead(view: &StoreView<'_>, closure: &Closure) -> Result<(), WalkError> {
    let mut directories: Vec<_> = closure.paths().map(|info| Location::root(&info.path)).collect();
    while !directories.is_empty() {
        view.read_ahead(directories.iter())?;
        let mut below = BTreeSet::new();
        for directory in &directories {
            for file in wanted(&directory.store_path) {
                below.extend(directory.next_towards(file.as_bytes()));
            }
        }
        directories.clear();
        for directory in below {
            if view.entry(&directory)? == Some(EntryKind::Directory) {
                directories.push(directory);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::rendered::tests::{Levels, Trees, store_path};
    use super::*;
    use crate::nix::Source;

    fn find(trees: &Trees, installed: &[&str], shell: Option<&str>) -> Base {
        let closure = Closure::compute(trees, trees.paths().cloned()).unwrap();
        let package =
            |(n, name): (usize, &&str)| Package { name: (*name).into(), path: store_path(name), priority: n as u64 };
        let packages: Vec<_> = installed.iter().enumerate().map(package).collect();
        let shell = shell.map(store_path);
        let find =
            |source: &dyn Source| Base::find(&StoreView::new(source), &closure, &packages, shell.as_ref()).unwrap();
        let base = find(trees);
        assert_eq!(find(&Levels::of(trees)), base);
        base
    }

    #[test]
    fn bash_is_the_installed_one_then_the_interactive_one_then_any() {
        let mut trees = Trees::default();
        trees.program("a-distribution", "bin/bash");
        assert_eq!(find(&trees, &[], None).bash, Some(store_path("a-distribution")));
        trees.program("bash-5.2", "bin/bash");
        assert_eq!(find(&trees, &[], None).bash, Some(store_path("bash-5.2")));
        trees.program("bash-interactive-5.2", "bin/bash").link("bash-interactive-5.2", "bin/sh", "bash");
        let base = find(&trees, &[], None);
        assert_eq!((base.bash, base.bash_has_sh), (Some(store_path("bash-interactive-5.2")), true));
        assert_eq!(find(&trees, &["bash-5.2"], None).bash, Some(store_path("bash-5.2")));
        assert_eq!(find(&trees, &["a-distribution", "bash-5.2"], None).bash, Some(store_path("a-distribution")));
        assert_eq!(find(&trees, &["bash-5.2"], Some("a-distribution")).bash, Some(store_path("a-distribution")));
    }

    #[test]
    fn what_is_found_is_known_by_its_files_not_its_name() {
        let mut trees = Trees::default();
        trees.directory("bash-doc", "share").file("a-script", "", "").directory("b", "bin/bash");
        trees.program("tools", "bin/env").program("tools", "bin/ls").program("half", "bin/env");
        trees.file("nss-cacert-3", "etc/ssl/certs/ca-bundle.crt", "").file("nss-cacert-3", "zzz", "");
        trees.file("glibc-locales-2", "lib/locale/locale-archive", "");
        let base = find(&trees, &[], None);
        assert_eq!(base.bash, None);
        assert_eq!(base.coreutils, Some(store_path("tools")));
        assert_eq!(base.certificates, Some(store_path("nss-cacert-3")));
        assert_eq!(base.locales, Some(store_path("glibc-locales-2")));
        assert_eq!(base.process_compose, None);
        trees
            .program("a-tool-that-wraps-it", "bin/process-compose")
            .program("process-compose-1", "bin/process-compose");
        let base = find(&trees, &[], None);
        assert_eq!(base.process_compose, Some(store_path("process-compose-1")));
        assert_eq!(base.locales, Some(store_path("glibc-locales-2")));
    }
}
