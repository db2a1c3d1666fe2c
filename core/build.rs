//! Lists the demo page's files in `../web` and writes the table that takes them into the binary.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Extensions that are served, and as what.
const CONTENT_TYPES: &[(&str, &str)] = &[
    ("html", "text/html; charset=utf-8"),
    ("css", "text/css; charset=utf-8"),
    ("js", "text/javascript; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("svg", "image/svg+xml"),
    ("png", "image/png"),
    ("webp", "image/webp"),
    ("ico", "image/x-icon"),
    ("woff2", "font/woff2"),
    ("webmanifest", "application/manifest+json"),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let web = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../web");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", web.display());
    let mut table = String::from("static ASSETS: &[Asset] = &[\n");
    for (name, content_type, path) in files(&web)? {
        let etag = format!("\"{:016x}\"", fnv1a(&fs::read(&path)?));
        writeln!(
            table,
            "    Asset {{ path: {:?}, content_type: {content_type:?}, etag: {etag:?}, \
             body: include_bytes!({path:?}) }},",
            format!("/{name}"),
        )?;
    }
    table.push_str("];\n");
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("assets.rs"), table)?;
    Ok(())
}

/// The files of the page in the order of their names: those directly in the folder, tests left out.
fn files(web: &Path) -> io::Result<Vec<(String, &'static str, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(web)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let content_type = name
            .rsplit_once('.')
            .and_then(|(_, ext)| CONTENT_TYPES.iter().find(|(known, _)| *known == ext));
        if let Some((_, content_type)) = content_type
            && entry.file_type()?.is_file()
            && !name.starts_with('.')
            && !name.contains(".test.")
        {
            files.push((name, *content_type, entry.path().canonicalize()?));
        }
    }
    files.sort();
    Ok(files)
}

/// A hash that changes with the content; nobody gains from a collision.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
