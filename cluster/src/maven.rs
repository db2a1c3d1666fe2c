//! Jars from Maven Central, as `cluster/servers.lock` pins them: path, size, SHA-256. Called by `install`.
//!
//! `curl` fetches them, because it knows the proxies, certificates and credentials of the machine it runs
//! on (`https_proxy`, `CURL_CA_BUNDLE`, `~/.netrc`); a mirror of Central in `~/.m2/settings.xml` is used as
//! Maven would. Whatever they deliver is held against the checksum.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest as _, Sha256};

use crate::error::{ClusterError, Context as _};

const LOCK: &str = include_str!("../servers.lock");
const CENTRAL: &str = "https://repo1.maven.org/maven2";
/// Downloads at a time.
const PARALLEL: &str = "8";

/// One pinned file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jar {
    /// In the repository, and below the cache.
    pub path: &'static str,
    pub size_bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: &'static str,
}

/// What the lock lists for `server`, in its order.
pub fn jars(server: &str) -> Result<Vec<Jar>, ClusterError> {
    let mut current = "";
    let mut jars = Vec::new();
    for line in LOCK.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["server", name] => current = name,
            ["jar", path, size, sha256] if current == server => jars.push(Jar {
                path,
                size_bytes: size.parse().map_err(|_| odd(line))?,
                sha256,
            }),
            [] | ["jar" | "root" | "#", ..] => {}
            _ => return Err(odd(line)),
        }
    }
    if jars.is_empty() {
        return Err(odd(server));
    }
    Ok(jars)
}

fn odd(line: &str) -> ClusterError {
    ClusterError::Usage(format!(
        "cluster/servers.lock was not understood at {line:?}: python3 tests/tools/servers_lock.py"
    ))
}

/// Brings all `jars` to `dir`, and checks those that are there already.
pub fn fetch(jars: &[Jar], dir: &Path) -> Result<(), ClusterError> {
    fetch_from(&repository()?, jars, dir)
}

