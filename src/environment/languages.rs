//! What flox's activation sets in mode `dev` for the languages that an environment has: where compilers, interpreters
//! and build tools look for the rest of them (flox: `etc/profile.d/05*.sh` of every environment that it builds).
//!
//! Left out is what only flox's own programs can do: `LD_AUDIT`, which names a library of flox, and `PIP_CONFIG_FILE`,
//! a file that it writes beside the environment, where a container's user could not.

use super::store_view::{Location, Resolved, StoreView};
use crate::nix::WalkError;

/// The languages of an environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Languages {
    cmake: bool,
    java: bool,
    jupyter: bool,
    /// `3.12`.
    python: Option<String>,
    rust_sources: bool,
}

/// How a variable is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// To this and nothing else.
    To,
    /// To this before what it was, as a list with colons.
    Before,
    /// To this behind what it was.
    Behind,
}

impl Languages {
    /// Looks into the environment at `env`.
    pub(super) fn of(view: &StoreView<'_>, env: &Location) -> Result<Self, WalkError> {
        let resolve = |path: &str| {
            let at = path.split('/').fold(env.clone(), |at, name| at.child(name.as_bytes()));
            view.resolve(&at)
        };
        let file = |path: &str| Ok::<_, WalkError>(matches!(resolve(path)?, Resolved::File(_)));
        let directory = |path: &str| Ok::<_, WalkError>(matches!(resolve(path)?, Resolved::Directory(_)));
        Ok(Self {
            cmake: file("bin/cmake")?,
            java: file("bin/java")?,
            jupyter: directory("share/jupyter")?,
            python: match resolve("bin/python3")? {
                Resolved::File(program) => python_version(view, &program)?,
                Resolved::Directory(_) | Resolved::Nowhere(_) => None,
            },
            rust_sources: directory("rustc-std-workspace-std")?,
        })
    }

    /// The variables for an environment at `env`.
    pub(super) fn variables(&self, env: &str) -> Vec<(&'static str, Setting, String)> {
        let python = self.python.as_ref().map(|version| format!("{env}/lib/python{version}/site-packages"));
        let all = [
            ("PYTHONPATH", Setting::Behind, python),
            ("RUST_SRC_PATH", Setting::To, self.rust_sources.then(|| env.to_owned())),
            ("JUPYTER_PATH", Setting::Before, self.jupyter.then(|| format!("{env}/share/jupyter"))),
            ("JAVA_HOME", Setting::To, self.java.then(|| env.to_owned())),
            ("CMAKE_PREFIX_PATH", Setting::To, self.cmake.then(|| env.to_owned())),
        ];
        all.into_iter().filter_map(|(name, setting, value)| Some((name, setting, value?))).collect()
    }

    /// The lines of the activation that set them.
    pub(super) fn script(&self, env: &str) -> String {
        let line = |(name, setting, value): (&str, Setting, String)| match setting {
            Setting::To => format!("export {name}={value}\n"),
            Setting::Before => format!("_flox_prepend {name} {value}\n"),
            Setting::Behind => {
                format!("[[ :${{{name}-}}: == *:{value}:* ]] || export {name}=\"${{{name}:+${name}:}}{value}\"\n")
            }
        };
        self.variables(env).into_iter().map(line).collect()
    }
}

/// The version of the Python that `bin/python3` leads to, without running it: from the program's own name, or, where
/// that is a wrapper, from the one name with a version beside it.
fn python_version(view: &StoreView<'_>, program: &Location) -> Result<Option<String>, WalkError> {
    let (directory, name) = match program.rel.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&program.rel[..slash], &program.rel[slash + 1..]),
        None => (&[][..], program.rel.as_slice()),
    };
    if let Some(version) = version_in(name) {
        return Ok(Some(version));
    }
    let directory = Location { store_path: program.store_path.clone(), rel: directory.to_vec() };
    let beside = view.children(&directory)?;
    let mut versions: Vec<String> = beside.iter().filter_map(|(name, _)| version_in(name)).collect();
    versions.dedup();
    let single = versions.len() == 1;
    Ok(versions.pop().filter(|_| single))
}

/// `3.12` in `python3.12`.
fn version_in(name: &[u8]) -> Option<String> {
    let version = std::str::from_utf8(name).ok()?.strip_prefix("python")?;
    let minor = version.strip_prefix("3.")?;
    (!minor.is_empty() && minor.bytes().all(|byte| byte.is_ascii_digit())).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::rendered::tests::{Trees, store_path};
    use super::*;

    fn variables(trees: &Trees) -> String {
        let languages = Languages::of(&StoreView::new(trees), &Location::root(&store_path("env"))).unwrap();
        let line = |(name, _, value): (&str, _, String)| format!("{name}={value}\n");
        languages.variables("/E").into_iter().map(line).collect()
    }

    #[test]
    fn each_language_has_its_variable_and_none_has_none() {
        let mut trees = Trees::default();
        trees.file("env", "include/x.h", "");
        assert_eq!(variables(&trees), "");
        trees.program("env", "bin/java").program("env", "bin/cmake").file("env", "share/jupyter/kernels", "");
        trees.file("env", "rustc-std-workspace-std/lib.rs", "");
        trees.program("python", "bin/python3.12").link("python", "bin/python3", "python3.12");
        trees.link("env", "bin/python3", &format!("{}/bin/python3", store_path("python")));
        insta::assert_snapshot!(variables(&trees), @r"
        PYTHONPATH=/E/lib/python3.12/site-packages
        RUST_SRC_PATH=/E
        JUPYTER_PATH=/E/share/jupyter
        JAVA_HOME=/E
        CMAKE_PREFIX_PATH=/E
        ");
    }

    #[test]
    fn the_version_of_a_python_that_is_wrapped_is_that_of_its_neighbour() {
        let mut trees = Trees::default();
        trees.program("env", "bin/python3").program("env", "bin/python3.11").program("env", "bin/python3.11-config");
        assert_eq!(variables(&trees), "PYTHONPATH=/E/lib/python3.11/site-packages\n");
        trees.program("env", "bin/python3.12");
        assert_eq!(variables(&trees), "", "which of the two cannot be told");
    }
}
