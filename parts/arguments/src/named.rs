//! Enumerations whose values have names on the command line.

/// Declares an enumeration with the name of each of its values.
#[macro_export]
macro_rules! named {
    (
        $(#[$about:meta])*
        $vis:vis enum $Type:ident {
            $($(#[$about_value:meta])* $Value:ident = $name:expr,)+
        }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $Type {
            $($(#[$about_value])* $Value,)+
        }

        impl $Type {
            /// Every one.
            pub const ALL: &'static [Self] = &[$(Self::$Value,)+];

            /// The names of all, in the same order.
            pub const NAMES: &'static [&'static str] = &[$($name,)+];

            /// Returns its name on the command line.
            pub const fn name(self) -> &'static str {
                Self::NAMES[self as usize]
            }

            /// Returns the one of that name.
            pub fn parse(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == name)
            }
        }
    };
}

pub(crate) use named;
