//! The activation of a rendered environment: its script, and the variables that hold before anything runs.
//!
//! `activate` is the image's entrypoint. In this order it
//! 1. sets the environment's own variables and, in mode `dev`, those of the languages that it has (`languages`), then
//!    sources the packages' `etc/profile.d/*.sh`;
//! 2. sources `activate.d/envrc`: `[vars]`, in dependency order;
//! 3. sources `activate.d/hook-on-activate`, standard output sent to standard error. `exit` and `exec` there are
//!    errors, and so is a hook that fails: `return` with a status, `set -e`, a syntax error. What its last command
//!    says does not matter, as in flox;
//! 4. where the image starts services, sources `activate.d/services` (`supervision`): what follows is then a child, ended
//!    by the signals that come, and the services are stopped after it. Without arguments and with nothing to read
//!    commands from, the services are all that runs;
//! 5. without arguments, becomes bash, which sources `activate.d/bashrc`: the prompt, then `profile.common` and
//!    `profile.bash`. Where standard input is no terminal, that bash reads commands from it;
//! 6. with arguments, sources the two profile scripts, as `flox activate -- COMMAND` does, expands the arguments and
//!    becomes the command: the same process, with its own standard input, so that signals reach it.
//!
//! In an argument `$NAME` and `${NAME}` become the variable's value, empty where it is unset. Nothing else is special:
//! no command runs (`$(...)` and backticks stay as they are), `$1` and a lone `$` stay, nothing is split or globbed.
//! `\$NAME` gives `$NAME`. The script after a shell's `-c` is left alone: that shell expands it itself.
//!
//! What runs before the command reads from the terminal or, where standard input is none, from `/dev/null`: the input
//! is the command's alone.
//!
//! The scripts use builtins only, write nothing, and need no rights: the root file system may be read-only and the
//! user any.

use std::collections::BTreeMap;

use super::base::{Base, CA_BUNDLE, LOCALE_ARCHIVE};
use super::languages::Languages;
use super::supervision::Supervision;
use super::vars::{VarError, evaluate_all, exports, single_quoted};
use super::{ActivateMode, Manifest};

/// `PATH` behind the environment's own directories: what Docker gives to an image that says nothing. `/bin` is the
/// image's own, with bash and coreutils.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const ACTIVATE: &str = include_str!("activate.bash");
/// The beginning of every shell in the environment.
pub(super) const BASHRC: &str = include_str!("bashrc.bash");
const SERVICES: &str = "activate.d/services";
/// Where flox has it, too.
const SERVICE_CONFIG: &str = "service-config.yaml";

/// What the activation of one environment depends on.
pub(super) struct Activation<'a> {
    /// The environment's name.
    pub(super) name: &'a str,
    pub(super) manifest: &'a Manifest,
    pub(super) mode: ActivateMode,
    pub(super) base: &'a Base,
    /// The names of the files `etc/profile.d/*.sh` that the packages have, in byte order.
    pub(super) profile_d: &'a [String],
    /// The languages that the packages bring; they matter in mode `dev`.
    pub(super) languages: &'a Languages,
    /// The services that the activation starts, if any.
    pub(super) supervision: Option<Supervision<'a>>,
}

