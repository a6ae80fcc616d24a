//! Shared caches that fail in every way: each run has its image soon, and says at most once that it did without.

use std::time::{Duration, Instant};

use crate::bucket_server::Readers;
use crate::crash::noise;
use crate::flox_fixture::{FloxEnv, Tree};
use crate::peers::peer;
use crate::registry_proxy::{Fault, RegistryProxy, Request};
use crate::registry_server::Setup;
use crate::share::Project;

/// A cache behind a proxy.
struct Place {
    project: Project,
    proxy: RegistryProxy,
}

impl Place {
    /// What a run on a new machine says of this fault: it has the right image, soon, and keeps nothing that is damaged.
    fn run(&self, case: &str, args: &[&str]) -> String {
        let name = case.replace([' ', '"'], "-");
        let machine = self.project.machine(&name);
        let started = Instant::now();
        let (image, said) = machine.image(&self.project.environment, args);
        let took = started.elapsed();
        self.proxy.mend();
        assert!(image == self.project.expected, "{case}: {said}");
        // Two attempts of two seconds, or five that end at once, and what waits between them; twice where it writes.
        assert!(took < Duration::from_secs(30), "{case}: {took:?}: {said}");
        let verify =
            self.project.sandbox.cmd().env("LAYERHOLD_CACHE", &machine.cache).args(["cache", "verify"]).output();
        assert!(verify.unwrap().status.success(), "{case}");
        let warnings: Vec<_> = said.lines().filter(|line| line.starts_with("! ")).collect();
        assert!(warnings.len() < 2, "{case}: {said}");
        let warning = warnings.first().copied().unwrap_or("nothing").replace(&self.proxy.host(), "[HOST]");
        // A sheet's name has a random end.
        let warning = match warning.split_once("layerhold-cache.0.") {
            Some((before, name)) => format!("{before}layerhold-cache.0.[NAME]{}", &name[32..]),
            None => warning,
        };
        format!("{case}: {}\n", warning.trim_end())
    }
}

/// The faults that a server answers with, or that befall what it answers.
fn refusals() -> [Fault; 3] {
    [Fault::Status(500, ""), Fault::Refused(401, "UNAUTHORIZED"), Fault::Refused(403, "DENIED")]
}

#[test]
fn a_registry_that_fails_costs_a_warning_and_seconds() {
    let program = peer!(docker_registry);
    let mut project = Project::new();
    // A layer that does not go into one chunk.
    let large = project.store.add("large", &Tree::new().program("bin/large", noise("large", 9_000_000)));
    project.environment = FloxEnv::of_store_paths(project.sandbox.path("large"), "large", &[("large", &large)], "");
    project.expected = project.machine("alone").image(&project.environment, &[]).0;
    let server = program.start(&project.sandbox.path("registry"), Setup::default());
    let proxy = RegistryProxy::start(&server);
    let share = proxy.reference("team/cache");
    project.fill(&share);
    let place = Place { project, proxy };
    let mut said = String::new();
    for request in [Request::Tags, Request::GetManifest, Request::GetBlob] {
        for fault in refusals() {
            let case = format!("{request:?} {fault:?}");
            place.proxy.fail_always(request, fault);
            said += &place.run(&case, &["--cache-from", &share]);
        }
    }
    // The sheet comes, and the layer does not.
    for fault in refusals().into_iter().chain([Fault::CutAnswer(100), Fault::Damage, Fault::Trickle]) {
        let case = format!("a layer {fault:?}");
        place.proxy.fail_always_after(1, Request::GetBlob, fault);
        said += &place.run(&case, &["--cache-from", &share]);
    }
    for request in [Request::PatchUpload, Request::PutUpload, Request::PutManifest] {
        for (n, fault) in [Fault::Status(500, ""), Fault::Cut(10)].into_iter().enumerate() {
            let case = format!("{request:?} {fault:?}");
            place.proxy.fail_always(request, fault);
            let share = place.proxy.reference(&format!("team/new-{request:?}-{n}").to_lowercase());
            said += &place.run(&case, &["--cache-to", &share]);
        }
    }
    insta::assert_snapshot!("failing_registry", said);
}

#[test]
fn an_object_store_that_fails_costs_a_warning_and_seconds() {
    let moto = peer!(moto);
    let project = Project::new();
    let bucket = project.sandbox.path("bucket");
    std::fs::create_dir_all(&bucket).unwrap();
    let server = moto.start(&bucket, Readers::All);
    let proxy = RegistryProxy::start_at(server.host(), None);
    let share = server.share(&project.sandbox, "team").replace(&server.host(), &proxy.host());
    project.fill(&share);
    let place = Place { project, proxy };
    let mut said = String::new();
    // What is asked for of a bucket, but for its layers, is nothing that a registry is asked for.
    for fault in refusals().into_iter().chain([Fault::CutAnswer(100), Fault::Damage, Fault::Trickle, Fault::Hang]) {
        let case = format!("a layer {fault:?}");
        place.proxy.fail_always(Request::GetBlob, fault);
        said += &place.run(&case, &["--cache-from", &share]);
    }
    for fault in refusals().into_iter().chain([Fault::Hang]) {
        let case = format!("its sheets {fault:?}");
        place.proxy.fail_always(Request::Other, fault);
        said += &place.run(&case, &["--cache-from", &share]);
    }
    insta::assert_snapshot!("failing_object_store", said);
}
