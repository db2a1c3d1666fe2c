//! Setting the sysctls of a profile, and taking them back.
//!
//! Invariants:
//! 1. Everything that can be known beforehand is known before the first write: keys that do not
//!    exist, rights, another profile in the way.
//! 2. The state is on disk before the first write, so a crash in between can be reverted.
//! 3. All or nothing: where a write fails, or the kernel makes something else of it, what was written
//!    is put back. Only if that fails too does the state stay, for `revert` to try again.
//! 4. `revert` gives back what was there before the *first* apply.
//!
//! Called by `trunkline doctor apply`, `verify` and `revert`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::profile::Profile;
use crate::state::{self, State, StateError};
use crate::sysctl::{self, Setting, VALUE_BYTES_MAX, normal};

/// Where `--persist` writes.
pub const PERSIST_PATH: &str = "/etc/sysctl.d/90-trunkline.conf";
/// First line of what `--persist` wrote; a file without it is not ours to remove.
const PERSIST_MARK: &str = "# Written by `trunkline doctor apply --persist`";

/// The kernel's parameters, or what stands for them.
pub trait Sysctls {
    /// The value, in its normal form; `None` where there is no such key.
    fn read(&self, key: &str) -> io::Result<Option<String>>;
    /// Whether this process may write it; changes nothing.
    fn may_write(&self, key: &str) -> io::Result<()>;
    fn write(&self, key: &str, value: &str) -> io::Result<()>;
}

/// A tree of files, one for each key: procfs.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// `proc` is where procfs is mounted.
    pub fn of(proc: &Path) -> Self {
        Self {
            root: proc.join("sys"),
        }
    }

    fn path(&self, key: &str) -> io::Result<PathBuf> {
        let path = sysctl::path_of(key)
            .ok_or_else(|| io::Error::other(format!("{key:?} is not the name of a sysctl")))?;
        Ok(self.root.join(path))
    }
}

impl Sysctls for Tree {
    fn read(&self, key: &str) -> io::Result<Option<String>> {
        let file = match File::open(self.path(key)?) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut text = String::new();
        file.take(VALUE_BYTES_MAX).read_to_string(&mut text)?;
        Ok(Some(normal(key, &text)))
    }

    fn may_write(&self, key: &str) -> io::Result<()> {
        // The kernel checks rights when the file is opened; nothing is written yet.
        File::options()
            .write(true)
            .open(self.path(key)?)
            .map(|_| ())
    }

    fn write(&self, key: &str, value: &str) -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .truncate(true)
            .open(self.path(key)?)?;
        // In one piece: the kernel takes each write as a whole value.
        file.write_all(format!("{value}\n").as_bytes())
    }
}

/// One key that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub key: String,
    pub found: String,
    pub wanted: String,
    pub why: String,
}

/// A profile held against the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub profile: String,
    pub changes: Vec<Change>,
    /// Keys that are as they should be.
    pub satisfied: Vec<String>,
    /// Keys that this kernel does not have, and need not.
    pub absent: Vec<String>,
    /// Keys that this kernel, or this network namespace, does not have and should.
    pub missing: Vec<String>,
}

/// Why nothing was changed; unless it is [`TuneError::Stuck`].
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    #[error("cannot read {key}: {error}")]
    Read {
        key: String,
        #[source]
        error: io::Error,
    },
    #[error(
        "not here: {}. Nothing was changed. Some keys exist only in the host's network namespace: run it there; --skip-missing sets the others",
        keys.join(", ")
    )]
    Missing { keys: Vec<String> },
    #[error(
        "{key} cannot be written ({error}). Nothing was changed. {}",
        cure_for(error)
    )]
    Rights {
        key: String,
        #[source]
        error: io::Error,
    },
    #[error(
        "profile {applied} is applied (state: {path}): run `trunkline doctor revert --state {path}` first, so that what was there before it is not lost"
    )]
    Other { applied: String, path: PathBuf },
    #[error(transparent)]
    State(#[from] StateError),
    #[error("writing {value:?} to {key}: {error}. What was written before it has been put back")]
    Write {
        key: String,
        value: String,
        #[source]
        error: io::Error,
    },
    #[error(
        "the kernel made {got:?} of {value:?} in {key}. Everything has been put back; a profile of your own can ask for less"
    )]
    NotTaken {
        key: String,
        value: String,
        got: String,
    },
    #[error(
        "{path} is there and was not written by `apply --persist`: move it away, or name another file with --persist=FILE. Nothing was changed"
    )]
    NotOurs { path: PathBuf },
    #[error("cannot write or remove {path}: {error}. The sysctls have been put back")]
    Persist {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error(
        "{cause}. Except that these could not be put back: {}. The state is kept: `trunkline doctor revert` tries again",
        keys.join(", ")
    )]
    Stuck {
        cause: Box<TuneError>,
        keys: Vec<String>,
    },
}

