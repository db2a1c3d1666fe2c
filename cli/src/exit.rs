//! How the process ends: a code for scripts, words for people.

use std::process::ExitCode;

use crate::settings::layers::Problem;

/// EX_USAGE of sysexits: the configuration or the command line is wrong; a restart cannot help.
pub const EXIT_CONFIGURATION: u8 = 64;
/// Something failed that a restart may mend.
pub const EXIT_FAILURE: u8 = 1;
/// Plus the signal's number: stopped at once, by the shell's convention.
pub const EXIT_SIGNALLED: u8 = 128;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// Everything that is wrong with the configuration.
    Configuration(Vec<Problem>),
    /// What could not be done, with its cause.
    Runtime(String),
    /// The command said what is wrong already (`doctor`).
    Reported,
}

impl Failure {
    /// One thing wrong with the configuration.
    pub fn configuration(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Configuration(vec![Problem::new(place, message)])
    }

    /// Tells stderr, and says with which code to end.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::Configuration(problems) => {
                for problem in problems {
                    eprintln!("trunkline: {problem}");
                }
                EXIT_CONFIGURATION.into()
            }
            Self::Runtime(message) => {
                eprintln!("trunkline: {message}");
                EXIT_FAILURE.into()
            }
            Self::Reported => EXIT_FAILURE.into(),
        }
    }
}
