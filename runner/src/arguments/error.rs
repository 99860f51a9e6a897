//! Arguments that make no sense, and what is said about them.

use std::fmt;

use super::run::MAX_CPUS;

/// Arguments that make no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArgumentError {
    /// No option, or an option with a value that is not of its form: what [`OptionInfo::find`] says.
    Option(String),
    /// A number of CPUs that no machine has.
    BadCpus(String),
    /// The same option, or the number of CPUs, more than once.
    Repeated(String),
    /// Arguments that exclude each other.
    Contradiction(String),
    /// An option that means nothing on Bochs.
    ForQemu(String),
}

impl ArgumentError {
    /// Returns an argument with a value that is not of its form.
    pub fn bad_value(name: &str, value: &str, form: impl fmt::Display) -> Self {
        Self::Option(format!(
            "invalid value `{value}` for `{name}`: must be {form}"
        ))
    }
}

impl fmt::Display for ArgumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option(wrong) => f.write_str(wrong),
            Self::BadCpus(cpus) => write!(f, "{cpus} CPUs: must be 1 to {MAX_CPUS}"),
            Self::Repeated(what) => write!(f, "{what} is given twice"),
            Self::Contradiction(why) => f.write_str(why),
            Self::ForQemu(name) => write!(f, "{name}= is for QEMU, not for machine=bochs"),
        }
    }
}

impl std::error::Error for ArgumentError {}