/// What to do about a refusal.
fn cure_for(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            "/proc/sys is read-only here, as in containers: run it on the host; for net.* of one container, `docker run --sysctl KEY=VALUE`, or securityContext.sysctls in Kubernetes"
        }
        io::ErrorKind::PermissionDenied => {
            "Run it as root on the host, for example with sudo; root inside a container or a user namespace is not enough"
        }
        _ => "Look at the key with `sysctl KEY`",
    }
}

impl Plan {
    /// Holds `profile` against what `kernel` has.
    pub fn make(kernel: &dyn Sysctls, profile: &Profile) -> Result<Self, TuneError> {
        let mut plan = Self {
            profile: profile.name.clone(),
            changes: Vec::new(),
            satisfied: Vec::new(),
            absent: Vec::new(),
            missing: Vec::new(),
        };
        for setting in &profile.settings {
            match read(kernel, &setting.key)? {
                None if setting.optional => plan.absent.push(setting.key.clone()),
                None => plan.missing.push(setting.key.clone()),
                Some(found) if setting.satisfied_by(&found) => {
                    plan.satisfied.push(setting.key.clone());
                }
                Some(found) => plan.changes.push(Change {
                    key: setting.key.clone(),
                    wanted: setting.effective(&found),
                    found,
                    why: setting.why.clone(),
                }),
            }
        }
        Ok(plan)
    }

    /// Whether nothing is left to do.
    pub fn holds(&self) -> bool {
        self.changes.is_empty() && self.missing.is_empty()
    }

    /// For a terminal: what differs, and what is not there.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let width = self.changes.iter().map(|c| c.key.len()).max().unwrap_or(0);
        for change in &self.changes {
            let found = match change.found.as_str() {
                "" => "(nothing)",
                found => found,
            };
            let _ = writeln!(out, "  {:width$}  {found} -> {}", change.key, change.wanted);
        }
        for key in &self.missing {
            let _ = writeln!(out, "  {key}: not here");
        }
        out
    }
}

/// How [`apply`] is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    pub state: PathBuf,
    /// The sysctl.d file to write, so that a boot does not undo it.
    pub persist: Option<PathBuf>,
    /// Goes on where keys are missing.
    pub skip_missing: bool,
}

/// What [`apply`] would do, and the state that there is; fails where it would. Changes nothing.
pub fn prepare(
    kernel: &dyn Sysctls,
    profile: &Profile,
    options: &Options,
) -> Result<(Plan, Option<State>), TuneError> {
    let plan = Plan::make(kernel, profile)?;
    if !plan.missing.is_empty() && !options.skip_missing {
        return Err(TuneError::Missing { keys: plan.missing });
    }
    may_write_all(kernel, plan.changes.iter().map(|c| c.key.as_str()))?;
    let before = State::load(&options.state)?;
    if let Some(before) = &before
        && before.profile != profile.name
    {
        return Err(TuneError::Other {
            applied: before.profile.clone(),
            path: options.state.clone(),
        });
    }
    if let Some(path) = &options.persist
        && path.exists()
        && !is_ours(path)
    {
        return Err(TuneError::NotOurs { path: path.clone() });
    }
    Ok((plan, before))
}

