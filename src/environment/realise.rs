//! An environment turned into the image's own layers, its entrypoint and its variables.

use std::collections::{BTreeMap, BTreeSet};

use super::activation::{Activation, BASHRC};
use super::base::Base;
use super::built_entry::BuiltEntry;
use super::forest::{Forest, ForestNode, Propagation};
use super::image_root::{self, ImageRoot};
use super::languages::Languages;
use super::rendered::{self, Nodes, Rendered, RenderedNode};
use super::services::{Service, ServicesError};
use super::store_view::{Location, Resolved, StoreView};
use super::supervision::Supervision;
use super::vars::{VarError, exports};
use super::{ActivateMode, ForestError, Manifest, Package};
use crate::nix::{Closure, EntryKind, InvalidStorePath, Source, StorePath, WalkError};
use crate::rootfs::RootFs;

/// What to make an image's own layers of.
#[derive(Clone, Copy)]
pub struct RealiseRequest<'a> {
    /// The environment's name.
    pub name: &'a str,
    /// The effective manifest.
    pub manifest: &'a Manifest,
    /// The lockfile's bytes, kept in the environment as `manifest.lock`.
    pub lockfile: Option<&'a [u8]>,
    /// What is installed for the image's system, the named outputs only.
    pub packages: &'a [Package],
    /// The environment as flox built it, to be used as it is. Without one, the environment is rendered here.
    pub built: Option<&'a StorePath>,
    /// Everything that the image will hold: the closure of `packages`, `built` and `shell`.
    pub closure: &'a Closure,
    /// Where the closure's files are.
    pub source: &'a dyn Source,
    /// How the environment is activated.
    pub mode: ActivateMode,
    /// The store path of the bash to use instead of one found in the closure (`--shell`). It has `bin/bash`.
    pub shell: Option<&'a StorePath>,
    /// The services that the image starts, by name; none for none.
    pub services: &'a BTreeMap<String, Service>,
}

/// An environment, ready to become an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realised {
    /// The links in the image's root, and the directories that lead to them. They are the same for another version of a
    /// package, bash and coreutils apart.
    pub links: RootFs,
    /// What lies above the links: accounts, `/tmp`, `/run`, and the store paths made here.
    pub own: RootFs,
    /// The store paths made here. They lie in `own` and in no source.
    pub generated: Vec<StorePath>,
    /// The image's `Entrypoint`: activates the environment, then becomes the command or a shell. Empty where nothing
    /// needs a shell and there is none: the command then runs directly, and a container without a command cannot
    /// start (Docker: "no command specified"), as there is nothing that it could sensibly run.
    pub entrypoint: Vec<String>,
    /// The image's `Cmd`, as the manifest has it; empty for none.
    pub cmd: Vec<String>,
    /// The image's `Env`, ordered by name: `PATH` and every variable whose value is known beforehand.
    pub env: Vec<(String, String)>,
}

