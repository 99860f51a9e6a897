//! The stand-in for [`cpu_local!`](crate::cpu_local) where no ELF linker gathers the variables.

/// Declares CPU-local variables where object files are ELF, and so not here.
#[macro_export]
macro_rules! cpu_local {
    ($($tokens:tt)*) => {
        ::core::compile_error!(
            "cpu_local! needs a linker for ELF object files, which gathers the variables: \
             build for a target that has it"
        );
    };
}

/// Returns whether an initial value is in the template. There is none.
pub(crate) const fn is_gathered(_initial: usize) -> bool {
    false
}
