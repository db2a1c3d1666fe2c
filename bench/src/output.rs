//! What becomes of a finished run besides the text on stdout. Called by the command line, once, for
//! every scenario alike.

use crate::BenchError;
use crate::args::OutputArgs;
use crate::result::RunResult;

/// Completes the run and writes what was asked for.
pub fn finish(run: &mut RunResult, args: &OutputArgs) -> Result<(), BenchError> {
    run.finish();
    if let Some(path) = &args.json {
        let text = serde_json::to_vec_pretty(run).map_err(std::io::Error::from)?;
        std::fs::write(path, text)
            .map_err(|e| BenchError::Usage(format!("--json {}: {e}", path.display())))?;
    }
    Ok(())
}
