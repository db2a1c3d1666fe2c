//! Starting a Java server: its arguments go to a file (`java @FILE`), because a class path of a hundred jars
//! would hide the rest in every process list. Called by `cassandra` and `kafka`.

use std::fs;
use std::path::Path;

use crate::error::{ClusterError, Context as _};

/// Writes `DIR/NAME.args` and gives what to call `java` with.
pub fn arguments(
    dir: &Path,
    name: &str,
    flags: &[String],
    class_path: &str,
    class: &[&str],
) -> Result<Vec<String>, ClusterError> {
    let file = dir.join(format!("{name}.args"));
    let mut text = String::new();
    for flag in flags {
        text += &format!("{}\n", quoted(flag));
    }
    text += &format!("-cp\n{}\n", quoted(class_path));
    fs::write(&file, text).context(|| file.display().to_string())?;
    let mut args = vec![format!("@{}", file.display())];
    args.extend(class.iter().map(|&word| word.to_owned()));
    Ok(args)
}

/// What a machine with few cores and several servers wants: a bounded heap, one collector thread, and only
/// the quick compiler unless the server is to be fast for long.
pub fn memory_flags(heap_mib: u32, direct_mib: u32) -> Vec<String> {
    vec![
        format!("-Xms{heap_mib}m"),
        format!("-Xmx{heap_mib}m"),
        format!("-XX:MaxDirectMemorySize={direct_mib}m"),
        "-XX:+UseSerialGC".into(),
        "-XX:TieredStopAtLevel=1".into(),
        "-XX:+ExitOnOutOfMemoryError".into(),
        // No /tmp/hsperfdata file for each server.
        "-XX:-UsePerfData".into(),
        "-Djava.net.preferIPv4Stack=true".into(),
    ]
}

fn quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}
