//! FloxHub that cannot be reached, what is then had from what was fetched before, and what may happen to that.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::Duration;

use rstest::rstest;

use crate::floxhub_fixture::Behaviour;
use crate::peers::peer;
use crate::remote::{Place, names_in, run, says};
use crate::surroundings::Mounted;

const INTERVAL: Duration = Duration::from_millis(20);

/// `layerhold` on its way, and FloxHub asked by it.
fn asking(place: &Place) -> Child {
    place.hub.asked();
    let child = place.web().spawn().unwrap();
    while place.hub.asked().is_empty() {
        thread::sleep(INTERVAL);
    }
    child
}

#[rstest]
#[case::an_outage(Behaviour::Status("503 Service Unavailable"), "The requested URL returned error: 503")]
#[case::a_connection_that_breaks(Behaviour::Cut, "")]
#[case::a_page_for_people(Behaviour::Page, "")]
fn what_was_fetched_before_is_used_and_that_is_said(#[case] behaviour: Behaviour, #[case] reason: &str) {
    peer!(git);
    let place = Place::new();
    place.hub.behave(behaviour.clone());
    let said = place.failure(&mut place.web());
    says(
        &said,
        &["✘ ERROR: FloxHub at [HUB] cannot be reached, and 'me/web' was not fetched before", reason, "hint: "],
    );

    assert!(names_in(&place.kept()).iter().all(|name| name.ends_with(".lock")));

    place.hub.behave(Behaviour::Login);
    let online = place.generation(&mut place.web());
    let image = fs::read(place.sandbox.path("work/image.tar")).unwrap();
    assert!(!online.1.contains("cannot be reached"), "{}", online.1);
    place.web.history(&[1, 2, 3]);

    place.hub.behave(behaviour);
    fs::remove_file(place.sandbox.path("work/image.tar")).unwrap();
    let (generation, said) = place.generation(&mut place.web());
    assert_eq!(generation, "2");
    says(
        &said,
        &["! FloxHub cannot be reached: ", reason, "going on with 'me/web' as it was fetched just now, generation 2"],
    );
    assert!(fs::read(place.sandbox.path("work/image.tar")).unwrap() == image);
    let (generation, said) = place.generation(place.web().args(["--generation", "1"]));
    assert_eq!(generation, "1");
    says(&said, &["generation 1"]);
    fs::remove_file(place.sandbox.path("work/image.tar")).unwrap();
    let said = place.failure(place.web().args(["--generation", "9"]));
    says(&said, &["! FloxHub cannot be reached: ", "has no generation 9, only 1-3"]);
    let said = place.failure(&mut place.command(&["-r", "me/other"]));
    says(&said, &["cannot be reached, and 'me/other' was not fetched before"]);

    place.hub.behave(Behaviour::Login);
    assert_eq!(place.generation(&mut place.web()).0, "3");
}

#[test]
fn with_offline_nobody_is_asked() {
    peer!(git);
    let place = Place::new();
    let said = place.failure(place.web().arg("--offline"));
    says(&said, &["--offline keeps this run from asking it", "hint: run this again without --offline"]);
    place.generation(&mut place.web());
    place.hub.asked();
    let (generation, said) = place.generation(place.web().arg("--offline"));
    assert_eq!(generation, "2");
    says(&said, &["! FloxHub cannot be reached: --offline keeps this run from asking it", "generation 2"]);
    assert!(place.hub.asked().is_empty());
}

#[test]
fn nobody_listens() {
    peer!(git);
    let place = Place::new();
    place.generation(&mut place.web());
    // The same FloxHub by name; the address of its repositories leads nowhere.
    let mut command = place.web();
    command.env("_FLOX_FLOXHUB_GIT_URL", "http://127.0.0.1:9/git");
    fs::remove_file(place.sandbox.path("work/image.tar")).unwrap();
    says(&place.failure(&mut command), &["cannot be reached, and 'me/web' was not fetched before"]);
    says(
        &place.failure(place.web().env("FLOX_FLOXHUB_URL", "http://no-such-host.invalid")),
        &["FloxHub at http://no-such-host.invalid cannot be reached", "Could not resolve host"],
    );
}

