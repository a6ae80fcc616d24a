//! `[vars]` against their laws, and against a real bash.

use std::process::Command;

use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn vars(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// What bash exports for `name` after it ran the exports of `vars`; `None` where it complains.
fn by_bash(vars: &BTreeMap<String, String>, name: &str) -> Option<Vec<u8>> {
    let script = format!("{}printf '%s' \"${name}\"", exports(vars).ok()?);
    let output = Command::new("bash")
        .args(["--norc", "--noprofile", "-c", &script])
        .env_clear()
        .env("LC_ALL", "C.UTF-8")
        .output()
        .expect("these tests need bash");
    output.stderr.is_empty().then_some(output.stdout)
}

#[rstest]
#[case::by_name(&[("B", "x"), ("A", "y")], &["A", "B"])]
#[case::used_first(&[("A", "$B"), ("B", "${C}"), ("C", "$D/x")], &["C", "B", "A"])]
#[case::within_a_command(&[("A", "$(echo $B)"), ("B", "")], &["B", "A"])]
#[case::itself_is_no_circle(&[("PATH", "$A:$PATH"), ("A", "")], &["A", "PATH"])]
#[case::escaped_is_no_use(&[("A", "\\$B"), ("B", "")], &["A", "B"])]
#[case::a_circle_keeps_the_order_of_names(&[("C", "$A"), ("B", "$C"), ("A", "$B"), ("Z", "")], &["A", "B", "C", "Z"])]
#[case::what_uses_a_circle_comes_after_it(&[("A", "$C"), ("B", "$C"), ("C", "$B")], &["B", "C", "A"])]
fn variables_are_set_before_they_are_used(#[case] pairs: &[(&str, &str)], #[case] order: &[&str]) {
    assert_eq!(in_order(&vars(pairs)), order);
}

#[rstest]
#[case(r#"{"json": "yes"}"#, r#"{"json": "yes"}"#)]
#[case(r#"say \"hi\""#, r#"say "hi""#)]
#[case(r"C:\", r"C:\")]
#[case(r"a\\", r"a\")]
#[case(r"\n\$B", r"\n$B")]
#[case("5$ and $", "5$ and $")]
#[case("$\"B\"", "$\"B\"")]
#[case("$'B'", "$'B'")]
#[case("a\\\nb", "ab")]
#[case("$\\\nB", "b")]
#[case("two\nlines", "two\nlines")]
#[case("$B-${B}x", "b-bx")]
#[case("!x é", "!x é")]
fn static_values_are_what_bash_makes_of_them(#[case] value: &str, #[case] expected: &str) {
    let all = vars(&[("A", value), ("B", "b")]);
    assert_eq!(evaluate(value, &vars(&[("B", "b")])).as_deref(), Some(expected));
    assert_eq!(String::from_utf8(by_bash(&all, "A").unwrap()).unwrap(), expected);
}

#[rstest]
#[case("$(echo \"a b\" ')')", "a b )")]
#[case("`echo \"a  b\"`", "a  b")]
#[case("${B:-\"x y\"}${NO:-\"x y\"}", "bx y")]
#[case("${NO:-'}'}", "'}'")]
#[case("$((1 + (2)))", "3")]
#[case("$(echo \"$(echo \"in\")\") \"out\"", "in \"out\"")]
fn what_bash_must_run_is_not_static_and_keeps_its_quotes(#[case] value: &str, #[case] expected: &str) {
    assert_eq!(evaluate(value, &vars(&[("B", "b")])), None);
    let all = vars(&[("A", value), ("B", "b")]);
    assert_eq!(String::from_utf8(by_bash(&all, "A").unwrap()).unwrap(), expected);
}

#[test]
fn what_depends_on_something_unknown_is_unknown() {
    let mut known = vars(&[("PATH", "/bin"), ("LANG", "C")]);
    let all = vars(&[("A", "$HOME/a"), ("B", "$A/b"), ("C", "$PATH"), ("LANG", "$A"), ("SELF", "x$SELF")]);
    assert_eq!(evaluate_all(&all, &mut known), ["A", "B", "LANG", "SELF"]);
    assert_eq!(known, vars(&[("PATH", "/bin"), ("C", "/bin")]));
}

#[rstest]
#[case("no-name", "x", "'no-name' in [vars] is not a variable's name: letters, digits and '_' only, no digit first")]
#[case("A", "$(echo", "the value of 'A' in [vars] begins '$(' and does not end it")]
#[case("A", "${B", "the value of 'A' in [vars] begins '${' and does not end it")]
#[case("A", "${B:-it's}", "the value of 'A' in [vars] begins '${' and does not end it")]
#[case("A", "`", "the value of 'A' in [vars] begins '`' and does not end it")]
#[case("A", "a\0", "the value of 'A' in [vars] has a NUL character")]
fn what_bash_could_not_take_is_an_error(#[case] name: &str, #[case] value: &str, #[case] text: &str) {
    assert_eq!(exports(&vars(&[(name, value)])).unwrap_err().to_string(), text);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// The evaluation and a real bash agree on every value that the evaluation claims to know.
    #[test]
    fn evaluation_agrees_with_bash(value in r#"([ab_ /"'{}\[!é~]|\\|\$|\$\{|\}|\n|`|B|\$B|\$\{B\}){0,8}"#) {
        let known = vars(&[("B", "$b \"' \\"), ("FIRST", "1")]);
        prop_assume!(quote(&value).is_ok());
        if let Some(expected) = evaluate(&value, &known) {
            let mut all = vars(&[("A", value.as_str())]);
            all.insert("B".into(), "\\$b \\\"' \\\\".into());
            prop_assert_eq!(by_bash(&all, "A"), Some(expected.into_bytes()), "{:?}", value);
        }
    }

    /// Nothing in a value makes the scanner or the ordering fail or hang.
    #[test]
    fn any_text_is_read_to_its_end(values in prop::collection::btree_map("[A-C]", "\\PC{0,12}", 0..4)) {
        let order = in_order(&values);
        prop_assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), values.len());
        for value in values.values() {
            let _ = quote(value);
            let _ = evaluate(value, &values);
        }
    }

    #[test]
    fn a_quoted_word_is_itself_to_a_shell(text in "[^\0]{0,12}") {
        let output = Command::new("bash").args(["-c", &format!("printf %s {}", single_quoted(&text))]).output().unwrap();
        prop_assert_eq!(output.stdout, text.into_bytes());
    }
}
