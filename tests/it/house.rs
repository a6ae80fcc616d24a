//! The repository's own rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules, from the vocabulary to the edge. Each uses only those before it.
const ORDER: &[&str] = &[
    "sha256",
    "blob",
    "crash",
    "event",
    "host",
    "outlet",
    "child",
    "parallel",
    "http",
    "registry",
    "rootfs",
    "nix",
    "substitute",
    "environment",
    "catalog",
    "plan",
    "pack",
    "store",
    "share",
    "memo",
    "image",
    "delivery",
    "proxy",
    "layers",
    "error",
    "containerize",
    "cli",
];

/// What a module does not know though it comes before, and why that is worth keeping.
const STRANGERS: &[(&str, &[&str])] = &[
    // Layers are made of store paths; how those were chosen is none of packing's business.
    ("pack", &["environment", "plan"]),
    // The layer store knows keys and blobs.
    ("store", &["nix", "rootfs", "environment", "plan", "pack"]),
    // Images are described, and go to their target, without a look into layers: of a store path the name is known.
    ("image", &["rootfs", "plan", "pack", "store", "memo"]),
    // What runs in a container is this tool again; of what it makes there, this module knows no more than that it is an
    // archive.
    ("proxy", &["nix", "rootfs", "environment", "plan", "pack", "store", "memo", "image"]),
    // A shared cache knows keys, records and blobs.
    ("share", &["rootfs", "environment", "plan", "pack", "memo", "image"]),
    ("delivery", &["nix", "rootfs", "environment", "plan", "pack", "store", "memo"]),
];

struct SourceFile {
    path: PathBuf,
    text: String,
    /// Whether it is compiled for tests alone.
    is_tests: bool,
}

impl SourceFile {
    /// The module at the top of the crate that the file belongs to; `None` for `lib.rs` and `main.rs`.
    fn module(&self) -> Option<String> {
        let first = self.path.strip_prefix(root().join("src")).unwrap().components().next().unwrap();
        let name = Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned();
        (name != "lib" && name != "main").then_some(name)
    }

    /// The lines that are code, numbered.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(at, line)| (at + 1, line)).filter(|(_, line)| !is_comment(line))
    }

    /// The lines of code that are not tests: those outside of items for tests, none of a file of tests.
    fn product(&self) -> Vec<(usize, &str)> {
        let text = if self.is_tests { "" } else { &self.text };
        outside_tests(text).into_iter().filter(|(_, line)| !is_comment(line)).collect()
    }

    fn place(&self, line: usize) -> String {
        format!("{}:{line}", self.path.strip_prefix(root()).unwrap().display())
    }
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// The lines of a text, numbered, without the items that are compiled for tests alone. An item that rustfmt has laid out
/// ends on its first line, or with a line that closes it and is indented as it is.
fn outside_tests(text: &str) -> Vec<(usize, &str)> {
    let mut outside = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let code = line.trim_start();
        if !code.starts_with("#[cfg(test)]") {
            outside.push((number, line));
            continue;
        }
        let indent = &line[..line.len() - code.len()];
        let item = |line: &&str| !line.trim_start().starts_with("#[") && !is_comment(line);
        let first = lines.by_ref().map(|(_, line)| line).find(item).unwrap_or_default();
        if first.ends_with([';', '}', ',']) {
            continue;
        }
        let closes = |line: &str| line.strip_prefix(indent).is_some_and(|code| code.starts_with(['}', ')', ']']));
        let _ = lines.find(|(_, line)| closes(line) && line.ends_with([';', '}', ',']));
    }
    outside
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(dir: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() { files_below(&path, files) } else { files.push(path) }
    }
}

