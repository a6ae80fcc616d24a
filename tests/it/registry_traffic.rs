//! What pushes and the shared cache ask of a registry, counted: docs/team.md has these figures.

use std::fs;
use std::path::Path;

use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::peers::peer;
use crate::registry_proxy::{RegistryProxy, Traffic};
use crate::registry_server::Setup;
use crate::sandbox::Sandbox;

/// An environment of ten packages of a megabyte each that does not compress, and one that is another one in `version`.
fn environment(sandbox: &Sandbox, store: &BareStore, version: &str) -> FloxEnv {
    let add = |name: &str| {
        let mut bytes = vec![0; 1 << 20];
        blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
        store.add(name, &Tree::new().program(format!("bin/{name}"), bytes))
    };
    let mut installs: Vec<_> = (0..9).map(|n| (format!("tool{n}"), add(&format!("tool{n}-1")))).collect();
    installs.push(("leaf".to_owned(), add(version)));
    let installs: Vec<_> = installs.iter().map(|(id, path)| (id.as_str(), path.as_str())).collect();
    FloxEnv::of_store_paths(sandbox.path(version), "web", &installs, "")
}

/// A line of the table.
fn line(what: &str, traffic: &Traffic) -> String {
    line_with(&traffic.requests().to_string(), what, traffic)
}

/// The same, where the number of requests is not always the same one.
fn line_below(most: u64, what: &str, traffic: &Traffic) -> String {
    assert!(traffic.requests() < most, "{what}: {:#?}", traffic.log);
    line_with(&format!("below {most}"), what, traffic)
}

fn line_with(requests: &str, what: &str, traffic: &Traffic) -> String {
    // Documents of a few kilobytes are not the point.
    let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let received = traffic.counts.values().map(|count| count.received).sum();
    format!("| {what} | {requests} | {} | {} |", megabytes(traffic.sent()), megabytes(received))
}

#[test]
fn the_traffic_is_what_the_documentation_says() {
    let program = peer!(docker_registry);
    let sandbox = Sandbox::new();
    let server = program.start(&sandbox.path("registry"), Setup::default());
    let proxy = RegistryProxy::start(&server);
    let store = BareStore::new(sandbox.path("root"));
    let [before, after, later] = ["leaf-1", "leaf-2", "leaf-3"].map(|leaf| environment(&sandbox, &store, leaf));
    let run = |machine: &str, environment: &FloxEnv, args: &[&str]| -> Traffic {
        let mut command = sandbox.cmd();
        command.env("LAYERHOLD_CACHE", sandbox.path(machine)).arg("containerize").args(args);
        command.arg("--store").arg(store.root()).arg("-d").arg(environment.dir()).assert().success();
        proxy.traffic()
    };
    let push = |machine: &str, environment: &FloxEnv, to: &str, args: &[&str]| {
        run(machine, environment, &[&["--push", &proxy.reference(to)][..], args].concat())
    };
    let cache = proxy.reference("team/cache");
    let (from, to) = (["--cache-from", &cache], ["--cache-to", &cache]);
    let file = ["--cache-from", &cache, "--compression", "zstd", "-f", "image.tar"];
    let lines = [
        line("the first push", &push("a", &before, "team/web:1", &[])),
        line("nothing changed", &push("a", &before, "team/web:1", &[])),
        line("nothing changed, another tag", &push("a", &before, "team/web:2", &[])),
        line("one package changed", &push("a", &after, "team/web:3", &[])),
        // Who comes first, the cache or the image, is chance, and so is what is looked for meanwhile.
        line_below(150, "the first push, `--cache-to`", &push("b", &before, "team/api:1", &to)),
        line("empty machine, `--cache-from`, nothing changed", &push("c", &before, "team/api:1", &from)),
        line("empty machine, `--cache-from`, another tag", &push("d", &before, "team/api:2", &from)),
        line("empty machine, `--cache-from`, a new repository", &push("g", &before, "team/new:1", &from)),
        line_below(60, "empty machine, `--cache-to`, one package changed", &push("e", &later, "team/api:3", &to)),
        line("the same again, `--cache-to`, nothing changed", &push("e", &later, "team/api:3", &to)),
        line("empty machine, `--cache-from`, into a file", &run("f", &later, &file)),
    ];
    let table = lines.join("\n");
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/team.md")).unwrap();
    assert!(docs.contains(&table), "docs/team.md lacks these lines:\n{table}");
}
