//! What comes of an environment: the root, the entrypoint, the variables.

use super::super::rendered::tests::{Levels, Trees, store_path};
use super::super::{ContainerConfig, PRIORITY_SCALE, UserSpec};
use super::*;
use crate::rootfs::{RootFs, RootNode, RootNodeKind};

/// Shells, tools and a package, as nixpkgs has them.
fn trees() -> Trees {
    let mut trees = Trees::default();
    trees.program("hello-1", "bin/hello").file("hello-1", "share/man/man1/hello.1", "");
    trees.program("bash-5", "bin/bash").link("bash-5", "bin/sh", "bash").file("bash-5", "share/man/man1/bash.1", "");
    trees.program("coreutils-9", "bin/env").program("coreutils-9", "bin/ls");
    trees
}

fn package(name: &str) -> Package {
    Package { name: name.into(), path: store_path(name), priority: 5 * PRIORITY_SCALE }
}

fn realised(
    trees: &Trees,
    manifest: &Manifest,
    packages: &[Package],
    change: impl for<'a> FnOnce(&mut RealiseRequest<'a>, &'a [StorePath]),
    paths: &[StorePath],
) -> Result<Realised, RealiseError> {
    let closure = Closure::compute(trees, trees.paths().cloned()).unwrap();
    let mut request = RealiseRequest {
        name: "demo",
        manifest,
        lockfile: Some(b"{}"),
        packages,
        built: None,
        closure: &closure,
        source: trees,
        mode: ActivateMode::Dev,
        shell: None,
        services: &BTreeMap::new(),
    };
    change(&mut request, paths);
    let realised = realise(&request);
    // From a store that shows one directory at a look, and none twice.
    let levels = Levels::of(trees);
    let by_directory = realise(&RealiseRequest { source: &levels, ..request });
    let text = |error: &RealiseError| error.to_string();
    assert_eq!(by_directory.as_ref().map_err(text), realised.as_ref().map_err(text));
    realised
}

fn simply(trees: &Trees, manifest: &Manifest, packages: &[Package]) -> Result<Realised, RealiseError> {
    realised(trees, manifest, packages, |_, _| {}, &[])
}

fn containing(config: ContainerConfig) -> Manifest {
    Manifest { containerize: config, ..Manifest::default() }
}

/// What a container has at a path: the links lie below.
fn get<'a>(realised: &'a Realised, path: &str) -> Option<&'a RootNode> {
    realised.own.get(path.as_bytes()).or_else(|| realised.links.get(path.as_bytes()))
}

/// All that a container has.
fn root(realised: &Realised) -> RootFs {
    realised.own.clone().over(realised.links.clone())
}

fn node<'a>(realised: &'a Realised, path: &str) -> &'a RootNode {
    get(realised, path).unwrap_or_else(|| panic!("{path} is missing"))
}

fn link(realised: &Realised, path: &str) -> String {
    match &node(realised, path).kind {
        RootNodeKind::Symlink(target) => String::from_utf8(target.clone()).unwrap(),
        other => panic!("{path} is {other:?}"),
    }
}

fn env<'a>(realised: &'a Realised, name: &str) -> Option<&'a str> {
    realised.env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// `mode uid:gid path` for all but the store, links with their targets, store paths cut down to their names.
fn show(realised: &Realised) -> String {
    let line = |(path, node): (&[u8], &RootNode)| {
        let path = String::from_utf8_lossy(path);
        let what = match &node.kind {
            RootNodeKind::Directory => "/".to_owned(),
            RootNodeKind::File(_) => String::new(),
            RootNodeKind::Symlink(target) => {
                let target = String::from_utf8_lossy(target);
                let in_store = target.strip_prefix("/nix/store/").map(|target| &target[33..]);
                format!(" -> {}", in_store.unwrap_or(&target))
            }
        };
        (!path.starts_with("nix/store/")).then(|| format!("{:04o} {}:{} {path}{what}\n", node.mode, node.uid, node.gid))
    };
    root(realised).iter().filter_map(line).collect()
}

