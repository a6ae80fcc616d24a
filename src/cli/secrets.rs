//! What is not repeated of what a user has written: logins in addresses, and secret keys.

use crate::http::without_login;

/// The length of a secret key, 64 bytes in base-64, without what fills it up.
const SECRET_KEY: usize = 86;

/// A word without its login or secret key; of a key its name stays.
pub(super) fn without(word: &str) -> String {
    without_keys(&without_login(word))
}

fn without_keys(text: &str) -> String {
    let is_of_key = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    let (mut told, mut rest) = (String::new(), text);
    while let Some((name, behind)) = rest.split_once(':') {
        let (key, others) = behind.split_at(behind.find(|c| !is_of_key(c)).unwrap_or(behind.len()));
        told.push_str(name);
        told.push(':');
        told.push_str(if key.len() < SECRET_KEY { key } else { "..." });
        rest = others;
    }
    told + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_and_secret_keys_are_left_out_and_all_else_stays() {
        let secret = format!("{}==", "Aa0+/z".repeat(15));
        assert!(secret.len() >= SECRET_KEY);
        let public = "team:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
        for (text, told) in [
            ("", String::new()),
            ("a: b:c\n\t::", "a: b:c\n\t::".to_owned()),
            (&format!("trust = [\"team:{secret}\"]\n  ^"), "trust = [\"team:...\"]\n  ^".to_owned()),
            (&format!("'a:{secret}' b:{secret}"), "'a:...' b:...".to_owned()),
            (public, public.to_owned()),
            ("https://user:pass@registry.example/x", "https://...@registry.example/x".to_owned()),
        ] {
            assert_eq!(without(text), told);
        }
    }
}
