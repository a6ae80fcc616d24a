//! `metadata.json` at the top of an environment's branch on FloxHub: which generation is the current one.

use std::path::Path;

use super::document::{Cursor, Document, Value, parse_json};
use super::invalid_file::{InvalidFile, Problem};

/// The current generation; `None` for an environment that has none yet.
pub(super) fn current_generation(file: &Path, text: &[u8]) -> Result<Option<u64>, InvalidFile> {
    let document = Document::json(file, &parse_json(file, text)?);
    let metadata = document.root();
    // The first versions of Flox wrote no number.
    let version = metadata.optional("version", |version| Ok((version.integer()?, version.clone())))?;
    match version {
        None | Some((1, _)) => metadata.optional("currentGen", generation),
        // Each entry is a change: a new generation, or a switch to an older one.
        Some((2, _)) => match metadata.need("history")?.elements()?.last() {
            Some(last) => generation(&last.need("current_generation")?).map(Some),
            None => Ok(None),
        },
        Some((found, version)) => {
            Err(version.fail(Problem::UnknownVersion { found: found.to_string(), known: &[1, 2] }))
        }
    }
}

/// A generation's number, which Flox writes as a text.
fn generation(value: &Cursor<'_>) -> Result<u64, InvalidFile> {
    let number = match &value.node().value {
        Value::Integer(number) => u64::try_from(*number).map_err(|_| number.to_string()),
        _ => {
            let text = value.string()?;
            text.parse().map_err(|_| text)
        }
    };
    number.map_err(|found| value.fail(Problem::Generation(found)))
}

/// Numbers of generations as people write them: `1-3, 5`.
pub(super) fn in_words(ascending: &[u64]) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &number in ascending {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let word = |(first, last): &(u64, u64)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    runs.iter().map(word).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn current(text: &str) -> Result<Option<u64>, String> {
        current_generation(Path::new("me/web:metadata.json"), text.as_bytes()).map_err(|error| error.to_string())
    }

    #[rstest]
    #[case::version_1(r#"{"version":1,"currentGen":"3","generations":{"1":{},"3":{}}}"#, Some(3))]
    #[case::version_1_unsaid(r#"{"currentGen":"3","generations":{}}"#, Some(3))]
    #[case::version_1_as_a_number(r#"{"version":1,"currentGen":3}"#, Some(3))]
    #[case::none_in_version_1(r#"{"version":1,"currentGen":null,"generations":{}}"#, None)]
    #[case::version_2(
        r#"{"version":2,"total_generations":2,"history":[
            {"kind":"import","current_generation":"1"},
            {"kind":"install","previous_generation":"1","current_generation":"2"}]}"#,
        Some(2)
    )]
    #[case::rolled_back(
        r#"{"version":2,"total_generations":2,"history":[{"current_generation":"2"},{"current_generation":"1"}]}"#,
        Some(1)
    )]
    #[case::none_in_version_2(r#"{"version":2,"total_generations":0,"history":[]}"#, None)]
    fn the_current_generation(#[case] text: &str, #[case] generation: Option<u64>) {
        assert_eq!(current(text).unwrap(), generation);
    }

    #[rstest]
    #[case("", "me/web:metadata.json:1:0: EOF while parsing a value")]
    #[case("[]", "me/web:metadata.json: expected a table, found an array")]
    #[case(
        r#"{"version":3}"#,
        "me/web:metadata.json: version: version 3 of this format is not known; only versions 1 and 2 are"
    )]
    #[case(r#"{"version":2}"#, "me/web:metadata.json: the key 'history' is missing")]
    #[case(
        r#"{"version":2,"history":[{}]}"#,
        "me/web:metadata.json: history[0]: the key 'current_generation' is missing"
    )]
    #[case(r#"{"currentGen":"x"}"#, "me/web:metadata.json: currentGen: 'x' is not the number of a generation")]
    #[case(r#"{"currentGen":-1}"#, "me/web:metadata.json: currentGen: '-1' is not the number of a generation")]
    #[case(r#"{"currentGen":[]}"#, "me/web:metadata.json: currentGen: expected a string, found an array")]
    fn what_is_damaged_says_where(#[case] text: &str, #[case] message: &str) {
        assert_eq!(current(text).unwrap_err(), message);
    }

    #[rstest]
    #[case(&[], "")]
    #[case(&[1], "1")]
    #[case(&[1, 2, 3, 5, 8, 9], "1-3, 5, 8-9")]
    fn numbers_in_words(#[case] numbers: &[u64], #[case] words: &str) {
        assert_eq!(in_words(numbers), words);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,40}|\\{\"version\":[0-9]{1,20},\"history\":\\[.{0,9}\\]\\}") {
            let _ = current(&text);
        }
    }
}
