//! Results read back from their files.
//!
//! Invariants: a file that is no result, or of another layout, is an error that names the file; a
//! distribution whose histogram cannot be read still has its percentiles.
//!
//! Called by `bench report`, `bench compare` and `bench plan`.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;

use crate::result::{Latency, RunResult, VERSION};

/// A result and where it came from.
#[derive(Clone, Debug)]
pub struct Stored {
    pub path: PathBuf,
    pub run: RunResult,
}

/// Why a file gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoredError {
    #[error("{path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: not a result of trunkline bench: {cause}")]
    NoResult { path: PathBuf, cause: String },
    #[error(
        "{path}: a result of layout {found}, this program reads layout {VERSION}: run the scenario \
         again with --json"
    )]
    Layout { path: PathBuf, found: u64 },
    #[error("{0}: no result of trunkline bench in this directory: run scenarios with --json")]
    Empty(PathBuf),
}

/// Reads one result.
pub fn read(path: &Path) -> Result<Stored, StoredError> {
    let text = std::fs::read_to_string(path).map_err(|source| StoredError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Stored, StoredError> {
    let no_result = |cause: String| StoredError::NoResult {
        path: path.to_owned(),
        cause,
    };
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|e| no_result(e.to_string()))?;
    let found = value.get("version").and_then(serde_json::Value::as_u64);
    match found {
        Some(found) if found == u64::from(VERSION) => {}
        Some(found) => {
            return Err(StoredError::Layout {
                path: path.to_owned(),
                found,
            });
        }
        None => return Err(no_result("it names no version".to_owned())),
    }
    let run = serde_json::from_value(value).map_err(|e| no_result(e.to_string()))?;
    Ok(Stored {
        path: path.to_owned(),
        run,
    })
}

/// What [`read_all`] found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// In the order of the paths given; those of a directory by name.
    pub results: Vec<Stored>,
    /// Files of a directory that were passed over, and why.
    pub passed_over: Vec<String>,
}

/// Reads files, and all `.json` files that lie in directories. A file that is named must be a result;
/// one that lies in a directory may be something else.
pub fn read_all(paths: &[PathBuf]) -> Result<Found, StoredError> {
    let mut found = Found::default();
    for path in paths {
        if !path.is_dir() {
            found.results.push(read(path)?);
            continue;
        }
        let failed = |source| StoredError::Read {
            path: path.clone(),
            source,
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(failed)? {
            files.push(entry.map_err(failed)?.path());
        }
        files.retain(|f| f.extension().is_some_and(|e| e == "json"));
        files.sort();
        let before = found.results.len();
        for file in &files {
            match read(file) {
                Ok(stored) => found.results.push(stored),
                Err(error) => found.passed_over.push(error.to_string()),
            }
        }
        if found.results.len() == before && paths.len() == 1 && found.passed_over.is_empty() {
            return Err(StoredError::Empty(path.clone()));
        }
    }
    Ok(found)
}

/// The whole distribution in ns; `None` if the file does not hold it.
pub fn histogram(latency: &Latency) -> Option<Histogram<u64>> {
    let bytes = STANDARD.decode(&latency.histogram).ok()?;
    Deserializer::new().deserialize(&mut &bytes[..]).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_file_says_what_is_wrong_with_it() {
        let path = Path::new("x.json");
        let error = |text: &str| parse(path, text).unwrap_err().to_string();
        assert!(error("{").starts_with("x.json: not a result"));
        assert!(error("{}").contains("names no version"));
        assert!(error("{\"version\": 1}").contains("layout 1, this program reads layout 2"));
        assert!(error("{\"version\": 2}").contains("missing field"));
    }

    #[test]
    fn a_directory_gives_its_results_by_name_and_says_what_it_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let alone = [dir.path().to_owned()];
        assert!(matches!(read_all(&alone), Err(StoredError::Empty(_))));
        for name in ["b", "a"] {
            let run = RunResult::begin(name, BTreeMap::new());
            let text = serde_json::to_string(&run).unwrap();
            std::fs::write(dir.path().join(format!("{name}.json")), text).unwrap();
        }
        std::fs::write(dir.path().join("c.json"), "{\"version\": 1}").unwrap();
        std::fs::write(dir.path().join("d.txt"), "words").unwrap();
        let found = read_all(&alone).unwrap();
        let names: Vec<_> = found.results.iter().map(|s| &s.run.scenario[..]).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(found.passed_over.len(), 1);
        assert!(read_all(&[dir.path().join("c.json")]).is_err());
    }

    #[test]
    fn a_distribution_comes_back_from_its_text() {
        let mut recorded = Histogram::<u64>::new(3).unwrap();
        recorded.record_n(2_000_000, 7).unwrap();
        let mut latency = Latency::of(&recorded).unwrap();
        assert_eq!(histogram(&latency), Some(recorded));
        latency.histogram.clear();
        assert_eq!(histogram(&latency), None);
    }
}