/// Makes `kernel` what `profile` wants. Returns what it changed.
pub fn apply(
    kernel: &dyn Sysctls,
    profile: &Profile,
    options: &Options,
) -> Result<Plan, TuneError> {
    let (plan, before) = prepare(kernel, profile, options)?;
    if plan.changes.is_empty() && options.persist.is_none() {
        return Ok(plan);
    }
    drop((plan, before));
    let _lock = state::lock(&options.state)?;
    // Again: what was true before we had the lock need not be.
    let (plan, before) = prepare(kernel, profile, options)?;
    let mut after = before.clone().unwrap_or_else(|| State::new(&profile.name));
    for change in &plan.changes {
        after.note(&change.key, &change.found, &change.wanted);
    }
    let earlier = before.as_ref().and_then(|state| state.persisted.clone());
    if options.persist.is_some() {
        after.persisted.clone_from(&options.persist);
    }
    if before.as_ref() != Some(&after) {
        after.store(&options.state)?;
    }
    let writes: Vec<Write> = plan.changes.iter().map(Write::of).collect();
    let done = write_all(kernel, &writes).and_then(|()| {
        keep_for_boot(
            kernel,
            profile,
            &writes,
            earlier,
            options.persist.as_deref(),
        )
    });
    match (done, before) {
        (Ok(()), _) => Ok(plan),
        (Err(stuck @ TuneError::Stuck { .. }), _) => Err(stuck),
        // Nothing of this apply is left: neither is its state.
        (Err(error), before) => {
            match before {
                Some(before) => before.store(&options.state)?,
                None => State::remove(&options.state)?,
            }
            Err(error)
        }
    }
}

/// Writes the file for the next boot, in place of an earlier one; undoes `writes` if it cannot.
fn keep_for_boot(
    kernel: &dyn Sysctls,
    profile: &Profile,
    writes: &[Write],
    earlier: Option<PathBuf>,
    path: Option<&Path>,
) -> Result<(), TuneError> {
    let Some(path) = path else {
        return Ok(());
    };
    let earlier = earlier.filter(|old| old != path && is_ours(old));
    persist(kernel, profile, path)
        .and_then(|()| earlier.map_or(Ok(()), |old| state::remove_if_there(&old)))
        .map_err(|error| {
            let cause = TuneError::Persist {
                path: path.to_owned(),
                error,
            };
            put_back(kernel, writes, cause)
        })
}

/// What [`revert`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reverted {
    /// `None`: nothing was applied.
    pub profile: Option<String>,
    /// Key, what it was found at, and what it is again.
    pub restored: Vec<(String, String, String)>,
    /// Keys that somebody changed after the apply; they are restored all the same.
    pub touched: Vec<String>,
    /// Keys that are not there any more.
    pub gone: Vec<String>,
    /// The sysctl.d file that was removed.
    pub removed: Option<PathBuf>,
    /// The sysctl.d file that is not ours any more, and stays.
    pub kept: Option<PathBuf>,
}

/// Gives back what was there before the first apply, and forgets the state. With `dry_run` it only
/// says what it would do.
pub fn revert(
    kernel: &dyn Sysctls,
    state_path: &Path,
    dry_run: bool,
) -> Result<Reverted, TuneError> {
    if State::load(state_path)?.is_none() {
        return Ok(Reverted::default());
    }
    let _lock = state::lock(state_path)?;
    let Some(state) = State::load(state_path)? else {
        return Ok(Reverted::default());
    };
    let done = Reverted::plan(kernel, state)?;
    if dry_run {
        return Ok(done);
    }
    let writes: Vec<Write> = done
        .restored
        .iter()
        .map(|(key, from, to)| Write {
            key: key.clone(),
            from: from.clone(),
            to: to.clone(),
        })
        .collect();
    may_write_all(kernel, writes.iter().map(|w| w.key.as_str()))?;
    write_all(kernel, &writes)?;
    if let Some(path) = &done.removed {
        state::remove_if_there(path).map_err(|error| {
            let cause = TuneError::Persist {
                path: path.clone(),
                error,
            };
            put_back(kernel, &writes, cause)
        })?;
    }
    State::remove(state_path)?;
    Ok(done)
}