#[test]
fn when_it_was_fetched_is_known() {
    peer!(git);
    let place = Place::new();
    place.generation(&mut place.web());
    let note = place.repository().join("fetched/web");
    let file = fs::File::options().write(true).open(note).unwrap();
    let then = file.metadata().unwrap().modified().unwrap() - Duration::from_secs(3 * 86_400 + 60);
    file.set_modified(then).unwrap();
    place.hub.behave(Behaviour::Status("502 Bad Gateway"));
    says(&place.generation(&mut place.web()).1, &["as it was fetched 3 d ago, generation 2"]);
    fs::remove_file(place.repository().join("fetched/web")).unwrap();
    says(&place.generation(&mut place.web()).1, &["as it was fetched before, generation 2"]);
    let said = run(place.web().env("_FLOX_ACTIVE_ENVIRONMENTS", "").arg("--json"));
    says(&said, &["! FloxHub cannot be reached"]);
}

fn truncate_packs(repository: &Path) {
    each_object(repository, |bytes| bytes.truncate(bytes.len() / 2));
}

fn flip_bits(repository: &Path) {
    each_object(repository, |bytes| bytes.iter_mut().skip(12).for_each(|byte| *byte ^= 0x55));
}

fn each_object(repository: &Path, damage: impl Fn(&mut Vec<u8>)) {
    let mut found = 0;
    for directory in names_in(&repository.join("objects")) {
        for file in names_in(&repository.join("objects").join(&directory)) {
            let file = repository.join("objects").join(&directory).join(file);
            let mut bytes = fs::read(&file).unwrap();
            damage(&mut bytes);
            fs::remove_file(&file).unwrap();
            fs::write(&file, bytes).unwrap();
            found += 1;
        }
    }
    assert!(found > 0);
}

fn remove(repository: &Path, path: &str) {
    let path = repository.join(path);
    if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
}

#[rstest]
#[case::a_file(|repository: &Path| { fs::remove_dir_all(repository).unwrap(); fs::write(repository, "x").unwrap(); })]
#[case::empty(|repository: &Path| { fs::remove_dir_all(repository).unwrap(); fs::create_dir(repository).unwrap(); })]
#[case::no_objects(|repository: &Path| remove(repository, "objects"))]
#[case::no_head(|repository: &Path| remove(repository, "HEAD"))]
#[case::truncated(truncate_packs)]
#[case::garbage(flip_bits)]
#[case::a_broken_ref(|repository: &Path| fs::write(repository.join("refs/heads/web"), "x").unwrap())]
#[case::a_broken_setting(|repository: &Path| fs::write(repository.join("config"), "[[[").unwrap())]
#[case::locked_by_one_that_was_killed(|repository: &Path| {
    fs::write(repository.join("refs/heads/web.lock"), "").unwrap();
    fs::write(repository.join("shallow.lock"), "").unwrap();
})]
fn what_is_kept_and_damaged_is_fetched_anew(#[case] damage: fn(&Path)) {
    peer!(git);
    let place = Place::new();
    place.generation(&mut place.web());
    damage(&place.repository());
    place.web.history(&[1, 2, 3]);
    assert_eq!(place.generation(&mut place.web()).0, "3");
    place.hub.behave(Behaviour::Status("503 Service Unavailable"));
    assert_eq!(place.generation(&mut place.web()).0, "3", "it is whole again");

    // Without FloxHub there is nothing to mend it from, and nothing wrong is made of it either.
    damage(&place.repository());
    let image = fs::read(place.sandbox.path("work/image.tar")).unwrap();
    let output = place.web().output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() || said.contains("✘ ERROR: "), "{said}");
    assert!(fs::read(place.sandbox.path("work/image.tar")).unwrap() == image, "{said}");
}

#[test]
fn a_run_that_is_killed_while_it_fetches_leaves_what_there_was() {
    peer!(git);
    let place = Place::new();
    for before in [false, true] {
        place.hub.behave(Behaviour::Silent);
        let mut child = asking(&place);
        child.kill().unwrap();
        child.wait().unwrap();
        place.hub.behave(Behaviour::Status("503 Service Unavailable"));
        let output = place.web().output().unwrap();
        assert_eq!(output.status.success(), before, "{}", String::from_utf8_lossy(&output.stderr));
        place.hub.behave(Behaviour::Login);
        assert_eq!(place.generation(&mut place.web()).0, "2");
        let kept: Vec<_> = names_in(&place.kept()).into_iter().filter(|name| !name.ends_with(".lock")).collect();
        assert_eq!(kept.len(), 1, "{kept:?}");
    }
}

