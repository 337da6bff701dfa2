//! The kernels inside this program: one fatbin per kernel file, compiled by the build script.

use crate::error::{Error, Result};
use std::fmt;

/// One compiled kernel file.
#[derive(Clone, Copy)]
pub struct Fatbin {
    /// The file below `kernels/`, without `.cu`.
    pub name: &'static str,
    /// Its entry points, sorted, as the driver knows them.
    pub kernels: &'static [&'static str],
    /// `sm_*`: machine code; `compute_*`: PTX, which the driver translates.
    pub architectures: &'static [&'static str],
    /// nvcc's warnings.
    pub warnings: &'static str,
    /// What the driver loads.
    pub bytes: &'static [u8],
}

impl fmt::Debug for Fatbin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fatbin")
            .field("name", &self.name)
            .field("kernels", &self.kernels)
            .field("architectures", &self.architectures)
            .field("bytes", &self.bytes.len())
            .finish()
    }
}

/// Every kernel file of this build, in the order of the build script's table. Empty on docs.rs.
pub static EMBEDDED: &[Fatbin] = include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// `(file, architectures)` of the kernel files that this build lacks, since `LMHEAD_CUDA_ARCHS` names none of
/// their architectures.
pub static LEFT_OUT: &[(&str, &[&str])] = include!(concat!(env!("OUT_DIR"), "/left_out.rs"));

/// The kernel file with an entry point of that name.
///
/// # Errors
/// `Unsupported` with the names that there are, and the files that this build lacks.
pub fn with_kernel(kernel: &str) -> Result<&'static Fatbin> {
    find(kernel, EMBEDDED, LEFT_OUT)
}

fn find(
    kernel: &str,
    fatbins: &'static [Fatbin],
    left_out: &[(&'static str, &[&'static str])],
) -> Result<&'static Fatbin> {
    fatbins.iter().find(|fatbin| fatbin.kernels.contains(&kernel)).ok_or_else(|| {
        let names: Vec<_> = fatbins.iter().flat_map(|fatbin| fatbin.kernels).copied().collect();
        let wanted =
            if names.is_empty() { "none: this build has no kernels".into() } else { names.join(", ") };
        let fix = if left_out.is_empty() {
            "name one of those".into()
        } else {
            format!(
                "name one of those, or build anew for its architecture: LMHEAD_CUDA_ARCHS left {} out of this build",
                listed(left_out)
            )
        };
        Error::unsupported("kernel", format!("one of {wanted}"), format!("\"{kernel}\""), fix)
    })
}

/// Files with their architectures, for a reader.
pub fn listed(files: &[(&str, &[&str])]) -> String {
    let file = |(name, architectures): &(&str, &[&str])| format!("{name} ({})", architectures.join(" "));
    files.iter().map(file).collect::<Vec<_>>().join(", ")
}

/// A device's compute capability: major, minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability(pub u32, pub u32);

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Fatbin {
    /// Which of its architectures the driver runs on a device of that capability.
    ///
    /// # Errors
    /// `Unsupported` where none fits, as on a device that is older than the code.
    pub fn code_for(&self, device: Capability) -> Result<&'static str> {
        best(self.architectures, device).ok_or_else(|| {
            Error::unsupported(
                format!("kernels/{}.cu", self.name),
                format!("a device that runs {}", self.architectures.join(", ")),
                format!("compute capability {device}"),
                "use another device, or compile for this one (LMHEAD_CUDA_ARCHS)",
            )
        })
    }
}

/// The driver's choice (CUDA programming guide, "Application Compatibility"): machine code of the same major
/// capability and the highest minor that is not above the device's, code for exactly this device first;
/// otherwise the highest PTX not above it.
fn best(architectures: &[&'static str], device: Capability) -> Option<&'static str> {
    let rank = |name: &str| -> Option<(u32, Capability)> {
        let (kind, number) = name.split_once('_')?;
        let only_here = number.ends_with('a');
        let digits: u32 = number.trim_end_matches('a').parse().ok()?;
        let code = Capability(digits / 10, digits % 10);
        match (kind, only_here) {
            (_, true) => (code == device).then_some((2, code)),
            ("sm", false) => (code.0 == device.0 && code <= device).then_some((1, code)),
            _ => (code <= device).then_some((0, code)),
        }
    };
    let ranked = architectures.iter().filter_map(|&name| Some((rank(name)?, name)));
    ranked.max_by_key(|(rank, _)| *rank).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_runs_its_own_code_then_its_generations_then_ptx() {
        let portable = &["sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "compute_80", "compute_90"][..];
        let older = &["sm_80", "sm_89", "sm_90", "compute_80", "compute_90"][..];
        for (architectures, device, wanted) in [
            (portable, (7, 5), None),
            (portable, (8, 0), Some("sm_80")),
            (portable, (8, 6), Some("sm_80")),
            (portable, (8, 9), Some("sm_89")),
            (portable, (9, 0), Some("sm_90")),
            (portable, (10, 0), Some("sm_100")),
            (portable, (10, 3), Some("sm_100")),
            (portable, (11, 0), Some("compute_90")),
            (portable, (12, 1), Some("sm_120")),
            (older, (10, 0), Some("compute_90")),
            (older, (12, 1), Some("compute_90")),
            (&["sm_90a"][..], (9, 0), Some("sm_90a")),
            (&["sm_90", "sm_90a"][..], (9, 0), Some("sm_90a")),
            (&["sm_90a"][..], (10, 0), None),
            (&["sm_90a"][..], (8, 9), None),
            (&["sm_100"][..], (10, 3), Some("sm_100")),
        ] {
            assert_eq!(
                best(architectures, Capability(device.0, device.1)),
                wanted,
                "{architectures:?} {device:?}"
            );
        }
    }

    #[test]
    fn an_older_device_and_an_unknown_kernel_are_refused_by_name() {
        let fatbin =
            Fatbin { name: "a/b", kernels: &["b"], architectures: &["sm_90a"], warnings: "", bytes: &[] };
        let error = fatbin.code_for(Capability(8, 6)).expect_err("no code").to_string();
        assert!(
            error.starts_with(
                "kernels/a/b.cu: wanted a device that runs sm_90a, got compute capability 8.6; "
            ),
            "{error}"
        );
        let error = with_kernel("no_such_kernel").expect_err("no kernel").to_string();
        assert!(
            error.starts_with("kernel: wanted one of ") && error.contains("\"no_such_kernel\""),
            "{error}"
        );
    }

    #[test]
    fn a_kernel_that_this_build_lacks_is_missed_with_the_variable_that_left_it_out() {
        let error = find("b", &[], &[("b_sm90a", &["sm_90a"]), ("c", &["sm_80", "sm_89"])]);
        let error = error.expect_err("left out").to_string();
        let wanted = "LMHEAD_CUDA_ARCHS left b_sm90a (sm_90a), c (sm_80 sm_89) out of this build";
        assert!(error.contains("got \"b\"") && error.contains(wanted), "{error}");
    }

    #[test]
    fn no_entry_point_is_in_two_files() {
        let mut names: Vec<_> = EMBEDDED.iter().flat_map(|fatbin| fatbin.kernels).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "the driver's name must lead to one file");
    }
}
