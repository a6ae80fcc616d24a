//! An environment that flox has built: it has its own activation, which is used as it is.

use std::collections::BTreeMap;

use serde_json::json;

use super::rendered::{Nodes, Rendered, RenderedNode};
use super::store_view::{Location, Resolved, StoreView};
use super::{ActivateMode, RealiseError};
use crate::nix::{InvalidStorePath, StorePath};

/// How a built environment is entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BuiltEntry {
    /// By its `libexec/flox-activations`, which reads what to do from a file that goes into the image.
    Program(Rendered),
    /// By its `activate` script (flox before 1.5), which reads variables.
    Script,
}

impl BuiltEntry {
    /// Finds out which of the two `env` has; `None` where it has neither.
    pub(super) fn of(
        view: &StoreView<'_>,
        env: &StorePath,
        name: &str,
        mode: ActivateMode,
        bash: &str,
    ) -> Result<Option<Self>, RealiseError> {
        let leads_to = |rel: &[u8]| view.resolve(&Location::root(env).child(rel));
        let activate = leads_to(b"activate")?;
        if let Resolved::File(_) = leads_to(b"libexec/flox-activations")? {
            // `activate` comes from flox-interpreter, which all of the environment's scripts belong to.
            let interpreter = match activate {
                Resolved::File(file) => file.store_path,
                Resolved::Directory(_) | Resolved::Nowhere(_) => env.clone(),
            };
            return Ok(Some(Self::Program(activate_data(env, name, mode, bash, &interpreter)?)));
        }
        Ok(matches!(activate, Resolved::File(_)).then_some(Self::Script))
    }

    /// The image's entrypoint.
    pub(super) fn entrypoint(&self, env: &StorePath) -> Vec<String> {
        match self {
            Self::Program(data) => vec![
                format!("{env}/libexec/flox-activations"),
                "activate".to_owned(),
                "--activate-data".to_owned(),
                data.path.to_string(),
            ],
            Self::Script => vec![format!("{env}/activate")],
        }
    }

    /// The variables that the entrypoint reads.
    pub(super) fn variables(&self, env: &StorePath, bash: &str) -> BTreeMap<String, String> {
        let fixed: &[(&str, &str)] = match self {
            Self::Program(_) => &[],
            Self::Script => &[
                ("_FLOX_ACTIVE_ENVIRONMENTS", "[]"),
                ("_FLOX_FORCE_INTERACTIVE", "1"),
                ("FLOX_PROMPT_ENVIRONMENTS", "floxenv"),
                ("FLOX_RUNTIME_DIR", "/tmp/flox/run"),
                ("FLOX_SHELL", bash),
                ("FLOX_SOURCED_FROM_SHELL_RC", "1"),
            ],
        };
        let mut variables: BTreeMap<_, _> =
            fixed.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        variables.insert("FLOX_ENV".to_owned(), env.to_string());
        variables
    }
}

/// The file that `flox-activations activate` reads (flox: `ActivateCtx`).
fn activate_data(
    env: &StorePath,
    name: &str,
    mode: ActivateMode,
    bash: &str,
    interpreter: &StorePath,
) -> Result<Rendered, InvalidStorePath> {
    let data = json!({
        "mode": match mode { ActivateMode::Dev => "dev", ActivateMode::Run => "run" },
        "shell": { "bash": bash },
        "invocation_type": null,
        "remove_after_reading": false,
        "disable_hook": true,
        "flox_bin": "",
        "flox_activate_store_path": env,
        "activation_state_dir": format!("/run/flox/container-activations/{}", env.base_name()),
        "attach_ctx": {
            "env": env,
            "env_description": name,
            "env_cache": "/tmp",
            "prompt_color_1": "99",
            "prompt_color_2": "141",
            "interpreter_path": interpreter,
            "flox_prompt_environments": "floxenv",
            "set_prompt": true,
            "flox_env_cuda_detection": "0",
            "flox_active_environments": "[]",
        },
        "project_ctx": null,
    });
    let node = RenderedNode::File { executable: false, contents: data.to_string().into_bytes() };
    Rendered::new("activate-data.json", Nodes::from([(Vec::new(), node)]), |_| Ok(Nodes::new()))
}
