//! The command line's definition: what is parsed, what `--help`, the manual page and the completions say.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};

use super::size;
use crate::containerize::Previous;
use crate::environment::{ActivateMode, RemoteName, System};
use crate::pack::Compression;
use crate::plan;
use crate::registry::Reference;

/// Export Flox and Nix environments as OCI container images, and do it again almost for free
///
/// Layers are made once and remembered: a second run makes only what has changed.
#[derive(Debug, Parser)]
#[command(name = "layerhold", version, propagate_version = false, disable_help_subcommand = true)]
#[command(arg_required_else_help = true, max_term_width = 100)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) general: General,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What stands before a command or behind it; help lists it behind the command's own options.
#[derive(Args, Debug)]
pub(super) struct General {
    /// Say more; repeat for more detail
    #[arg(short, long, global = true, display_order = 100, action = ArgAction::Count)]
    pub(super) verbose: u8,
    /// Say nothing but errors
    #[arg(short, long, global = true, display_order = 101, conflicts_with = "verbose")]
    pub(super) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Export an environment as a container image
    ///
    /// The image goes to a file, to standard output, into an image layout or into a container runtime. Running it is
    /// like `flox activate`: with a terminal a shell with all packages and variables, with a command that command
    /// inside the activation.
    #[command(after_long_help = EXAMPLES)]
    Containerize(Box<Containerize>),
    /// Push an image that was made before to a registry
    ///
    /// Its configuration, and so its image ID, stays as it is. Layers that were compressed like that before, here or by
    /// who gave them to a shared cache, are not compressed again. The registry is asked for all of the image, whatever
    /// was seen there before, and sent what it has not, or has lost.
    Push(Box<Push>),
    /// See and tidy the layers that are kept from run to run
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Print a shell's completion script to standard output
    Completions {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
    /// Print the manual page to standard output
    Man,
}

const EXAMPLES: &str = "\
Examples:
  Put the environment in the current directory into Docker, or Podman where there is no Docker:
      layerhold containerize

  Write it to a file, and load that:
      layerhold containerize -f hello.tar
      docker load -i hello.tar

  Pipe it, with a tag:
      layerhold containerize --tag v1 -f - | podman load

  An environment elsewhere, layers compressed for a registry:
      layerhold containerize -d ~/project --compression zstd --layout ./image
      skopeo copy oci:./image:project:latest docker://registry.example/project

  Push it; only layers that the registry lacks are sent, and what it is called there is printed:
      layerhold containerize --push registry.example/team/project:v1

  See what that would cost:
      layerhold containerize --push registry.example/team/project:v1 --dry-run

  Images for two platforms under one name, pushed as a whole:
      layerhold containerize --platform linux/amd64,linux/arm64 --push registry.example/team/project

  An environment on FloxHub, as it was in its third generation:
      layerhold containerize -r owner/name --generation 3

  A Nix store that does not lie at /nix:
      layerhold containerize --store ./root -f -

  A Nix store in a volume of the container runtime, as Flox has it on macOS:
      layerhold containerize --proxy --proxy-image IMAGE-WITH-LAYERHOLD";

#[derive(Args, Debug)]
pub(super) struct Containerize {
    // Before the groups: what comes after one would stand under its heading.
    /// Make the image's layers and say what would be sent; the target stays as it is
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print one JSON object that describes the image to standard output
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) environment: EnvironmentArgs,
    #[command(flatten)]
    pub(super) target: TargetArgs,
    #[command(flatten)]
    pub(super) registries: RegistryArgs,
    #[command(flatten)]
    pub(super) share: ShareArgs,
    #[command(flatten)]
    pub(super) image: ImageArgs,
    #[command(flatten)]
    pub(super) layers: LayerArgs,
    #[command(flatten)]
    pub(super) proxy: ProxyArgs,
}

/// `layerhold push`.
#[derive(Args, Debug)]
pub(super) struct Push {
    /// Image that was made before, as layerhold cache ls lists it
    #[arg(value_name = "NAME[:TAG]")]
    pub(super) image: String,
    /// Repository to push it to; without a tag it gets the one that it has
    #[arg(value_name = "REGISTRY/NAME[:TAG]")]
    pub(super) reference: Reference,
    /// Say what would be sent; the registry stays as it is
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print one JSON object that describes the image to standard output
    #[arg(long)]
    pub(super) json: bool,
    /// Compression of layers: none, gzip[:1-9] or zstd[:1-19]
    #[arg(long, value_name = "CODEC[:LEVEL]", default_value = "zstd")]
    pub(super) compression: Compression,
    /// Root of the Nix store [default: /, if there is a store]
    #[arg(long, env = "LAYERHOLD_STORE", value_name = "ROOT", value_hint = ValueHint::DirPath, hide_env_values = true)]
    pub(super) store: Option<PathBuf>,
    #[command(flatten)]
    pub(super) registries: RegistryArgs,
    #[command(flatten)]
    pub(super) share: ShareArgs,
}

