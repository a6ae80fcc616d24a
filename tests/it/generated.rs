//! What is generated from the definition of the command line: the manual page, and completions that shells take.

use std::collections::BTreeSet;
use std::process::Command;

use crate::peers::find_program;
use crate::sandbox::Sandbox;

fn printed(args: &[&str]) -> String {
    let output = Sandbox::new().cmd().args(args).assert().success().get_output().clone();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).unwrap()
}

/// The long options that a text of help defines: those at the begin of a line.
fn options(help: &str) -> BTreeSet<String> {
    let defined = help.lines().filter(|line| line.trim_start().starts_with('-'));
    let words = defined.flat_map(|line| line.split([' ', ',', '[', '=']).take_while(|word| !word.starts_with('<')));
    words.filter(|word| word.starts_with("--")).map(|word| word.trim_end_matches('.').to_owned()).collect()
}

/// The commands that a short text of help lists.
fn commands(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let named = listed.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    named.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

/// Looks for the page of a command and of those below it: it defines all of the command's options.
fn has_pages(manual: &str, path: &[&str]) -> usize {
    let title = [&["layerhold"], path].concat().join("-");
    let mut pages = manual.split(".TH ").filter(|page| page.starts_with(&format!("{title} 1 ")));
    let page = pages.next().unwrap_or_else(|| panic!("there is no page {title}(1)"));
    let options = options(&printed(&[path, &["--help"]].concat()));
    assert!(options.contains("--help"), "{path:?}: {options:?}");
    for option in options {
        // A hyphen that is one, to roff (groff_char(7)).
        let defined = format!("\\fB{}\\fR", option.replace('-', "\\-"));
        assert!(page.contains(&defined), "{title}(1) lacks {option}");
    }
    let below = commands(&printed(&[path, &["-h"]].concat()));
    1 + below.iter().map(|command| has_pages(manual, &[path, &[command]].concat())).sum::<usize>()
}

#[test]
fn the_manual_has_a_page_for_every_command_with_every_option() {
    let manual = printed(&["man"]);
    let pages = has_pages(&manual, &[]);
    assert_eq!(pages, manual.lines().filter(|line| line.starts_with(".TH ")).count());
    assert!(pages > 15, "{pages}");
    assert!(!manual.contains("in\\-proxy"), "that is not for people");
    // It is the same on any machine, whatever the environment holds.
    let sandbox = Sandbox::new();
    let mut command = sandbox.cmd();
    command.arg("man").envs([("LAYERHOLD_STORE", "/elsewhere"), ("SOURCE_DATE_EPOCH", "5")]);
    assert!(command.assert().success().get_output().stdout == manual.as_bytes());
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completions", shell]);
        for word in ["containerize", "completions", "compression", "platform", "previous", "cache-from"] {
            assert!(script.contains(word), "{shell} does not know '{word}'");
        }
        assert!(!script.contains("in-proxy"), "{shell} offers what is not for people");
    }
    Sandbox::new().cmd().args(["completions", "csh"]).assert().code(2);
}

#[test]
fn bash_completes_commands_options_and_values() {
    let bash = find_program("bash").unwrap();
    let script = printed(&["completions", "bash"]);
    let completed = |words: &[&str]| -> Vec<String> {
        let ask = "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); last=${COMP_WORDS[COMP_CWORD]}; \
                   complete -p layerhold >/dev/null && \
                   _layerhold layerhold \"$last\" \"${COMP_WORDS[COMP_CWORD - 1]}\" && printf '%s\\n' \"${COMPREPLY[@]}\"";
        let text = format!("{script}\nCOMP_WORDS=(layerhold \"$@\"); {ask}");
        let output =
            Command::new(&bash).args(["--norc", "-c", &text, "bash"]).args(words).env_clear().output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    };
    assert_eq!(completed(&["conta"]), ["containerize"]);
    assert_eq!(completed(&["cache", "ver"]), ["verify"]);
    assert_eq!(completed(&["containerize", "--comp"]), ["--compression"]);
    assert_eq!(completed(&["containerize", "--mode", ""]), ["dev", "run"]);
}
