//! What becomes of a run besides the text on stdout. Called by the command line, once before and once
//! after every scenario alike.

use std::path::Path;

use crate::args::OutputArgs;
use crate::result::RunResult;
use crate::tools::write;
use crate::{BenchError, budget, html};

/// Finds out before the run what would lose its result after it.
pub fn check(args: &OutputArgs) -> Result<(), BenchError> {
    for (flag, path) in [("--json", &args.json), ("--html", &args.html)] {
        let Some(path) = path else { continue };
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        if !folder.unwrap_or(Path::new(".")).is_dir() || path.is_dir() {
            let what = "is no file in an existing directory";
            return Err(BenchError::Usage(format!(
                "{flag} {} {what}",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Completes the run, judges it, and writes what was asked for.
pub fn finish(run: &mut RunResult, args: &OutputArgs) -> Result<(), BenchError> {
    run.finish();
    budget::judge(run, &args.budget);
    if let Some(path) = &args.json {
        let text = serde_json::to_vec_pretty(run).map_err(std::io::Error::from)?;
        write(path, &text)?;
    }
    if let Some(path) = &args.html {
        write(path, html::page(run).as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_without_a_place_is_refused_before_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &Path| OutputArgs {
            html: Some(path.to_owned()),
            ..OutputArgs::default()
        };
        assert!(check(&at(&dir.path().join("a.html"))).is_ok());
        assert!(check(&at(Path::new("a.html"))).is_ok());
        assert!(check(&at(&dir.path().join("none/a.html"))).is_err());
        assert!(check(&at(dir.path())).is_err());
    }
}