fn sources() -> Vec<SourceFile> {
    let mut files = Vec::new();
    files_below(&root().join("src"), &mut files);
    files.sort();
    let texts: Vec<_> = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let files: Vec<_> = files.into_iter().zip(texts).collect();
    let of_tests: Vec<_> = files.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    let is_tests = |path: &Path| of_tests.iter().any(|module| path.with_extension("").starts_with(module));
    let files: Vec<_> =
        files.into_iter().map(|(path, text)| SourceFile { is_tests: is_tests(&path), path, text }).collect();
    assert!(files.len() > 10);
    files
}

/// Where the modules of tests lie that a file declares, without `.rs`; those below them lie in a directory of that name.
fn test_modules(file: &Path, text: &str) -> Vec<PathBuf> {
    let (place, stem) = (file.parent().unwrap(), file.file_stem().unwrap().to_str().unwrap());
    let own = if ["mod", "lib", "main"].contains(&stem) { place.to_owned() } else { place.join(stem) };
    let behind = text.split("#[cfg(test)]\n").skip(1);
    let declared = behind.filter_map(|behind| {
        let first = behind.lines().next()?.trim();
        match first.strip_prefix("#[path = \"") {
            Some(path) => Some(place.join(path.strip_suffix(".rs\"]")?)),
            None => Some(own.join(first.split_once("mod ")?.1.strip_suffix(';')?)),
        }
    });
    declared.collect()
}

/// The modules that a line of code names as `crate::module` or `crate::{a, b::c}`.
fn modules_named(text: &str) -> BTreeSet<String> {
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let mut named = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let behind = &text[at + "crate::".len()..];
        if text[..at].ends_with(|character: char| is_name(character) || character == '$') {
            continue;
        }
        let Some(group) = behind.strip_prefix('{') else {
            named.insert(behind.chars().take_while(|&character| is_name(character)).collect());
            continue;
        };
        let (mut depth, mut name, mut first) = (1, String::new(), true);
        for character in group.chars() {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                ':' if depth == 1 => first = false,
                character if depth == 1 && first && is_name(character) => name.push(character),
                _ => {}
            }
            if (character == ',' && depth == 1) || depth == 0 {
                named.insert(std::mem::take(&mut name));
                first = true;
            }
            if depth == 0 {
                break;
            }
        }
    }
    named.remove("");
    named
}

#[test]
fn names_of_modules_are_found_in_every_form_of_use() {
    let named = |text: &str| modules_named(text).into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(named("use crate::blob::{Digest, DiffId};"), "blob");
    assert_eq!(named("use crate::{\n    blob::{a, b},\n    plan::{self, Plan},\n    event,\n};"), "blob event plan");
    assert_eq!(named("let x = crate::store::open(crate::nix::path());"), "nix store");
    assert_eq!(named("macro!($crate::peers::x)"), "");
}

#[test]
fn what_stands_behind_a_test_is_product_again() {
    let text = "\
mod a;
#[cfg(test)]
mod b;
#[cfg(test)]
#[path = \"c_tests.rs\"]
pub(crate) mod c;
mod d;

fn e() {
    #[cfg(test)]
    f(
        1,
    );
    g();
}

#[cfg(test)]
mod tests {
    fn h() {
    }
}

fn i() {}
";
    let lines = outside_tests(text).into_iter().filter(|(_, line)| !line.is_empty());
    let lines: Vec<_> = lines.map(|(number, line)| format!("{number} {line}")).collect();
    assert_eq!(lines, ["1 mod a;", "7 mod d;", "9 fn e() {", "14     g();", "15 }", "23 fn i() {}"]);
}

#[test]
fn modules_of_tests_are_known_by_where_they_lie() {
    let text = "mod a;\n#[cfg(test)]\npub(crate) mod b;\n#[cfg(test)]\n#[path = \"c_tests.rs\"]\nmod tests;\n";
    let modules = |file: &str| test_modules(Path::new(file), text);
    assert_eq!(modules("src/x/mod.rs"), [Path::new("src/x/b"), Path::new("src/x/c_tests")]);
    assert_eq!(modules("src/x/y.rs"), [Path::new("src/x/y/b"), Path::new("src/x/c_tests")]);
    let files = sources();
    let is_tests = |path: &str| files.iter().find(|file| file.path == root().join(path)).unwrap().is_tests;
    assert!(is_tests("src/nix/memory.rs") && is_tests("src/nix/walk/tests.rs"));
    assert!(!is_tests("src/store/memory.rs") && !is_tests("src/substitute/memory.rs"));
}