impl Activation<'_> {
    /// Whether there is something that only a shell can do: a hook, a profile, a variable whose value bash must find.
    /// Names the first such thing as the manifest does.
    pub(super) fn needs_shell(&self) -> Option<&'static str> {
        let written = |script: &Option<String>| script.as_ref().is_some_and(|script| !script.trim().is_empty());
        if written(&self.manifest.on_activate) {
            return Some("hook.on-activate");
        }
        if written(&self.manifest.profile_common) {
            return Some("profile.common");
        }
        if written(&self.manifest.profile_bash) {
            return Some("profile.bash");
        }
        if self.mode == ActivateMode::Dev && !self.profile_d.is_empty() {
            return Some("etc/profile.d");
        }
        let mut known = self.own_variables("");
        (!evaluate_all(&self.manifest.vars, &mut known).is_empty()).then_some("vars")
    }

    /// The variables that the activation sets, without `[vars]`, in an environment at `env`.
    pub(super) fn own_variables(&self, env: &str) -> BTreeMap<String, String> {
        let mut variables: BTreeMap<String, String> = [
            ("FLOX_ENV", env.to_owned()),
            ("FLOX_ENV_CACHE", "/tmp".to_owned()),
            ("FLOX_ENV_DESCRIPTION", self.name.to_owned()),
            ("FLOX_ENV_DIRS", env.to_owned()),
            ("FLOX_PROMPT_ENVIRONMENTS", "floxenv".to_owned()),
            ("INFOPATH", format!("{env}/share/info:")),
            ("MANPATH", format!("{env}/share/man:")),
            ("PATH", format!("{env}/bin:{env}/sbin:{DEFAULT_PATH}")),
            ("XDG_DATA_DIRS", format!("{env}/share")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        if self.mode == ActivateMode::Dev {
            variables.insert("ACLOCAL_PATH".to_owned(), format!("{env}/share/aclocal"));
            variables.insert("CPATH".to_owned(), format!("{env}/include"));
            variables.insert("LIBRARY_PATH".to_owned(), format!("{env}/lib"));
            variables.insert("PKG_CONFIG_PATH".to_owned(), format!("{env}/lib/pkgconfig:{env}/share/pkgconfig"));
            let languages = self.languages.variables(env);
            variables.extend(languages.into_iter().map(|(name, _, value)| (name.to_owned(), value)));
        }
        variables.extend(self.defaults().into_iter().map(|(name, value)| (name.to_owned(), value)));
        variables
    }

    /// The variables that are set only where they are unset.
    fn defaults(&self) -> Vec<(&'static str, String)> {
        let mut defaults = Vec::new();
        if self.base.certificates.is_some() {
            // The image's path, where other certificates can be mounted, not the store's.
            defaults.push(("SSL_CERT_FILE", format!("/{CA_BUNDLE}")));
            defaults.push(("NIX_SSL_CERT_FILE", format!("/{CA_BUNDLE}")));
        }
        if let Some(locales) = &self.base.locales {
            defaults.push(("LOCALE_ARCHIVE", format!("{locales}/{LOCALE_ARCHIVE}")));
        }
        defaults
    }

    /// The image's `Env`: the environment's own variables and every one of `[vars]` whose value follows from them.
    pub(super) fn image_env(&self, env: &str) -> BTreeMap<String, String> {
        let own = self.own_variables(env);
        let mut known = own.clone();
        let dynamic = evaluate_all(&self.manifest.vars, &mut known);
        // A variable of the environment's own that [vars] change in a way that only bash can know is still better
        // than none: nobody wants to be without PATH.
        for name in dynamic {
            if let Some(value) = own.get(&name) {
                known.insert(name, value.clone());
            }
        }
        known
    }

    /// The same for an environment that flox built: its own activation adds to most lists without looking whether it
    /// did so before, hence only those are here that it does look at, as they are before `[vars]`.
    pub(super) fn image_env_of_built(&self, env: &str) -> BTreeMap<String, String> {
        let own = self.own_variables(env);
        let mut known = own.clone();
        evaluate_all(&self.manifest.vars, &mut known);
        known.extend(own);
        for list in ["INFOPATH", "XDG_DATA_DIRS", "ACLOCAL_PATH", "CPATH", "LIBRARY_PATH", "PKG_CONFIG_PATH"] {
            known.remove(list);
        }
        known
    }

    /// The files of the environment at `env` that activate it with the bash at `bash`, by relative path, each with
    /// whether it is executable.
    pub(super) fn files(&self, env: &str, bash: &str) -> Result<Vec<(&'static str, bool, String)>, VarError> {
        let mode = match self.mode {
            ActivateMode::Dev => "dev",
            ActivateMode::Run => "run",
        };
        let profile_d: Vec<String> = match self.mode {
            ActivateMode::Dev => {
                self.profile_d.iter().map(|file| single_quoted(&format!("{env}/etc/profile.d/{file}"))).collect()
            }
            ActivateMode::Run => Vec::new(),
        };
        let languages = match self.mode {
            ActivateMode::Dev => self.languages.script(env),
            ActivateMode::Run => String::new(),
        };
        let (services, shell, beside) = match self.supervision {
            Some(_) => {
                (format!("source {env}/{SERVICES}\n\n"), "_flox_shell_beside_services", "_flox_beside_services ")
            }
            None => (String::new(), "exec", ""),
        };
        let mut activate = ACTIVATE.to_owned();
        for (placeholder, text) in [
            ("@languages@", languages.as_str()),
            ("@services@", services.as_str()),
            ("@shell@", shell),
            ("@beside@", beside),
            ("@bash@", bash),
            ("@env@", env),
            ("@mode@", mode),
            ("@profile_d@", &profile_d.join(" ")),
            ("@restore@", &self.restore(env)),
            // The last, for it is the one text that could hold another placeholder.
            ("@name@", &single_quoted(&self.name.replace('\n', " "))),
        ] {
            activate = activate.replace(placeholder, text);
        }
        let mut envrc = String::new();
        for (name, value) in self.defaults() {
            // A certificate file that the user names serves both.
            let value = if name == "NIX_SSL_CERT_FILE" { "$SSL_CERT_FILE".to_owned() } else { value };
            envrc.push_str(&format!("export {name}=\"${{{name}:-{value}}}\"\n"));
        }
        envrc.push_str(&exports(&self.manifest.vars)?);
        let mut files = vec![
            ("activate", true, activate),
            ("activate.d/bashrc", false, BASHRC.to_owned()),
            ("activate.d/envrc", false, envrc),
        ];
        // Only `return` and what ends the shell make a hook fail, not the last thing that it tries. The empty line is
        // for a script that ends in a backslash.
        let hook = self.manifest.on_activate.as_ref().map(|script| format!("{}\n\nreturn 0\n", outdented(script)));
        let profile = |script: &Option<String>| script.as_ref().map(|script| format!("{}\n", outdented(script)));
        for (path, script) in [
            ("activate.d/hook-on-activate", hook),
            ("activate.d/profile-common", profile(&self.manifest.profile_common)),
            ("activate.d/profile-bash", profile(&self.manifest.profile_bash)),
        ] {
            files.extend(script.map(|script| (path, false, script)));
        }
        if let Some(supervision) = &self.supervision {
            files.push((SERVICES, false, supervision.script(&format!("{env}/{SERVICE_CONFIG}"))));
            files.push((SERVICE_CONFIG, false, supervision.config()));
        }
        Ok(files)
    }

    /// Lines of shell that make an activation on top of the image's `Env` the same as one on nothing: where `[vars]`
    /// change one of the environment's own lists (`PATH = "/opt/bin:$PATH"`), they must not change it a second time.
    fn restore(&self, env: &str) -> String {
        let own = self.own_variables(env);
        let image = self.image_env(env);
        let changed = own.iter().filter(|(name, value)| image.get(*name).is_some_and(|image| image != *value));
        changed
            .map(|(name, value)| {
                let image = single_quoted(&image[name]);
                format!("[[ ${{{name}-}} != {image} ]] || export {name}={}\n", single_quoted(value))
            })
            .collect()
    }
}

/// A script without the spaces that all its lines begin with, as flox takes them off: the end of a here-document,
/// indented in the manifest, is then where bash looks for it.
fn outdented(script: &str) -> String {
    let depth = |line: &str| line.len() - line.trim_start_matches(' ').len();
    let common = script.lines().filter(|line| !line.trim().is_empty()).map(depth).min().unwrap_or(0);
    let lines: Vec<&str> = script.split('\n').map(|line| &line[common.min(depth(line))..]).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::rendered::tests::store_path;
    use super::*;

    fn manifest(vars: &[(&str, &str)]) -> Manifest {
        let vars = vars.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Manifest { vars, ..Manifest::default() }
    }

    fn activation<'a>(manifest: &'a Manifest, mode: ActivateMode, base: &'a Base) -> Activation<'a> {
        static NONE: std::sync::LazyLock<Languages> = std::sync::LazyLock::new(Languages::default);
        Activation { name: "demo", manifest, mode, base, profile_d: &[], languages: &NONE, supervision: None }
    }

    fn show(variables: &BTreeMap<String, String>) -> String {
        variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    }

    #[test]
    fn the_image_has_every_variable_that_needs_no_shell() {
        let manifest = manifest(&[
            ("PORT", "8080"),
            ("URL", "http://localhost:${PORT}/"),
            ("PATH", "$FLOX_ENV/extra:$PATH"),
            ("NOW", "$(date)"),
            ("CACHE", "${XDG_CACHE_HOME:-/tmp}/x"),
        ]);
        let base =
            Base { certificates: Some(store_path("cacert")), locales: Some(store_path("locales")), ..Base::default() };
        let env = activation(&manifest, ActivateMode::Dev, &base).image_env("/E");
        insta::assert_snapshot!(show(&env).replace(&store_path("locales").to_string(), "/L"), @r"
        ACLOCAL_PATH=/E/share/aclocal
        CPATH=/E/include
        FLOX_ENV=/E
        FLOX_ENV_CACHE=/tmp
        FLOX_ENV_DESCRIPTION=demo
        FLOX_ENV_DIRS=/E
        FLOX_PROMPT_ENVIRONMENTS=floxenv
        INFOPATH=/E/share/info:
        LIBRARY_PATH=/E/lib
        LOCALE_ARCHIVE=/L/lib/locale/locale-archive
        MANPATH=/E/share/man:
        NIX_SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt
        PATH=/E/extra:/E/bin:/E/sbin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        PKG_CONFIG_PATH=/E/lib/pkgconfig:/E/share/pkgconfig
        PORT=8080
        SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt
        URL=http://localhost:8080/
        XDG_DATA_DIRS=/E/share
        ");
    }

    #[test]
    fn run_mode_has_only_the_search_paths_of_programs() {
        let (manifest, base) = (manifest(&[]), Base::default());
        let env = activation(&manifest, ActivateMode::Run, &base).image_env("/E");
        for name in ["CPATH", "LIBRARY_PATH", "PKG_CONFIG_PATH", "ACLOCAL_PATH", "SSL_CERT_FILE", "LOCALE_ARCHIVE"] {
            assert!(!env.contains_key(name), "{name}");
        }
        assert!(env.contains_key("XDG_DATA_DIRS"));
    }

    #[test]
    fn path_is_there_even_where_only_bash_knows_its_value() {
        let (manifest, base) = (manifest(&[("PATH", "$HOME/bin:$PATH")]), Base::default());
        let activation = activation(&manifest, ActivateMode::Run, &base);
        assert!(activation.image_env("/E")["PATH"].starts_with("/E/bin:"));
        assert_eq!(activation.needs_shell(), Some("vars"));
    }

    #[test]
    fn what_needs_a_shell_is_named() {
        let base = Base::default();
        let needs = |manifest: Manifest, mode, profile_d: &[String]| {
            Activation { profile_d, ..activation(&manifest, mode, &base) }.needs_shell()
        };
        let script = || Some("true".to_owned());
        let scripts = ["x.sh".to_owned()];
        assert_eq!(needs(manifest(&[("A", "b"), ("C", "$A")]), ActivateMode::Dev, &[]), None);
        assert_eq!(needs(manifest(&[("A", "$HOME")]), ActivateMode::Dev, &[]), Some("vars"));
        assert_eq!(needs(manifest(&[]), ActivateMode::Dev, &scripts), Some("etc/profile.d"));
        assert_eq!(needs(manifest(&[]), ActivateMode::Run, &scripts), None);
        let hook = Manifest { on_activate: script(), ..Manifest::default() };
        assert_eq!(needs(hook, ActivateMode::Run, &[]), Some("hook.on-activate"));
        let empty = Manifest { on_activate: Some("\n".to_owned()), ..Manifest::default() };
        assert_eq!(needs(empty, ActivateMode::Run, &[]), None);
        let common = Manifest { profile_common: script(), ..Manifest::default() };
        assert_eq!(needs(common, ActivateMode::Run, &[]), Some("profile.common"));
        let bash = Manifest { profile_bash: script(), ..Manifest::default() };
        assert_eq!(needs(bash, ActivateMode::Run, &[]), Some("profile.bash"));
    }

    #[test]
    fn no_placeholder_is_left_in_the_script() {
        let (manifest, base) = (manifest(&[]), Base::default());
        let mut activation = activation(&manifest, ActivateMode::Dev, &base);
        activation.name = "it's @env@\nnice";
        let files = activation.files("/E", "/B/bin/bash").unwrap();
        let (path, executable, script) = &files[0];
        assert_eq!((*path, *executable), ("activate", true));
        assert!(script.starts_with("#!/B/bin/bash\n"));
        assert!(script.contains(r"export FLOX_ENV_DESCRIPTION='it'\''s @env@ nice'"), "{script}");
        let own = script.matches("$@").count() + script.matches("[@]").count();
        // The name stands in a comment and in a variable, and is all that is left of that shape.
        assert_eq!(script.matches('@').count(), own + 2 * 2, "{script}");
    }

    #[test]
    fn the_indentation_that_all_lines_have_is_taken_off() {
        assert_eq!(outdented("    cat <<X\n      a\n\n    X\n"), "cat <<X\n  a\n\nX\n");
        assert_eq!(outdented("a\n  b"), "a\n  b");
        assert_eq!(outdented("\n   \n    a\n\tb"), "\n   \n    a\n\tb", "a tab is no space");
    }
}