#[test]
fn the_root_has_the_environment_bash_coreutils_and_what_linux_expects() {
    let mut trees = trees();
    trees.file("nss-cacert-3", "etc/ssl/certs/ca-bundle.crt", "");
    let realised = simply(&trees, &Manifest::default(), &[package("hello-1")]).unwrap();
    insta::assert_snapshot!(show(&realised), @r"
    0777 0:0 activate -> /nix/environment/activate
    0777 0:0 activate.d -> /nix/environment/activate.d
    0755 0:0 bin/
    0777 0:0 bin/bash -> bash-5/bin/bash
    0777 0:0 bin/env -> coreutils-9/bin/env
    0777 0:0 bin/hello -> /nix/environment/bin/hello
    0777 0:0 bin/ls -> coreutils-9/bin/ls
    0777 0:0 bin/sh -> bash-5/bin/sh
    0755 0:0 etc/
    0644 0:0 etc/group
    0644 0:0 etc/nsswitch.conf
    0644 0:0 etc/passwd
    0755 0:0 etc/ssl/
    0755 0:0 etc/ssl/certs/
    0777 0:0 etc/ssl/certs/ca-bundle.crt -> nss-cacert-3/etc/ssl/certs/ca-bundle.crt
    0777 0:0 etc/ssl/certs/ca-certificates.crt -> nss-cacert-3/etc/ssl/certs/ca-bundle.crt
    0777 0:0 manifest.lock -> /nix/environment/manifest.lock
    0755 0:0 nix/
    0777 0:0 nix/environment -> environment-demo
    0755 0:0 nix/store/
    1777 0:0 run/
    1777 0:0 run/flox/
    0755 0:0 share/
    0755 0:0 share/man/
    0755 0:0 share/man/man1/
    0777 0:0 share/man/man1/bash.1 -> bash-5/share/man/man1/bash.1
    0777 0:0 share/man/man1/hello.1 -> /nix/environment/share/man/man1/hello.1
    1777 0:0 tmp/
    0755 0:0 var/
    0555 0:0 var/empty/
    ");
    assert_eq!(env(&realised, "SSL_CERT_FILE"), Some("/etc/ssl/certs/ca-bundle.crt"));
}

#[test]
fn the_environment_lies_read_only_at_a_store_path_of_its_own() {
    let realised = simply(&trees(), &Manifest::default(), &[package("hello-1")]).unwrap();
    let [path] = realised.generated.as_slice() else { panic!("{:?}", realised.generated) };
    assert_eq!(path.name(), "environment-demo");
    assert_eq!(realised.entrypoint, [format!("{path}/activate")]);
    assert_eq!(env(&realised, "FLOX_ENV"), Some(path.to_string().as_str()));
    let inside = |rel: &str| format!("{path}/{rel}")[1..].to_owned();
    assert_eq!(node(&realised, &inside("activate")).mode, 0o555);
    assert_eq!(node(&realised, &inside("manifest.lock")).kind, RootNodeKind::File(b"{}".to_vec()));
    assert_eq!(link(&realised, &inside("bin")), format!("{}/bin", store_path("hello-1")));
    let again = simply(&trees(), &Manifest::default(), &[package("hello-1")]).unwrap();
    assert_eq!(again, realised);
    let other = Manifest { on_activate: Some("true".into()), ..Manifest::default() };
    assert_ne!(simply(&trees(), &other, &[package("hello-1")]).unwrap().generated, realised.generated);
}

#[test]
fn run_and_the_working_directory_belong_to_the_user_and_nothing_else_does() {
    let user = UserSpec { text: "me:10".into(), name: "me".into(), uid: 10000, group: "flox".into(), gid: 10 };
    let manifest = containing(ContainerConfig {
        user: Some(user),
        working_dir: Some("/srv/deep/app".into()),
        cmd: Some(vec!["hello".into()]),
        ..ContainerConfig::default()
    });
    let realised = simply(&trees(), &manifest, &[package("hello-1")]).unwrap();
    let shown = show(&realised);
    let own: Vec<_> = shown.lines().filter(|line| line.contains("10000:10")).collect();
    assert_eq!(own, ["1777 10000:10 run/", "1777 10000:10 run/flox/", "0755 10000:10 srv/deep/app/"]);
    assert!(shown.contains("0755 0:0 srv/deep/\n"));
    assert!(root(&realised).iter().filter(|(path, _)| path.starts_with(b"nix")).all(|(_, node)| node.uid == 0));
    let RootNodeKind::File(passwd) = &node(&realised, "etc/passwd").kind else { panic!("no file") };
    assert!(String::from_utf8_lossy(passwd).contains("me:x:10000:10:"));
    assert_eq!(realised.cmd, ["hello"]);
}

#[test]
fn a_working_directory_in_the_store_or_of_ours_is_left_as_it_is() {
    let inside = |path: &str| {
        let config = ContainerConfig { working_dir: Some(path.into()), ..ContainerConfig::default() };
        show(&simply(&trees(), &containing(config), &[package("hello-1")]).unwrap())
    };
    let plain = show(&simply(&trees(), &Manifest::default(), &[package("hello-1")]).unwrap());
    let of_hello = format!("{}/share", store_path("hello-1"));
    for path in ["/", "/tmp", "/run/", "/nix/store", &of_hello, "/nix/environment", "/nix/environment/src/"] {
        assert_eq!(inside(path), plain, "{path}");
    }
    assert!(inside("/bin/hello").contains("0755 0:0 bin/hello/\n"), "a directory is made in place of a file");
    assert!(inside("/share").contains("0755 0:0 share/\n"));
}

#[test]
fn our_files_stand_before_the_environments() {
    let mut trees = trees();
    trees.file("hello-1", "etc/passwd", "").file("hello-1", "etc/hello.conf", "").file("hello-1", "tmp", "");
    trees.file("hello-1", "activate", "").file("hello-1", "activate.d/envrc", "").file("hello-1", "run/x", "");
    let realised = simply(&trees, &Manifest::default(), &[package("hello-1")]).unwrap();
    assert!(matches!(node(&realised, "etc/passwd").kind, RootNodeKind::File(_)));
    assert_eq!(node(&realised, "tmp").mode, 0o1777);
    let env = &realised.generated[0];
    assert_eq!(link(&realised, "nix/environment"), env.to_string());
    assert_eq!(link(&realised, "etc/hello.conf"), "/nix/environment/etc/hello.conf");
    assert_eq!(link(&realised, "run/x"), "/nix/environment/run/x");
    assert!(realised.links.get(b"etc/passwd").is_none(), "what is not seen is not there");
    for file in ["activate", "activate.d/envrc"] {
        assert!(matches!(node(&realised, &format!("{env}/{file}")[1..]).kind, RootNodeKind::File(_)), "{file}");
    }
}

#[test]
fn the_roots_links_are_the_same_for_another_version_and_another_user() {
    let mut trees = trees();
    trees.program("hello-2", "bin/hello").file("hello-2", "share/man/man1/hello.1", "another text");
    let user = UserSpec { text: "me".into(), name: "me".into(), uid: 10000, group: "flox".into(), gid: 10000 };
    let config = ContainerConfig { user: Some(user), working_dir: Some("/srv".into()), ..ContainerConfig::default() };
    let old = simply(&trees, &Manifest::default(), &[package("hello-1")]).unwrap();
    let new = simply(&trees, &containing(config), &[package("hello-2")]).unwrap();
    assert_eq!(new.links, old.links);
    assert_ne!(new.own, old.own);
    assert!(old.links.iter().all(|(_, node)| (node.uid, node.gid) == (0, 0)));
    trees.program("hello-3", "bin/hello").program("hello-3", "bin/another");
    let names = simply(&trees, &Manifest::default(), &[package("hello-3")]).unwrap();
    assert_ne!(names.links, old.links, "they lead to what there is");
}

#[test]
fn an_environment_with_a_store_of_its_own_does_not_hide_the_images() {
    let mut trees = trees();
    let bash = store_path("bash-5").base_name().to_owned();
    trees.file("hello-1", &format!("nix/store/{bash}"), "").file("hello-1", "nix/environment/y", "");
    trees.file("coreutils-9", "nix/environment/z", "").file("coreutils-9", "nix/store/x", "");
    let realised = simply(&trees, &Manifest::default(), &[package("hello-1")]).unwrap();
    assert_eq!(node(&realised, "nix/store").kind, RootNodeKind::Directory);
    assert_eq!(link(&realised, "nix/environment"), realised.generated[0].to_string());
    assert!(realised.links.iter().all(|(path, _)| !path.starts_with(b"nix/")));
}

#[test]
fn a_package_in_the_way_of_the_activation_is_no_obstacle() {
    let mut trees = trees();
    trees.file("hello-1", "activate.d", "a file");
    let realised = simply(&trees, &Manifest::default(), &[package("hello-1")]).unwrap();
    let inside = format!("{}/activate.d", realised.generated[0])[1..].to_owned();
    assert_eq!(node(&realised, &inside).kind, RootNodeKind::Directory);
}

#[test]
fn without_bash_a_plain_environment_runs_its_command_directly() {
    let mut trees = Trees::default();
    trees.program("hello-1", "bin/hello");
    let manifest =
        Manifest { vars: [("A".to_owned(), "$FLOX_ENV_DESCRIPTION".to_owned())].into(), ..Manifest::default() };
    let realised = simply(&trees, &manifest, &[package("hello-1")]).unwrap();
    assert!(realised.entrypoint.is_empty());
    assert_eq!(env(&realised, "A"), Some("demo"));
    assert!(env(&realised, "PATH").unwrap().starts_with(&format!("{}/bin:", realised.generated[0])));
    assert!(get(&realised, "bin/sh").is_none());
}

#[test]
fn without_bash_a_hook_is_an_error_that_says_what_to_add() {
    let mut trees = Trees::default();
    trees.program("hello-1", "bin/hello");
    let hook = Manifest { on_activate: Some("true".into()), ..Manifest::default() };
    let error = simply(&trees, &hook, &[package("hello-1")]).unwrap_err();
    assert_eq!(error.to_string(), "the environment has no bash, which hook.on-activate needs");
    assert_eq!(
        error.hint().unwrap(),
        "add one: flox install bash; or name one in the Nix store: --shell /nix/store/...-bash-..."
    );
    trees.file("hello-1", "etc/profile.d/hello.sh", "");
    let error = simply(&trees, &Manifest::default(), &[package("hello-1")]).unwrap_err();
    assert_eq!(error.to_string(), "the environment has no bash, which etc/profile.d needs");
    trees.program("my-shell", "bin/bash");
    let shells = [store_path("my-shell"), store_path("hello-1")];
    let named =
        realised(&trees, &hook, &[package("hello-1")], |it, paths| it.shell = Some(&paths[0]), &shells).unwrap();
    assert_eq!(link(&named, "bin/sh"), format!("{}/bin/bash", shells[0]));
    let error = realised(&trees, &hook, &[package("hello-1")], |it, paths| it.shell = Some(&paths[1]), &shells);
    assert_eq!(error.unwrap_err().to_string(), format!("'{}' has no bin/bash", shells[1]));
}

#[test]
fn what_bash_could_not_take_is_an_error_even_without_bash() {
    let vars = |name: &str, value: &str| Manifest {
        vars: [(name.to_owned(), value.to_owned())].into(),
        ..Manifest::default()
    };
    let error = simply(&Trees::default(), &vars("a-b", ""), &[]).unwrap_err();
    assert!(error.to_string().starts_with("'a-b' in [vars]"), "{error}");
    assert_eq!(error.hint().unwrap(), "change it: flox edit");
}

#[test]
fn an_empty_environment_and_an_odd_name_are_realised() {
    assert_eq!(store_name("my env/ä"), "environment-my-env--");
    assert!(StorePath::synthetic(&[0; 32], &store_name(&"x".repeat(500))).is_ok());
    let realised = simply(&Trees::default(), &Manifest::default(), &[]).unwrap();
    assert_eq!(realised.generated.len(), 1);
}

mod built {
    use super::*;

    fn built(trees: &Trees, manifest: &Manifest) -> Result<Realised, RealiseError> {
        realised(trees, manifest, &[], |it, paths| it.built = Some(&paths[0]), &[store_path("environment-dev")])
    }

    #[test]
    fn a_newer_one_is_entered_by_its_program_with_a_file_that_says_how() {
        let mut trees = trees();
        let env_path = store_path("environment-dev");
        trees.program("flox-interpreter", "activate");
        trees.link("environment-dev", "activate", &format!("{}/activate", store_path("flox-interpreter")));
        trees.program("environment-dev", "libexec/flox-activations").program("environment-dev", "bin/tool");
        let manifest = Manifest { vars: [("PORT".into(), "80".into())].into(), ..Manifest::default() };
        let realised = built(&trees, &manifest).unwrap();
        let [data] = realised.generated.as_slice() else { panic!("{:?}", realised.generated) };
        assert_eq!(
            realised.entrypoint,
            [&format!("{env_path}/libexec/flox-activations"), "activate", "--activate-data", &data.to_string()]
        );
        let RootNodeKind::File(json) = &node(&realised, &data.to_string()[1..]).kind else { panic!("no file") };
        let json: serde_json::Value = serde_json::from_slice(json).unwrap();
        assert_eq!(json["mode"], "dev");
        assert_eq!(json["shell"]["bash"], format!("{}/bin/bash", store_path("bash-5")));
        assert_eq!(json["attach_ctx"]["interpreter_path"], store_path("flox-interpreter").to_string());
        assert_eq!(json["activation_state_dir"], format!("/run/flox/container-activations/{}", env_path.base_name()));
        assert_eq!(link(&realised, "nix/environment"), env_path.to_string());
        assert_eq!(link(&realised, "bin/tool"), "/nix/environment/bin/tool");
        assert_eq!(env(&realised, "PORT"), Some("80"));
        assert_eq!(env(&realised, "CPATH"), None, "its own activation would add to it a second time");
        assert!(env(&realised, "PATH").unwrap().starts_with(&format!("{env_path}/bin:")));
    }

    #[test]
    fn an_older_one_is_entered_by_its_script() {
        let mut trees = trees();
        let env_path = store_path("environment-dev");
        trees.program("environment-dev", "activate");
        let realised = built(&trees, &Manifest::default()).unwrap();
        assert_eq!(realised.entrypoint, [format!("{env_path}/activate")]);
        assert!(realised.generated.is_empty());
        assert_eq!(env(&realised, "FLOX_SHELL"), Some(format!("{}/bin/bash", store_path("bash-5")).as_str()));
        assert_eq!(env(&realised, "_FLOX_ACTIVE_ENVIRONMENTS"), Some("[]"));
        assert_eq!(env(&realised, "FLOX_RUNTIME_DIR"), Some("/tmp/flox/run"));
    }

    #[test]
    fn its_services_are_started_by_a_program_inside_its_own_activation() {
        let mut trees = trees();
        trees.program("environment-dev", "activate").program("process-compose-1", "bin/process-compose");
        let services = BTreeMap::from([("web".to_owned(), Service { command: "serve".into(), ..Service::default() })]);
        let paths = [store_path("environment-dev")];
        let closure = Closure::compute(&trees, trees.paths().cloned()).unwrap();
        let realised = realise(&RealiseRequest {
            name: "demo",
            manifest: &Manifest::default(),
            lockfile: None,
            packages: &[],
            built: Some(&paths[0]),
            closure: &closure,
            source: &trees,
            mode: ActivateMode::Dev,
            shell: None,
            services: &services,
        })
        .unwrap();
        let [program] = realised.generated.as_slice() else { panic!("{:?}", realised.generated) };
        assert_eq!(
            realised.entrypoint,
            [format!("{}/activate", paths[0]), format!("{program}/bin/with-services")],
            "the command's arguments come behind"
        );
        let below = |path: &str| format!("{program}/{path}")[1..].to_owned();
        let RootNodeKind::File(script) = &node(&realised, &below("bin/with-services")).kind else { panic!("no file") };
        assert!(script.starts_with(format!("#!{}/bin/bash\n", store_path("bash-5")).as_bytes()));
        assert_eq!(script.iter().filter(|&&byte| byte == b'@').count(), 4, "no placeholder is left but in \"$@\"");
        assert_eq!(node(&realised, &below("bin/with-services")).mode, 0o555);
        node(&realised, &below("service-config.yaml"));
    }

    #[test]
    fn one_without_an_activation_is_an_error() {
        let mut trees = trees();
        trees.program("environment-dev", "bin/tool");
        let error = built(&trees, &Manifest::default()).unwrap_err();
        let path = store_path("environment-dev");
        assert_eq!(
            error.to_string(),
            format!(
                "'{path}' is not an environment that flox built: it has neither libexec/flox-activations nor activate"
            )
        );
        assert_eq!(error.hint().unwrap(), "build it again: flox activate -- true");
    }
}
