//! `containerize.config.stop-signal`: a signal as container runtimes read it.

use std::fmt;

use super::InvalidConfig;

/// Linux's signals by name, without `SIG`, as Docker and Podman know them; the real-time ones are counted.
const NAMES: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// A signal, written as `config.StopSignal` wants it: `SIGNAME`, `SIGRTMIN+3` or a number.
///
/// Runtimes read the text when a container is stopped; a wrong one in the image would show only there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StopSignal(String);

impl StopSignal {
    /// Reads a name, with or without `SIG`, in any case, or a number from 1 to 64.
    pub(super) fn parse(text: &str) -> Result<Self, InvalidConfig> {
        let unknown = || InvalidConfig::Signal { text: text.to_owned() };
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return match text.parse::<u8>() {
                Ok(number @ 1..=64) => Ok(Self(number.to_string())),
                _ => Err(unknown()),
            };
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        // SIGRTMIN is 34 and SIGRTMAX 64 with glibc; runtimes name the lower half from below, the upper from above.
        let counted = |prefix, most| {
            let digits = name.strip_prefix(prefix)?;
            let count = digits.parse::<u8>().ok()?;
            (count.to_string() == digits && (1..=most).contains(&count)).then_some(())
        };
        let known = NAMES.contains(&name) || counted("RTMIN+", 15).is_some() || counted("RTMAX-", 14).is_some();
        if known { Ok(Self(format!("SIG{name}"))) } else { Err(unknown()) }
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("SIGTERM", "SIGTERM")]
    #[case("TERM", "SIGTERM")]
    #[case("sigquit", "SIGQUIT")]
    #[case("SIGRTMIN", "SIGRTMIN")]
    #[case("SIGRTMIN+3", "SIGRTMIN+3")]
    #[case("RTMIN+15", "SIGRTMIN+15")]
    #[case("RTMAX-14", "SIGRTMAX-14")]
    #[case("9", "9")]
    #[case("09", "9")]
    #[case("64", "64")]
    fn signals_are_written_one_way(#[case] text: &str, #[case] written: &str) {
        assert_eq!(StopSignal::parse(text).unwrap().to_string(), written);
    }

    #[rstest]
    fn what_runtimes_do_not_know_is_refused(
        #[values(
            "",
            "0",
            "65",
            "999",
            "-9",
            "SIG",
            "SIGFOO",
            "SIGRTMIN+16",
            "SIGRTMIN+03",
            "SIGRTMAX-15",
            "RTMIN+",
            "RTMIN+0",
            "RTMAX+1",
            "SIG9",
            " TERM"
        )]
        text: &str,
    ) {
        let message = format!("'{text}' is not a signal that container runtimes know");
        assert_eq!(StopSignal::parse(text).unwrap_err().to_string(), message);
    }
}