#[test]
fn a_run_that_is_interrupted_ends_and_git_with_it() {
    peer!(git);
    let place = Place::new();
    place.hub.behave(Behaviour::Silent);
    let mut child = asking(&place);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    // The server notices that nobody is there any more: its connection comes to an end.
    while place.hub.is_asked_now() {
        thread::sleep(INTERVAL);
    }
}

#[test]
fn runs_that_fetch_at_once_do_each_other_no_harm() {
    peer!(git);
    let place = Place::new();
    place.hub.environment("me", "other").add(1, &place.local("other")).history(&[1]);
    let build = |n: usize| {
        let name = if n.is_multiple_of(2) { "me/web" } else { "me/other" };
        let mut command = place.layerhold();
        command.args(["containerize", "--store"]).arg(place.store.root()).args(["-r", name, "-f", &format!("{n}.tar")]);
        command.spawn().unwrap()
    };
    let children: Vec<_> = (0..6).map(build).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains('!'), "{said}");
    }
    let image = |n: usize| fs::read(place.sandbox.path(format!("work/{n}.tar"))).unwrap();
    for n in 2..6 {
        assert!(image(n) == image(n % 2), "{n}");
    }
    place.repository();
    place.hub.behave(Behaviour::Status("503 Service Unavailable"));
    assert_eq!(place.generation(&mut place.web()).0, "2");
    run(&mut place.command(&["-r", "me/other"]));
}

#[test]
fn without_a_cache_nothing_is_kept_and_nothing_left_behind() {
    peer!(git);
    let place = Place::new();
    let uncached = || {
        let mut command = place.web();
        command.env("LAYERHOLD_CACHE", "/dev/null/cache");
        command
    };
    assert_eq!(place.generation(&mut uncached()).0, "2");
    assert_eq!(names_in(&place.sandbox.path("tmp")), Vec::<String>::new());
    place.hub.behave(Behaviour::Status("503 Service Unavailable"));
    fs::remove_file(place.sandbox.path("work/image.tar")).unwrap();
    says(&place.failure(&mut uncached()), &["cannot be reached, and 'me/web' was not fetched before"]);

    // The layers' cache can be used, the place beside them cannot.
    place.hub.behave(Behaviour::Login);
    fs::write(place.sandbox.path("cache/fetched"), "").unwrap();
    let (generation, said) = place.generation(&mut place.web());
    assert_eq!(generation, "2");
    says(&said, &["! going on without keeping what is fetched: '[SANDBOX]/cache/fetched/floxmeta' cannot be used: "]);
    assert_eq!(names_in(&place.sandbox.path("tmp")), Vec::<String>::new());
}

#[test]
fn a_full_disk_keeps_nothing_and_the_image_is_made() {
    peer!(git);
    peer!(root);
    let place = Place::new();
    place.generation(&mut place.web());
    fs::remove_dir_all(place.kept()).unwrap();
    let fetched = place.sandbox.path("cache/fetched");
    let disk = Mounted::over(&fetched, &["-t", "tmpfs", "-o", "size=16k", "none"]);
    let (generation, said) = place.generation(&mut place.web());
    assert_eq!(generation, "2");
    says(&said, &["! going on without keeping what is fetched: ", "No space left on device"]);
    assert_eq!(names_in(&place.sandbox.path("tmp")), Vec::<String>::new());
    drop(disk);
    assert!(!place.generation(&mut place.web()).1.contains("without"));
}

#[test]
fn what_is_fetched_is_for_nobody_else_and_goes_with_the_cache() {
    peer!(git);
    let place = Place::new();
    // A cache of which only this is left is still one.
    fs::create_dir(place.sandbox.path("cache/fetched")).unwrap();
    let said = place.generation(&mut place.web()).1;
    assert!(!said.contains("going on without"), "{said}");
    assert_eq!(fs::metadata(place.kept()).unwrap().permissions().mode() & 0o777, 0o700);
    for args in [&["gc", "--max-size", "0"][..], &["verify"], &["ls"]] {
        run(place.layerhold().arg("cache").args(args));
    }
    place.repository();
    run(place.layerhold().args(["cache", "clear"]));
    assert_eq!(names_in(&place.kept()), Vec::<String>::new());
    assert_eq!(place.generation(&mut place.web()).0, "2");
}
