//! The laws of the forest of links.

use std::time::{Duration, Instant};

use insta::assert_snapshot;
use proptest::prelude::*;

use super::super::rendered::tests::{Levels, Trees, store_path};
use super::*;
use crate::nix::Source;

fn package(name: &str, priority: u64) -> Package {
    Package { name: name.into(), path: store_path(name), priority: priority * PRIORITY_SCALE }
}

fn plant(trees: &Trees, packages: &[Package]) -> Result<Forest, ForestError> {
    plant_with_room(trees, packages, &BTreeSet::new())
}

/// The same of sources that show whole trees and of those that show directories.
fn plant_with_room(trees: &Trees, packages: &[Package], real: &BTreeSet<Vec<u8>>) -> Result<Forest, ForestError> {
    let plant =
        |source: &dyn Source| Forest::plant(&StoreView::new(source), packages, Propagation::UserEnvironment, real);
    let (whole, by_directory) = (plant(trees), plant(&Levels::of(trees)));
    let text = |error: &ForestError| error.to_string();
    assert_eq!(whole.as_ref().map_err(text), by_directory.as_ref().map_err(text));
    whole
}

/// One line per node: `path/` for a directory, `path -> target` with the store path cut down to its name.
fn show(forest: &Forest) -> String {
    let line = |(path, node): (&[u8], &ForestNode)| {
        let path = String::from_utf8_lossy(path).into_owned();
        match node {
            ForestNode::Directory => format!("{path}/\n"),
            ForestNode::Link(target) => {
                let target = String::from_utf8_lossy(target).into_owned();
                format!("{path} -> {}\n", &target["/nix/store/".len() + 33..])
            }
        }
    };
    forest.iter().map(line).collect()
}

#[test]
fn of_several_conflicts_the_least_deep_is_named() {
    let mut trees = Trees::default();
    for name in ["a", "b"] {
        trees.file(name, "bin/deep/x", name).file(name, "lib/y", name);
    }
    let error = plant(&trees, &[package("a", 5), package("b", 5)]).unwrap_err();
    assert!(error.to_string().starts_with("'a' conflicts with 'b': both have 'lib/y'"), "{error}");
}