#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Environment")]
pub(super) struct EnvironmentArgs {
    /// Directory that contains .flox [default: the current directory's or the active environment]
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub(super) dir: Option<PathBuf>,
    /// Environment on FloxHub; git fetches it, and without a network it is taken as it was fetched last
    #[arg(short, long, alias = "reference", value_name = "OWNER/NAME", conflicts_with = "dir")]
    pub(super) remote: Option<RemoteName>,
    /// Generation of the environment on FloxHub; one in a directory is always taken as it is there [default: the
    /// current one]
    #[arg(long, value_name = "N", requires = "remote", conflicts_with = "dir")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) generation: Option<u64>,
    /// Activate for development or only to run [default: the manifest's options.activate.mode, else dev]
    #[arg(short, long, value_enum)]
    pub(super) mode: Option<ModeArg>,
    /// Root of the Nix store: ROOT/nix/store and ROOT/nix/var/nix/db [default: /, if there is a store]
    #[arg(long, env = "LAYERHOLD_STORE", value_name = "ROOT", value_hint = ValueHint::DirPath, hide_env_values = true)]
    pub(super) store: Option<PathBuf>,
    /// Binary cache for what the Nix store does not have, instead of those in nix.conf; repeat for more
    #[arg(long = "substituter", value_name = "URL")]
    pub(super) substituters: Vec<String>,
    /// Key whose signatures count, beside those in nix.conf; repeat for more
    #[arg(long = "trusted-public-key", value_name = "NAME:KEY")]
    pub(super) keys: Vec<String>,
    /// Ask nothing over the network
    #[arg(long)]
    pub(super) offline: bool,
    /// Store path of a bash to activate with, where the environment has none; repeat for several platforms
    #[arg(long, value_name = "[PLATFORM=]STORE-PATH")]
    pub(super) shell: Vec<String>,
    /// Start the manifest's services in every container of the image [default: as services.auto-start says]
    ///
    /// They run beside the command and are stopped when it has ended. A container without a command or a terminal runs
    /// nothing but them. The environment must have process-compose.
    #[arg(long)]
    pub(super) services: bool,
    /// Do not start services, whatever the manifest says
    #[arg(long, conflicts_with = "services")]
    pub(super) no_services: bool,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Target")]
pub(super) struct TargetArgs {
    /// File to write the image to, - for standard output [default without a runtime: NAME-container.tar]
    #[arg(short, long, value_hint = ValueHint::FilePath)]
    pub(super) file: Option<PathBuf>,
    /// Container runtime to load the image into, docker or podman [default: the first on PATH]
    #[arg(long)]
    pub(super) runtime: Option<String>,
    /// Image layout to add the image to; only blobs that it lacks are written
    #[arg(long, value_name = "DIR", conflicts_with_all = ["file", "runtime"], value_hint = ValueHint::DirPath)]
    pub(super) layout: Option<PathBuf>,
    /// Repository of a registry to push the image to, beside any other target; its digest reference goes to standard
    /// output; repeat for more
    #[arg(long, value_name = "REGISTRY/NAME[:TAG]")]
    pub(super) push: Vec<Reference>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Registries")]
pub(super) struct RegistryArgs {
    /// Registry to reach by plain http; one on this machine may be without being named; repeat for more
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(super) insecure_registry: Vec<String>,
    /// File with certificates to trust beside the system's; repeat for more
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) registry_ca: Vec<PathBuf>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Shared cache")]
pub(super) struct ShareArgs {
    // Addresses are read later: clap would repeat one that is none, and a secret in it.
    /// Cache to look layers up in that are not known here: a repository of a registry, s3://BUCKET/PREFIX,
    /// gs://BUCKET/PREFIX or file:///DIR; repeat for more
    #[arg(long, value_name = "CACHE", env = "LAYERHOLD_CACHE_FROM", value_delimiter = ',', hide_env_values = true)]
    pub(super) cache_from: Vec<String>,
    /// The same, which is also given the layers that are made here
    #[arg(long, value_name = "CACHE", env = "LAYERHOLD_CACHE_TO", value_delimiter = ',', hide_env_values = true)]
    pub(super) cache_to: Vec<String>,
    /// Key whose entries count, instead of all that somebody could write there; repeat for more
    #[arg(long, value_name = "NAME:KEY")]
    pub(super) cache_trust: Vec<String>,
    /// File with the secret key that entries are signed with (layerhold cache key)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) cache_key: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Image")]
pub(super) struct ImageArgs {
    /// Platform that the image is for, linux/amd64 or linux/arm64; several, with commas or repeated, make one image
    /// index, of which Docker's classic store loads the first [default: this machine's]
    #[arg(long = "platform", value_name = "PLATFORM", value_delimiter = ',')]
    pub(super) platforms: Vec<System>,
    /// Tag of the image
    #[arg(short, long, default_value = "latest")]
    pub(super) tag: String,
    /// Label of the image, over the manifest's; repeat for more
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(super) labels: Vec<String>,
    /// Time of creation, in seconds after 1970-01-01 [default: SOURCE_DATE_EPOCH, else 1]
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH", hide_env = true)]
    pub(super) created: Option<i64>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Layers")]
pub(super) struct LayerArgs {
    /// Image made before to lay layers out on: what it has stays, what is new comes on top, so that runtimes unpack
    /// less; NAME[:TAG] of the layer cache or REGISTRY/NAME[:TAG] [default without a value: the one that has had this
    /// image's name until now, with --push in the registry, else in the layer cache]
    ///
    /// The image depends on that one then, and may be larger by an eighth: what is gone stays in its layer, hidden.
    /// Where there is none it is the same as without. LAYERHOLD_PREVIOUS=IMAGE is the same for all runs; a dot stands
    /// for no value.
    #[arg(long, value_name = "IMAGE", num_args = 0..=1, default_missing_value = ".")]
    pub(super) previous: Option<Previous>,
    /// Lay layers out by the environment alone, whatever the settings say
    #[arg(long, overrides_with = "previous")]
    pub(super) no_previous: bool,
    /// Most layers that the image may have, 2 to 127
    #[arg(long, value_name = "N", default_value_t = plan::DEFAULT_LAYERS as u8)]
    #[arg(value_parser = clap::value_parser!(u8).range(2..=plan::MAX_LAYERS as i64))]
    pub(super) max_layers: u8,
    /// Compression of layers: none, gzip[:1-9] or zstd[:1-19] [default: zstd with --push, else none]
    #[arg(long, value_name = "CODEC[:LEVEL]")]
    pub(super) compression: Option<Compression>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Proxy container")]
pub(super) struct ProxyArgs {
    /// Make the image in a container of the runtime, with a Nix store in one of its volumes, as Flox does on macOS
    /// [default: on macOS, where no binary cache has what is needed]
    #[arg(long, conflicts_with_all = ["store", "layout", "push", "dry_run", "json"])]
    pub(super) proxy: bool,
    /// Image of that container, with a Linux build of layerhold on its PATH
    #[arg(long, value_name = "IMAGE", env = "LAYERHOLD_PROXY_IMAGE", default_value = "nixos/nix")]
    #[arg(hide_env_values = true)]
    pub(super) proxy_image: String,
    /// Volume with the Nix store, at /nix in that container
    #[arg(long, value_name = "VOLUME", default_value = "flox-nix")]
    pub(super) proxy_volume: String,
    /// This run is in that container: it ends with its standard input, and another says where the image went
    #[arg(long, hide = true)]
    pub(super) in_proxy: bool,
}

/// What can be done with the layer cache.
#[derive(Debug, Subcommand)]
pub(super) enum CacheCommand {
    /// Remove images that were not made for longest, and what nothing needs
    ///
    /// The size cap is a ceiling: it beats every rule that keeps, except pins, layers that a running build uses, and
    /// the image that was just made. Images that were not made for longest go first.
    Gc(Box<GcArgs>),
    /// List images
    Ls {
        /// List layers instead
        #[arg(long)]
        layers: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List store paths with what they cost
    Du {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say which images hold a store path or a layer, and through which references
    Why {
        /// A store path, or the digest of a layer or image
        #[arg(value_name = "PATH|DIGEST")]
        wanted: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Read everything again and say what is damaged; exit 3 if anything is
    Verify {
        /// Throw away what is damaged; it is made again when it is wanted
        #[arg(long)]
        repair: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep an image whatever the cap
    Pin {
        /// NAME or NAME:TAG
        name: String,
    },
    /// Take a pin back
    Unpin {
        /// NAME or NAME:TAG
        name: String,
    },
    /// Make a key that signs entries of shared caches: its secret half into a file, its public half to standard output
    Key {
        /// What the key is called, the team's name for example
        name: String,
        /// File for the secret half; it must not be there yet
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Remove everything
    Clear,
    /// Print the directory
    Path,
}

#[derive(Args, Debug)]
pub(super) struct GcArgs {
    /// Most bytes that the cache may take [default: LAYERHOLD_CACHE_MAX_SIZE, else the config file's cache.max-size,
    /// else 20GiB or a tenth of the disk]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub(super) max_size: Option<u64>,
    /// Fewest bytes that shall be free on the disk
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub(super) min_free: Option<u64>,
    /// Remove images that were not made for so long: 12h, 7d, 4w
    #[arg(long, value_name = "AGE", value_parser = size::parse_age)]
    pub(super) older_than: Option<u64>,
    /// Of each name, keep the N images made last
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(super) keep_last: usize,
    /// Keep images of this name; repeat for more
    #[arg(long, value_name = "NAME[:TAG]")]
    pub(super) keep: Vec<String>,
    /// Tidy a shared cache instead: remove what no image needs that a tag still leads to
    #[arg(long, value_name = "CACHE", conflicts_with_all = ["max_size", "min_free"])]
    pub(super) remote: Option<String>,
    #[command(flatten)]
    pub(super) registries: RegistryArgs,
    /// Only say what would go
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// `--mode`'s values.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ModeArg {
    /// Also set what compilers look at
    Dev,
    /// Set only what running programs need
    Run,
}

impl From<ModeArg> for ActivateMode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Dev => Self::Dev,
            ModeArg::Run => Self::Run,
        }
    }
}