/// An environment that cannot become an image.
#[derive(Debug, thiserror::Error)]
pub enum RealiseError {
    /// The packages do not go together.
    #[error(transparent)]
    Forest(#[from] ForestError),
    /// `[vars]` has something that bash could not take.
    #[error(transparent)]
    Vars(#[from] VarError),
    /// The services cannot be started.
    #[error(transparent)]
    Services(#[from] ServicesError),
    /// Something needs bash, and the closure has none.
    #[error("the environment has no bash, which {needs} needs")]
    NoShell {
        /// What needs it, as the manifest calls it.
        needs: &'static str,
        /// One in the Nix store that could be named, where somebody has looked.
        at_hand: Option<StorePath>,
    },
    /// The store path that was named as the shell has no `bin/bash`.
    #[error("'{shell}' has no bin/bash")]
    NotAShell {
        /// The store path.
        shell: StorePath,
    },
    /// The built environment has no activation of its own.
    #[error("'{env}' is not an environment that flox built: it has neither libexec/flox-activations nor activate")]
    NotActivatable {
        /// The store path.
        env: StorePath,
    },
    /// A store path could not be read.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// No name for a store path made here.
    #[error(transparent)]
    StorePath(#[from] InvalidStorePath),
}

impl RealiseError {
    /// The error with a shell to name, where one is wanted.
    pub fn with_shell(self, find: impl FnOnce() -> Option<StorePath>) -> Self {
        match self {
            Self::NoShell { needs, at_hand: None } => Self::NoShell { needs, at_hand: find() },
            other => other,
        }
    }

    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Forest(error) => error.hint(),
            Self::Services(error) => Some(error.hint()),
            Self::Vars(_) => Some("change it: flox edit".to_owned()),
            Self::NoShell { at_hand: Some(shell), .. } => {
                Some(format!("add one: flox install bash; or take the one in the Nix store here: --shell {shell}"))
            }
            Self::NoShell { at_hand: None, .. } => Some(
                "add one: flox install bash; or name one in the Nix store: --shell /nix/store/...-bash-...".to_owned(),
            ),
            Self::NotAShell { .. } => {
                Some("--shell takes the store path of a bash: /nix/store/...-bash-...".to_owned())
            }
            Self::NotActivatable { .. } => Some("build it again: flox activate -- true".to_owned()),
            Self::Walk(_) | Self::StorePath(_) => None,
        }
    }
}

/// Makes an environment ready to become an image.
pub fn realise(request: &RealiseRequest<'_>) -> Result<Realised, RealiseError> {
    // Known to be wrong whether or not a shell will ever read them.
    exports(&request.manifest.vars)?;
    let view = StoreView::new(request.source);
    let base = Base::find(&view, request.closure, request.packages, request.shell)?;
    if let (Some(shell), None) = (request.shell, &base.bash) {
        return Err(RealiseError::NotAShell { shell: shell.clone() });
    }
    let programs = Programs::of(&base, request.services)?;
    match request.built {
        Some(env) => use_built(request, &view, &base, &programs, env),
        None => render(request, &view, &base, &programs),
    }
}

/// The programs that are named in scripts, by their absolute paths.
struct Programs {
    bash: Option<String>,
    process_compose: Option<String>,
}

impl Programs {
    fn of(base: &Base, services: &BTreeMap<String, Service>) -> Result<Self, RealiseError> {
        let programs = Self { bash: base.bash_program(), process_compose: base.process_compose_program() };
        if services.is_empty() {
            return Ok(programs);
        }
        if programs.process_compose.is_none() {
            return Err(ServicesError::NoProcessCompose { services: services.keys().cloned().collect() }.into());
        }
        if programs.bash.is_none() {
            return Err(RealiseError::NoShell { needs: "services", at_hand: None });
        }
        Ok(programs)
    }

    fn supervision<'a>(&'a self, request: &RealiseRequest<'a>) -> Option<Supervision<'a>> {
        match (&self.bash, &self.process_compose) {
            (Some(bash), Some(process_compose)) if !request.services.is_empty() => Some(Supervision {
                services: request.services,
                bash,
                process_compose,
                stop_signal: request.manifest.containerize.stop_signal.as_deref(),
            }),
            _ => None,
        }
    }
}

/// Renders the environment: a forest of links and the files that activate it.
fn render(
    request: &RealiseRequest<'_>,
    view: &StoreView<'_>,
    base: &Base,
    programs: &Programs,
) -> Result<Realised, RealiseError> {
    let propagation = match request.mode {
        ActivateMode::Dev => Propagation::BuildInputs,
        ActivateMode::Run => Propagation::UserEnvironment,
    };
    let real = BTreeSet::from([b"activate.d".to_vec()]);
    let links = link_nodes(&Forest::plant(view, request.packages, propagation, &real)?);
    let name = store_name(request.name);
    let (profile_d, languages) = look_into(view, &rendered::stand_in(&name)?, &links)?;
    let activation = Activation {
        name: request.name,
        manifest: request.manifest,
        mode: request.mode,
        base,
        profile_d: &profile_d,
        languages: &languages,
        supervision: programs.supervision(request),
    };
    let bash = &programs.bash;
    if let (None, Some(needs)) = (bash, activation.needs_shell()) {
        return Err(RealiseError::NoShell { needs, at_hand: None });
    }
    let rendered = Rendered::new(&name, links, |env| {
        let mut nodes = Nodes::new();
        let mut put = |path: &str, executable: bool, contents: Vec<u8>| {
            nodes.insert(path.as_bytes().to_vec(), RenderedNode::File { executable, contents });
        };
        if let Some(lockfile) = request.lockfile {
            put("manifest.lock", false, lockfile.to_vec());
        }
        if let Some(bash) = bash {
            for (path, executable, text) in activation.files(&env.to_string(), bash)? {
                put(path, executable, text.into_bytes());
            }
            nodes.insert(b"activate.d".to_vec(), RenderedNode::Directory);
        }
        Ok::<_, RealiseError>(nodes)
    })?;
    let env = rendered.path.to_string();
    view.add(&rendered.path, rendered.listing());
    let ImageRoot { links, mut own } = image_root::make(view, &rendered.path, base, &request.manifest.containerize)?;
    rendered.put(&mut own);
    Ok(Realised {
        links,
        own,
        generated: vec![rendered.path],
        entrypoint: if bash.is_some() { vec![format!("{env}/activate")] } else { Vec::new() },
        cmd: command(request.manifest),
        env: activation.image_env(&env).into_iter().collect(),
    })
}

/// Uses an environment that flox built.
fn use_built(
    request: &RealiseRequest<'_>,
    view: &StoreView<'_>,
    base: &Base,
    programs: &Programs,
    env: &StorePath,
) -> Result<Realised, RealiseError> {
    let Some(bash) = &programs.bash else {
        return Err(RealiseError::NoShell { needs: "its activation", at_hand: None });
    };
    let Some(entry) = BuiltEntry::of(view, env, request.name, request.mode, bash)? else {
        return Err(RealiseError::NotActivatable { env: env.clone() });
    };
    let activation = Activation {
        name: request.name,
        manifest: request.manifest,
        mode: request.mode,
        base,
        profile_d: &[],
        languages: &Languages::default(),
        supervision: None,
    };
    let mut variables = activation.image_env_of_built(&env.to_string());
    variables.extend(entry.variables(env, bash));
    let ImageRoot { links, mut own } = image_root::make(view, env, base, &request.manifest.containerize)?;
    let mut generated = match &entry {
        BuiltEntry::Program(data) => {
            data.put(&mut own);
            vec![data.path.clone()]
        }
        BuiltEntry::Script => Vec::new(),
    };
    let mut entrypoint = entry.entrypoint(env);
    // Flox's activation starts services only for an environment that lies on a disk, with flox's own process-compose:
    // here they are started by the command that it is given.
    if let Some(supervision) = programs.supervision(request) {
        let program = supervision.program(BASHRC)?;
        program.put(&mut own);
        entrypoint.push(format!("{}/bin/with-services", program.path));
        generated.push(program.path);
    }
    let (cmd, env) = (command(request.manifest), variables.into_iter().collect());
    Ok(Realised { links, own, generated, entrypoint, cmd, env })
}

fn command(manifest: &Manifest) -> Vec<String> {
    manifest.containerize.cmd.clone().unwrap_or_default()
}

fn link_nodes(forest: &Forest) -> Nodes {
    let nodes = forest.iter().map(|(path, node)| {
        let node = match node {
            ForestNode::Directory => RenderedNode::Directory,
            ForestNode::Link(target) => RenderedNode::Symlink(target.clone()),
        };
        (path.to_vec(), node)
    });
    std::iter::once((Vec::new(), RenderedNode::Directory)).chain(nodes).collect()
}

/// What the links of an environment lead to that its activation is concerned with: the names of the files
/// `etc/profile.d/*.sh` in byte order, and languages.
fn look_into(view: &StoreView<'_>, env: &StorePath, links: &Nodes) -> Result<(Vec<String>, Languages), RealiseError> {
    view.add(env, rendered::listing(links));
    Ok((profile_scripts(view, env)?, Languages::of(view, &Location::root(env))?))
}

fn profile_scripts(view: &StoreView<'_>, env: &StorePath) -> Result<Vec<String>, RealiseError> {
    let directory = Location::root(env).child(b"etc").child(b"profile.d");
    let Resolved::Directory(directory) = view.resolve(&directory)? else { return Ok(Vec::new()) };
    let mut scripts = Vec::new();
    for (name, kind) in view.children(&directory)?.iter() {
        let is_file = match kind {
            EntryKind::Directory => false,
            EntryKind::Regular => true,
            EntryKind::Symlink(_) => matches!(view.resolve(&directory.child(name))?, Resolved::File(_)),
        };
        if let Ok(name) = std::str::from_utf8(name)
            && name.ends_with(".sh")
            && is_file
        {
            scripts.push(name.to_owned());
        }
    }
    Ok(scripts)
}

/// `environment-<name>` with only the characters that a store path can have.
fn store_name(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+-._?=".contains(c);
    let name: String = name.chars().take(180).map(|c| if allowed(c) { c } else { '-' }).collect();
    format!("environment-{name}")
}

#[cfg(test)]
#[path = "realise_tests.rs"]
mod tests;