impl Reverted {
    /// What has to be done to be rid of `state`.
    fn plan(kernel: &dyn Sysctls, state: State) -> Result<Self, TuneError> {
        let mut plan = Self {
            profile: Some(state.profile),
            ..Self::default()
        };
        // Backwards: a ceiling goes down after what stands below it.
        for kept in state.keys.into_iter().rev() {
            let Some(now) = read(kernel, &kept.key)? else {
                plan.gone.push(kept.key);
                continue;
            };
            if now == kept.was {
                continue;
            }
            if now != kept.set {
                plan.touched.push(kept.key.clone());
            }
            plan.restored.push((kept.key, now, kept.was));
        }
        match state.persisted.filter(|path| path.exists()) {
            Some(path) if is_ours(&path) => plan.removed = Some(path),
            Some(path) => plan.kept = Some(path),
            None => {}
        }
        Ok(plan)
    }
}

/// Whether this process may write the keys that it would have to.
fn may_write_all<'a>(
    kernel: &dyn Sysctls,
    keys: impl IntoIterator<Item = &'a str>,
) -> Result<(), TuneError> {
    for key in keys {
        kernel.may_write(key).map_err(|error| TuneError::Rights {
            key: key.to_owned(),
            error,
        })?;
    }
    Ok(())
}

/// One write, and how to undo it.
struct Write {
    key: String,
    from: String,
    to: String,
}

impl Write {
    fn of(change: &Change) -> Self {
        Self {
            key: change.key.clone(),
            from: change.found.clone(),
            to: change.wanted.clone(),
        }
    }
}

fn read(kernel: &dyn Sysctls, key: &str) -> Result<Option<String>, TuneError> {
    kernel.read(key).map_err(|error| TuneError::Read {
        key: key.to_owned(),
        error,
    })
}

/// All or nothing.
fn write_all(kernel: &dyn Sysctls, writes: &[Write]) -> Result<(), TuneError> {
    for (done, write) in writes.iter().enumerate() {
        let Err(error) = write_one(kernel, write) else {
            continue;
        };
        // The failed one too: the kernel may have taken a part of it.
        return Err(put_back(kernel, &writes[..=done], error));
    }
    Ok(())
}

fn write_one(kernel: &dyn Sysctls, write: &Write) -> Result<(), TuneError> {
    kernel
        .write(&write.key, &write.to)
        .map_err(|error| TuneError::Write {
            key: write.key.clone(),
            value: write.to.clone(),
            error,
        })?;
    let got = read(kernel, &write.key)?.unwrap_or_default();
    if got == write.to {
        return Ok(());
    }
    Err(TuneError::NotTaken {
        key: write.key.clone(),
        value: write.to.clone(),
        got,
    })
}

/// Undoes `writes`, last first, and says why.
fn put_back(kernel: &dyn Sysctls, writes: &[Write], cause: TuneError) -> TuneError {
    let back = |write: &Write| {
        let now = kernel.read(&write.key).ok().flatten();
        if now.as_deref() == Some(&*write.from) {
            return true;
        }
        kernel.write(&write.key, &write.from).is_ok()
            && kernel
                .read(&write.key)
                .is_ok_and(|v| v.as_deref() == Some(&*write.from))
    };
    let stuck = writes.iter().rev().filter(|w| !back(w));
    let keys: Vec<String> = stuck.map(|w| w.key.clone()).collect();
    if keys.is_empty() {
        return cause;
    }
    TuneError::Stuck {
        cause: Box::new(cause),
        keys,
    }
}

/// The profile as a sysctl.d file for this machine: with the values that hold now, so that a boot
/// does not lower what the machine had more of.
fn persist(kernel: &dyn Sysctls, profile: &Profile, path: &Path) -> io::Result<()> {
    let mut text = format!(
        "{PERSIST_MARK}: profile {}.\n# `trunkline doctor revert` removes it.\n",
        profile.name
    );
    for setting in &profile.settings {
        if let Some(found) = kernel.read(&setting.key)? {
            let _ = write!(text, "\n{}", line_of(setting, &found));
        }
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    state::write_whole(path, &text, 0o644)
}

fn line_of(setting: &Setting, found: &str) -> String {
    let dash = if setting.optional { "-" } else { "" };
    let reason = [setting.why.as_str(), setting.memory.as_str()].join(" ");
    format!(
        "# {}\n{dash}{} = {}\n",
        reason.trim(),
        setting.key,
        setting.effective(found)
    )
}

fn is_ours(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.starts_with(PERSIST_MARK))
}