fn fetch_from(repository: &str, jars: &[Jar], dir: &Path) -> Result<(), ClusterError> {
    let mut missing = Vec::new();
    for jar in jars {
        match sha256(&dir.join(jar.path)) {
            Ok(found) if found == jar.sha256 => {}
            // A file that is not as pinned is a torn disk's: fetched again, and checked then.
            Ok(_) => missing.push(*jar),
            Err(e) if e.kind() == io::ErrorKind::NotFound => missing.push(*jar),
            Err(e) => return Err(e).context(|| dir.join(jar.path).display().to_string()),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(dir).context(|| dir.display().to_string())?;
    // On the same file system, so that a checked file is moved into place whole.
    let work = tempfile::Builder::new()
        .prefix(".download-")
        .tempdir_in(dir)
        .context(|| format!("a directory in {}", dir.display()))?;
    download(&missing, repository, work.path())?;
    for jar in &missing {
        let came = work.path().join(flat(jar));
        let found = sha256(&came).context(|| came.display().to_string())?;
        let place = dir.join(jar.path);
        if found != jar.sha256 {
            return Err(ClusterError::Checksum {
                path: place,
                wanted: jar.sha256.to_owned(),
                found,
            });
        }
        let parent = place.parent().unwrap_or(dir);
        fs::create_dir_all(parent).context(|| parent.display().to_string())?;
        fs::rename(&came, &place).context(|| place.display().to_string())?;
    }
    Ok(())
}

fn flat(jar: &Jar) -> String {
    jar.path.replace('/', "_")
}

fn download(jars: &[Jar], repository: &str, into: &Path) -> Result<(), ClusterError> {
    let mut list = String::new();
    for jar in jars {
        list += &format!("url = \"{repository}/{}\"\n", jar.path);
        list += &format!("output = \"{}\"\n", into.join(flat(jar)).display());
    }
    let failed = |detail: String| ClusterError::Install {
        what: format!("downloading {} jars from {repository}", jars.len()),
        detail,
    };
    let mut curl = Command::new("curl")
        .args(["--fail", "--silent", "--show-error", "--location"])
        .args([
            "--netrc-optional",
            "--retry",
            "3",
            "--connect-timeout",
            "20",
        ])
        .args(["--parallel", "--parallel-max", PARALLEL, "--config", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => ClusterError::Missing {
                what: "curl".into(),
                cure: "as root: apt-get install -y curl".into(),
            },
            _ => failed(e.to_string()),
        })?;
    if let Some(mut stdin) = curl.stdin.take() {
        // A curl that ended early says why itself.
        let _ = stdin.write_all(list.as_bytes());
    }
    let output = curl.wait_with_output().map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(format!(
        "{}(proxies are taken from https_proxy, a mirror from ~/.m2/settings.xml)",
        String::from_utf8_lossy(&output.stderr)
    )))
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Maven Central, or what this user's Maven has in its place.
fn repository() -> Result<String, ClusterError> {
    let Some(home) = std::env::home_dir() else {
        return Ok(CENTRAL.to_owned());
    };
    let settings = home.join(".m2/settings.xml");
    let text = match fs::read_to_string(&settings) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(CENTRAL.to_owned()),
        Err(e) => return Err(e).context(|| settings.display().to_string()),
    };
    Ok(mirror(&text).unwrap_or_else(|| CENTRAL.to_owned()))
}

/// The URL of the first mirror in a `settings.xml` that stands for Central.
fn mirror(settings: &str) -> Option<String> {
    let commented = settings.split("<!--").enumerate().map(|(i, part)| match i {
        0 => part,
        _ => part.split_once("-->").map_or("", |(_, after)| after),
    });
    let text: String = commented.collect();
    text.split("<mirror>").skip(1).find_map(|part| {
        let part = part.split("</mirror>").next()?;
        let inside = |tag: &str| {
            let after = part.split_once(&format!("<{tag}>"))?.1;
            Some(after.split_once(&format!("</{tag}>"))?.0.trim().to_owned())
        };
        let of = inside("mirrorOf")?;
        let words: Vec<&str> = of.split(',').map(str::trim).collect();
        let stands_for_central = words
            .iter()
            .any(|w| ["central", "*", "external:*"].contains(w));
        if !stands_for_central || words.contains(&"!central") {
            return None;
        }
        Some(inside("url")?.trim_end_matches('/').to_owned())
    })
}

/// The class path of `jars` below `dir`, in the lock's order.
pub fn class_path(jars: &[Jar], dir: &Path) -> String {
    let paths: Vec<String> = jars
        .iter()
        .map(|jar| dir.join(jar.path).display().to_string())
        .collect();
    paths.join(":")
}

/// Those of `jars` that are not below `dir`.
pub fn absent(jars: &[Jar], dir: &Path) -> Vec<PathBuf> {
    jars.iter()
        .map(|jar| dir.join(jar.path))
        .filter(|path| !path.is_file())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_names_each_servers_own_jar_and_full_checksums() {
        for (server, main) in [("cassandra", "cassandra-all"), ("kafka", "kafka_2.13")] {
            let jars = jars(server).unwrap();
            assert!(jars.iter().any(|j| j.path.contains(main)), "{server}");
            for jar in jars {
                assert!(
                    jar.path.ends_with(".jar") && !jar.path.contains(".."),
                    "{jar:?}"
                );
                assert_eq!(jar.sha256.len(), 64, "{jar:?}");
                assert!(jar.size_bytes > 0, "{jar:?}");
            }
        }
        assert!(jars("nothing").is_err());
    }

    #[test]
    fn a_mirror_of_central_is_taken_and_others_are_not() {
        let with = |of: &str| {
            format!(
                "<settings><!-- <mirror><mirrorOf>*</mirrorOf><url>http://no</url></mirror> -->\
                 <mirrors><mirror><id>a</id><url> https://mirror.test/m2/ </url>\
                 <mirrorOf>{of}</mirrorOf></mirror></mirrors></settings>"
            )
        };
        let found = Some("https://mirror.test/m2".to_owned());
        assert_eq!(mirror(&with("central")), found);
        assert_eq!(mirror(&with("external:*, other")), found);
        assert_eq!(mirror(&with("*,!central")), None);
        assert_eq!(mirror(&with("snapshots")), None);
        assert_eq!(mirror("<settings/>"), None);
    }

    #[test]
    fn what_is_as_pinned_is_kept_and_what_was_altered_is_refused() {
        let source = tempfile::tempdir().unwrap();
        let cache = tempfile::tempdir().unwrap();
        let url = format!("file://{}", source.path().display());
        let jar = Jar {
            path: "org/a.jar",
            size_bytes: 3,
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        };
        let at_source = source.path().join(jar.path);
        let in_cache = cache.path().join(jar.path);
        fs::create_dir_all(at_source.parent().unwrap()).unwrap();

        fs::write(&at_source, "abd").unwrap();
        let refused = fetch_from(&url, &[jar], cache.path());
        assert!(
            matches!(refused, Err(ClusterError::Checksum { .. })),
            "{refused:?}"
        );
        assert!(!in_cache.exists());

        fs::write(&at_source, "abc").unwrap();
        fetch_from(&url, &[jar], cache.path()).unwrap();
        assert_eq!(fs::read(&in_cache).unwrap(), b"abc");

        // Damaged in the cache: fetched again; then nothing needs the source any more.
        fs::write(&in_cache, "ab").unwrap();
        fetch_from(&url, &[jar], cache.path()).unwrap();
        fs::remove_file(&at_source).unwrap();
        fetch_from(&url, &[jar], cache.path()).unwrap();
        assert_eq!(fs::read(&in_cache).unwrap(), b"abc");
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
    }
}