#[test]
fn a_directory_of_one_package_is_one_link_and_a_shared_one_is_merged() {
    let mut trees = Trees::default();
    trees.program("a", "bin/a").file("a", "share/doc/a/x", "").file("a", "lib/deep/er/x", "");
    trees.program("b", "bin/b").file("b", "share/doc/b/y", "");
    let forest = plant(&trees, &[package("a", 5), package("b", 5)]).unwrap();
    assert_snapshot!(show(&forest), @r"
    bin/
    bin/a -> a/bin/a
    bin/b -> b/bin/b
    lib -> a/lib
    share/
    share/doc/
    share/doc/a -> a/share/doc/a
    share/doc/b -> b/share/doc/b
    ");
}

#[test]
fn the_lower_priority_number_wins_in_any_order() {
    let mut trees = Trees::default();
    trees.program("a", "bin/x").file("a", "etc", "a file");
    trees.program("b", "bin/x").directory("b", "etc/deep");
    trees.directory("c", "bin/x/y");
    let packages = [package("a", 5), package("b", 4), package("c", 6)];
    let expected = show(&plant(&trees, &packages).unwrap());
    assert_snapshot!(expected, @r"
    bin/
    bin/x -> b/bin/x
    etc -> b/etc
    ");
    for order in [[2, 1, 0], [1, 2, 0], [0, 2, 1]] {
        let packages = order.map(|n| packages[n].clone());
        assert_eq!(show(&plant(&trees, &packages).unwrap()), expected);
    }
}

#[test]
fn two_files_at_one_priority_are_an_error_that_says_how_to_choose() {
    let mut trees = Trees::default();
    trees.program("vim", "bin/vi").program("nvi", "bin/vi");
    let error = plant(&trees, &[package("vim", 5), package("nvi", 5)]).unwrap_err();
    assert_snapshot!(error, @"'nvi' conflicts with 'vim': both have 'bin/vi' at priority 5 ('/nix/store/gqmf4wjwiav84lhi3xsy9cda239yn2s0-nvi/bin/vi' and '/nix/store/jxr2c3xc3fjszwhj9d9ans7qi2j7w6k8-vim/bin/vi')");
    assert_snapshot!(error.hint().unwrap(), @"prefer 'nvi' with flox edit, then in [install]: nvi.priority = 4; or remove one of them: flox uninstall vim");
    let error = plant(&trees, &[package("vim", 0), package("nvi", 0)]).unwrap_err();
    assert_snapshot!(error.hint().unwrap(), @"prefer 'nvi' with flox edit, then in [install]: vim.priority = 1; or remove one of them: flox uninstall vim");
    let outputs = ["vim", "nvi"].map(|path| Package { name: "editor".into(), ..package(path, 5) });
    let error = plant(&trees, &outputs).unwrap_err();
    assert_snapshot!(error.hint().unwrap(), @r#"choose fewer of its outputs: flox edit, then in [install]: editor.outputs = ["out"]"#);
}

#[test]
fn a_file_against_a_directory_at_one_priority_is_an_error() {
    let mut trees = Trees::default();
    trees.file("a", "share/x", "").directory("b", "share/x/y");
    let error = plant(&trees, &[package("a", 5), package("b", 5)]).unwrap_err();
    assert!(matches!(&error, ForestError::Conflict(it) if it.path == "share/x"), "{error}");
}

#[test]
fn what_leads_to_the_same_place_is_no_conflict_and_the_thing_itself_is_linked() {
    let mut trees = Trees::default();
    trees.program("z", "bin/tool").file("z", "lib/x", "");
    let z = store_path("z");
    trees.link("a", "bin/tool", &format!("{z}/bin/tool")).link("a", "lib", &format!("{z}/lib"));
    trees.link("b", "bin/tool", &format!("{z}/bin/tool")).link("b", "lib", &format!("{z}/lib"));
    assert_snapshot!(show(&plant(&trees, &[package("a", 5), package("b", 5)]).unwrap()), @r"
    bin/
    bin/tool -> a/bin/tool
    lib -> a/lib
    ");
    assert_snapshot!(show(&plant(&trees, &[package("a", 5), package("z", 5)]).unwrap()), @r"
    bin/
    bin/tool -> z/bin/tool
    lib -> z/lib
    ");
}

#[test]
fn links_to_directories_are_merged_like_directories() {
    let mut trees = Trees::default();
    trees.file("other", "lib/one.so", "");
    trees.link("a", "lib", &format!("{}/lib", store_path("other"))).link("a", "lib64", "lib");
    trees.file("b", "lib/two.so", "").link("b", "lib64", "./lib/");
    assert_snapshot!(show(&plant(&trees, &[package("a", 5), package("b", 5)]).unwrap()), @r"
    lib/
    lib/one.so -> a/lib/one.so
    lib/two.so -> b/lib/two.so
    lib64/
    lib64/one.so -> a/lib64/one.so
    lib64/two.so -> b/lib64/two.so
    ");
}

#[test]
fn links_in_a_circle_and_links_to_nowhere_come_to_an_end() {
    let mut trees = Trees::default();
    for name in ["a", "b"] {
        trees.link(name, "share/up", "../share").file(name, &format!("share/{name}"), "");
        trees.link(name, "gone", "/run/nothing").link(name, "self", "self");
    }
    let error = plant(&trees, &[package("a", 5), package("b", 5)]).unwrap_err();
    assert!(matches!(&error, ForestError::Conflict(it) if it.path == "self"), "{error}");
    assert_snapshot!(show(&plant(&trees, &[package("a", 5), package("b", 6)]).unwrap()), @r"
    gone -> a/gone
    self -> a/self
    share/
    share/a -> a/share/a
    share/b -> b/share/b
    share/up -> a/share/up
    ");
}

#[test]
fn what_disturbs_in_a_merged_tree_is_left_out() {
    let mut trees = Trees::default();
    for name in ["a", "b"] {
        for path in [
            "nix-support/setup-hook",
            "propagated-build-inputs",
            "share/info/dir",
            "share/mime/mime.cache",
            "lib/perl5/perllocal.pod",
            "var/log",
        ] {
            trees.file(name, path, name);
        }
        trees.file(name, &format!("share/mime/packages/{name}.xml"), "").file(name, &format!("share/info/{name}"), "");
    }
    assert_snapshot!(show(&plant(&trees, &[package("a", 5), package("b", 5)]).unwrap()), @r"
    lib/
    lib/perl5/
    share/
    share/info/
    share/info/a -> a/share/info/a
    share/info/b -> b/share/info/b
    share/mime/
    share/mime/packages/
    share/mime/packages/a.xml -> a/share/mime/packages/a.xml
    share/mime/packages/b.xml -> b/share/mime/packages/b.xml
    var/
    ");
}

#[test]
fn propagated_packages_follow_and_never_conflict() {
    let mut trees = Trees::default();
    let words = format!(" {} {}\n", store_path("dep"), store_path("top"));
    trees.program("top", "bin/x").file("top", "nix-support/propagated-user-env-packages", &words);
    trees.program("dep", "bin/x").program("dep", "bin/y");
    trees.file("dep", "nix-support/propagated-user-env-packages", &store_path("deeper").to_string());
    trees.program("deeper", "bin/y").program("deeper", "bin/z");
    trees.file("top", "nix-support/propagated-build-inputs", &store_path("headers").to_string());
    trees.file("headers", "include/h", "");
    assert_snapshot!(show(&plant(&trees, &[package("top", 9)]).unwrap()), @r"
    bin/
    bin/x -> top/bin/x
    bin/y -> dep/bin/y
    bin/z -> deeper/bin/z
    ");
    let dev = Forest::plant(&StoreView::new(&trees), &[package("top", 9)], Propagation::BuildInputs, &BTreeSet::new())
        .unwrap();
    assert_eq!(
        dev.0.get(b"include".as_slice()),
        Some(&ForestNode::Link(format!("{}/include", store_path("headers")).into()))
    );
    trees.file("top", "nix-support/propagated-user-env-packages", "/usr");
    let error = plant(&trees, &[package("top", 9)]).unwrap_err();
    assert_eq!(error.to_string(), format!("'{}' propagates '/usr', which is not a store path", store_path("top")));
}

#[test]
fn a_store_path_that_is_a_file_or_missing_is_an_error() {
    let mut trees = Trees::default();
    trees.file("script", "", "text");
    let error = plant(&trees, &[package("script", 5)]).unwrap_err();
    let path = store_path("script");
    assert_eq!(
        error.to_string(),
        format!("'{path}' ('script') is not a directory: it cannot be part of an environment")
    );
    assert_eq!(error.hint().unwrap(), "remove it: flox uninstall script");
    let error = plant(&trees, &[package("absent", 5)]).unwrap_err();
    assert_eq!(error.to_string(), format!("'{}' is not in the store", store_path("absent")));
}

#[test]
fn room_is_made_where_it_is_asked_for() {
    let mut trees = Trees::default();
    trees.file("a", "etc/ssl/certs/ca-bundle.crt", "").file("a", "etc/conf", "").file("a", "run", "");
    let real = ["etc", "etc/ssl", "run", "var"].map(|path| path.as_bytes().to_vec()).into();
    let forest = plant_with_room(&trees, &[package("a", 5)], &real).unwrap();
    assert_snapshot!(show(&forest), @r"
    etc/
    etc/conf -> a/etc/conf
    etc/ssl/
    etc/ssl/certs -> a/etc/ssl/certs
    run -> a/run
    ");
}

#[test]
fn fifty_thousand_entries_are_merged_in_seconds() {
    let mut trees = Trees::default();
    for n in 0..50_000 {
        trees.file(["a", "b"][n % 2], &format!("share/{}/{n}", n / 100), "");
    }
    let start = Instant::now();
    let forest = plant(&trees, &[package("a", 5), package("b", 5)]).unwrap();
    assert_eq!(forest.iter().count(), 50_000 + 500 + 1);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

proptest! {
    /// Against the plainest telling of the rule: every file that some package has is reached, and it is the file of
    /// the best package that has it.
    #[test]
    fn each_file_comes_from_the_best_package_that_has_it(
        files in prop::collection::btree_set((0usize..4, "[ab](/[cd](/[ef])?)?x"), 1..24),
        order in Just(vec![0usize, 1, 2, 3]).prop_shuffle(),
    ) {
        let names = ["p", "q", "r", "s"];
        let mut trees = Trees::default();
        for name in names {
            trees.directory(name, "");
        }
        let mut best: BTreeMap<&str, usize> = BTreeMap::new();
        for (package, file) in &files {
            trees.file(names[*package], file, "");
            best.entry(file).and_modify(|best| *best = (*best).min(*package)).or_insert(*package);
        }
        let packages: Vec<_> = order.iter().map(|&n| package(names[n], n as u64)).collect();
        let forest = plant(&trees, &packages).unwrap();
        for (file, package) in best {
            // The link on the way is the file itself or a directory above it.
            let mut ends = file.match_indices('/').map(|(at, _)| at).chain([file.len()]);
            let (end, target) = ends
                .find_map(|end| match forest.0.get(&file.as_bytes()[..end]) {
                    Some(ForestNode::Link(target)) => Some((end, target)),
                    _ => None,
                })
                .expect("the file is reached");
            let reached = [target, &file.as_bytes()[end..]].concat();
            prop_assert_eq!(reached, format!("{}/{file}", store_path(names[package])).into_bytes());
        }
    }
}