/// A word that no line may have is of use only if it is in the forms in which what it stands for is written.
#[test]
fn the_environment_is_found_in_every_form_of_use() {
    for line in [
        "std::env::var(\"A\")",
        "env::var_os(\"A\")",
        "use std::env::{self, var_os};",
        "for variable in env::vars_os() {}",
        "env::current_dir()",
        "env::set_var(\"A\", \"b\")",
    ] {
        assert!(WORLD.iter().any(|word| line.contains(word)), "{line}");
    }
    for line in ["environment::vars::Vars", "std::env::split_paths(path?)", "env!(\"CARGO_MANIFEST_DIR\")"] {
        assert!(!WORLD.iter().any(|word| line.contains(word)), "{line}");
    }
}

#[test]
fn the_way_through_the_code_lists_all_modules_in_their_order() {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | ").map(|(module, _)| module));
    assert_eq!(rows.collect::<Vec<_>>(), ORDER);
}

#[test]
fn imports_point_one_way() {
    let rank = |module: &str| ORDER.iter().position(|name| *name == module);
    let mut wrong = Vec::new();
    for file in sources() {
        let Some(module) = file.module() else { continue };
        let Some(own) = rank(&module) else {
            wrong.push(format!("{}: the module has no place in ORDER (tests/it/house.rs)", file.place(1)));
            continue;
        };
        let code: String = file.code().flat_map(|(_, line)| [line, "\n"]).collect();
        let strangers = STRANGERS.iter().find(|(name, _)| *name == module).map_or(&[][..], |(_, strangers)| strangers);
        for named in modules_named(&code) {
            if rank(&named).is_some_and(|other| other > own) || strangers.contains(&&*named) {
                wrong.push(format!("{}: {module} must not use {named}", file.place(1)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Lines of the product, in the modules that `applies` picks, that have one of `words` in them.
fn lines_with(words: &[&str], applies: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for file in sources() {
        if !file.module().is_some_and(|module| applies(&module)) {
            continue;
        }
        for (number, line) in file.product() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                found.push(format!("{}: {word}", file.place(number)));
            }
        }
    }
    found
}

/// What the world around shows in code.
const WORLD: &[&str] = &[
    "env::var",
    "env::{",
    "env::set_var",
    "env::remove_var",
    "env::current_dir",
    "env::set_current_dir",
    "env::temp_dir",
    "env::args",
    "env::home_dir",
    "SystemTime::now",
    "Instant::now",
    "process::exit",
    "stdout()",
    "stderr()",
    "stdin()",
    "println!",
    "eprint!",
];

#[test]
fn only_the_command_line_touches_the_world_around() {
    assert_eq!(lines_with(WORLD, |module| module != "cli"), Vec::<String>::new());
    assert!(!lines_with(WORLD, |module| module == "cli").is_empty());
}

#[test]
fn only_one_module_knows_what_only_linux_has() {
    let words = [
        "target_os",
        "os::linux",
        "\"/proc",
        "\"/sys",
        // `/dev/null` is everywhere (POSIX, XBD 10.1).
        "\"/dev/f",
        "\"/dev/s",
        "RawDir",
        "TMPFILE",
        "O_PATH",
        "OFlags::PATH",
        "statx",
        "fallocate",
        "setpipe",
        "copy_file_range",
        "renameat",
        "syncfs",
        "sendfile",
        "splice",
        "memfd",
        "getdents",
        "openat2",
        "st_dev",
    ];
    assert_eq!(lines_with(&words, |module| module != "host"), Vec::<String>::new());
    assert!(!lines_with(&words, |module| module == "host").is_empty());
}

#[test]
fn the_layer_plan_does_no_input_or_output() {
    assert_eq!(
        lines_with(&["std::fs", "std::io", "rustix", "File::"], |module| module == "plan"),
        Vec::<String>::new()
    );
}

#[test]
fn the_layer_store_knows_no_archives() {
    assert_eq!(lines_with(&["tar::", "oci_spec"], |module| module == "store"), Vec::<String>::new());
}

#[test]
fn nothing_is_left_for_later() {
    let words = ["todo!", "unimplemented!", "TODO", "FIXME", "XXX"];
    let mut found = Vec::new();
    for file in sources() {
        for (at, line) in file.text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(file.place(at + 1));
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn files_are_short_and_named_for_what_they_hold() {
    let mut files = Vec::new();
    for dir in ["src", "tests", "benches", "scripts"] {
        files_below(&root().join(dir), &mut files);
    }
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy();
        assert!(!name.contains("util") && !["helpers", "misc", "common"].contains(&&*name), "{}", file.display());
        if file.extension().is_some_and(|extension| extension == "rs") {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            assert!(lines < 600, "{} has {lines} lines", file.display());
        }
    }
}

#[test]
fn every_test_file_takes_part() {
    let main = fs::read_to_string(root().join("tests/it/main.rs")).unwrap();
    for entry in fs::read_dir(root().join("tests/it")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if name != "main" && path.extension().is_some_and(|extension| extension == "rs") {
            assert!(main.contains(&format!("mod {name};")), "tests/it/main.rs lacks mod {name}");
        }
    }
    for entry in fs::read_dir(root().join("tests")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(name == "it" || name == "fuzz", "integration tests are one binary, fuzz targets another workspace");
    }
}

/// In CI a test whose peer is absent fails, whichever it is.
#[test]
fn one_place_says_what_becomes_of_a_test_that_cannot_run() {
    let mut files = Vec::new();
    ["src", "tests/it"].iter().for_each(|dir| files_below(&root().join(dir), &mut files));
    let question = format!("(\"{}\")", "CI");
    files.retain(|file| fs::read_to_string(file).unwrap().contains(&question));
    assert_eq!(files, [root().join("tests/it/skips.rs")]);
}

#[test]
fn every_dependency_has_a_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let mut tables = 0;
    // Also those of one kind of system.
    for table in manifest.split("\n[").filter(|table| !table.starts_with("dev-")) {
        let Some((_, dependencies)) = table.split_once("dependencies]\n") else { continue };
        tables += 1;
        for line in dependencies.lines().filter(|line| line.contains('=')) {
            assert!(line.contains(" # "), "no reason: {line}");
        }
    }
    assert_eq!(tables, 2);
}

#[test]
fn the_readme_begins_with_commands_that_are_there() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for script in ["scripts/demo", "scripts/test"] {
        assert!(readme.contains(script), "README.md does not name {script}");
        assert!(root().join(script).is_file());
    }
}

#[test]
fn figures_of_the_readme_are_those_of_the_benchmarks() {
    let [readme, benchmarks] =
        ["README.md", "docs/benchmarks.md"].map(|file| fs::read_to_string(root().join(file)).unwrap());
    let (_, rest) = readme.split_once("<!-- written by scripts/bench -->\n").unwrap();
    let (table, _) = rest.split_once("<!-- that is all -->\n").unwrap();
    for row in table.lines().skip(2) {
        let words: Vec<&str> = row.split([' ', ',']).collect();
        let seconds: Vec<&str> = words.windows(2).filter(|pair| pair[1] == "s").map(|pair| pair[0]).collect();
        assert!(seconds.len() > 1, "nothing to compare with: {row}");
        for figure in seconds {
            assert!(benchmarks.contains(&format!("| {figure} |")), "{figure} s is in no benchmark: {row}");
        }
    }
    assert!(table.lines().count() > 2);
}
