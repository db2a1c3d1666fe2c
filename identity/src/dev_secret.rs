//! The development secret: made once, kept in the data directory, read by every process that
//! shares it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Makes and finds the secret file.
pub struct DevSecret;

impl DevSecret {
    /// The file's name in the data directory.
    pub const FILE: &'static str = "jwt-secret";
    /// Random bytes; the file holds twice as many hex digits.
    const BYTES: usize = 32;

    /// The secret in `data_dir`, made on the first call. Processes that race for it agree: the
    /// file appears complete, by a link to a finished temporary file, and the first link wins.
    pub fn load_or_create(data_dir: &Path) -> io::Result<String> {
        let path = data_dir.join(Self::FILE);
        match Self::load(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        fs::create_dir_all(data_dir)?;
        Self::create(data_dir, &path)?;
        Self::load(&path)
    }

    fn load(path: &Path) -> io::Result<String> {
        let text = fs::read_to_string(path)?;
        let secret = text.trim();
        // A short secret can be guessed; an empty one is a file that something else broke.
        if secret.len() < Self::BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{}: shorter than {} characters; delete it to have a new secret made",
                    path.display(),
                    Self::BYTES
                ),
            ));
        }
        Ok(secret.to_owned())
    }

    fn create(data_dir: &Path, path: &Path) -> io::Result<()> {
        let random: [u8; Self::BYTES] = rand::random();
        let tag: u64 = rand::random();
        let temporary: PathBuf = data_dir.join(format!("{}.{tag:016x}.tmp", Self::FILE));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        let hex: String = random.iter().map(|b| format!("{b:02x}")).collect();
        let linked = file
            .write_all(format!("{hex}\n").as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::hard_link(&temporary, path));
        fs::remove_file(&temporary)?;
        match linked {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(e),
            Ok(()) => File::open(data_dir)?.sync_all(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_secret_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("deep/data");
        let secret = DevSecret::load_or_create(&data).unwrap();
        assert_eq!(secret.len(), 64);
        assert!(secret.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_eq!(DevSecret::load_or_create(&data).unwrap(), secret);
        let mode = fs::metadata(data.join(DevSecret::FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(&data).unwrap().count(),
            1,
            "no temporary files stay"
        );
    }

    #[test]
    fn racing_makers_agree() {
        let dir = tempfile::tempdir().unwrap();
        let barrier = std::sync::Barrier::new(8);
        let secrets: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        DevSecret::load_or_create(dir.path()).unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(secrets.iter().all(|s| *s == secrets[0]), "{secrets:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_broken_secret_file_is_an_error_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DevSecret::FILE);
        fs::write(&path, "short\n").unwrap();
        let error = DevSecret::load_or_create(dir.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(fs::read_to_string(&path).unwrap(), "short\n");
    }
}
