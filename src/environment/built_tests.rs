use super::*;
use std::fs;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

const OLD: &str = "/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-environment-old";
const NEW: &str = "/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-environment-new";

/// The sample `hello`, with these links in `.flox/run`.
fn environment(links: &[(&str, &str)]) -> (TempDir, Environment) {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join(".flox/env")).unwrap();
    fs::create_dir_all(dir.path().join(".flox/run")).unwrap();
    fs::write(dir.path().join(".flox/env.json"), r#"{"name":"proj","version":1}"#).unwrap();
    for file in ["manifest.toml", "manifest.lock"] {
        fs::copy(format!("fixtures/environments/hello/{file}"), dir.path().join(".flox/env").join(file)).unwrap();
    }
    for (name, target) in links {
        symlink(target, dir.path().join(".flox/run").join(name)).unwrap();
    }
    let environment = Environment::open(dir.path()).unwrap();
    (dir, environment)
}

/// A store with `NEW`, built from the sample's lockfile, and `OLD`, from another one.
fn read_lock(path: &StorePath) -> io::Result<Option<Vec<u8>>> {
    match path.name() {
        "environment-new" => {
            // Laid out otherwise than Flox does: only the meaning counts.
            let text = fs::read("fixtures/environments/hello/manifest.lock")?;
            Ok(Some(serde_json::from_slice::<serde_json::Value>(&text)?.to_string().into_bytes()))
        }
        "environment-old" => fs::read("fixtures/environments/kitchen_sink/manifest.lock").map(Some),
        "environment-torn" => Err(io::Error::other("input/output error")),
        _ => Ok(None),
    }
}

/// What is said of these links, with the directory's name taken out.
fn said(links: &[(&str, &str)], mode: ActivateMode) -> String {
    let (dir, environment) = environment(links);
    let built = environment.built(System::X86_64Linux, mode, &read_lock);
    built.to_string().replace(&dir.path().display().to_string(), "PROJ")
}

#[test]
fn what_belongs_to_the_lockfile_is_used() {
    let used = format!("the environment that Flox built is used: {NEW}");
    assert_eq!(said(&[("x86_64-linux.proj-dev", NEW)], ActivateMode::Dev), used);
    assert_eq!(said(&[("x86_64-linux.proj-run", NEW)], ActivateMode::Run), used);
    assert_eq!(said(&[("x86_64-linux.proj.dev", NEW)], ActivateMode::Dev), used);
    assert_eq!(said(&[("x86_64-linux.proj-dev", "next"), ("next", NEW)], ActivateMode::Dev), used);
    assert_eq!(said(&[("x86_64-linux.proj-dev", OLD), ("x86_64-linux.proj.dev", NEW)], ActivateMode::Dev), used);
}

#[test]
fn other_systems_names_and_modes_do_not_count() {
    let links = [("aarch64-linux.proj-dev", NEW), ("x86_64-linux.other-dev", NEW), ("x86_64-linux.proj-run", NEW)];
    assert_eq!(said(&links, ActivateMode::Dev), "Flox has not built the environment here");
}

#[test]
fn what_is_not_used_says_why() {
    let reason = |target: &str| {
        let said = said(&[("x86_64-linux.proj-dev", target), ("loop", "loop")], ActivateMode::Dev);
        let rest = said.strip_prefix("the built environment 'PROJ/.flox/run/x86_64-linux.proj-dev' is not used: ");
        rest.unwrap_or(&said).to_owned()
    };
    let path = |name| format!("/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-environment-{name}");
    assert_eq!(reason(OLD), format!("{OLD} was built from another lockfile"));
    assert_eq!(reason(&path("gone")), format!("{} is not in the store, or is no environment", path("gone")));
    assert_eq!(reason(&path("torn")), "it could not be read: input/output error");
    assert_eq!(reason("/nonexistent"), "it does not lead to a store path");
    assert_eq!(reason("loop"), "it does not lead to a store path");
    assert_eq!(reason(&format!("{NEW}/bin")), "it does not lead to a store path");
}

#[test]
fn without_a_lockfile_nothing_can_be_checked_and_nothing_is_used() {
    let (_dir, mut environment) = environment(&[("x86_64-linux.proj-dev", NEW)]);
    environment.lockfile = None;
    let built = environment.built(System::X86_64Linux, ActivateMode::Dev, &read_lock);
    assert!(matches!(built, Built::Unusable { reason: Unusable::Stale(_), .. }));
}
