//! Promises of `apply` and `revert`, on a tree of files in place of /proc/sys: all or nothing,
//! nothing before it is known to be possible, and back to what was there first. What only a kernel
//! can refuse stands in `cli/tests/doctor.rs`.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use trunkline_kernel_tuning::Profile;
use trunkline_kernel_tuning::state::State;
use trunkline_kernel_tuning::tune::{Options, Plan, Sysctls, Tree, TuneError, apply, revert};

const PROFILE: &str = "# A ceiling.\nfs.file-max = 200\n\n# Three numbers.\nnet.ipv4.tcp_rmem = 1 2 3\n\n\
                       # A list.\nnet.ipv4.ip_local_reserved_ports = 7400-7431\n\n\
                       # Not everywhere.\n-kernel.io_uring_disabled = 0\n";

const BEFORE: [(&str, &str); 3] = [
    ("fs/file-max", "100\n"),
    ("net/ipv4/tcp_rmem", "4\t5\t6\n"),
    ("net/ipv4/ip_local_reserved_ports", "22\n"),
];

/// A machine of files.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let machine = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for (path, value) in BEFORE {
            machine.set(path, value);
        }
        machine
    }

    fn set(&self, path: &str, value: &str) {
        let path = self.dir.path().join("proc/sys").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value).unwrap();
    }

    fn tree(&self) -> Tree {
        Tree::of(&self.dir.path().join("proc"))
    }

    /// The values in their normal form.
    fn values(&self) -> Vec<String> {
        let keys = [
            "fs.file-max",
            "net.ipv4.tcp_rmem",
            "net.ipv4.ip_local_reserved_ports",
        ];
        let read = |key: &str| self.tree().read(key).unwrap().unwrap_or_default();
        keys.map(read).to_vec()
    }

    fn profile(&self, name: &str, text: &str) -> Profile {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        Profile::find(path.to_str().unwrap()).unwrap()
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("lib/state.json")
    }

    fn options(&self) -> Options {
        Options {
            state: self.state(),
            persist: None,
            skip_missing: false,
        }
    }

    fn persisting(&self) -> Options {
        Options {
            persist: Some(self.dir.path().join("etc/90-test.conf")),
            ..self.options()
        }
    }
}

const AS_BEFORE: [&str; 3] = ["100", "4 5 6", "22"];
const AS_WANTED: [&str; 3] = ["200", "1 2 3", "22,7400-7431"];

/// What can go wrong with one key.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// The write fails, and has already changed something.
    Fails,
    /// The kernel makes something else of it.
    Clamps,
    /// The write fails, and so does every one after it.
    FailsForGood,
    /// Opening for writing is refused.
    Refuses,
    /// The process ends in the midst of it.
    Crashes,
}

/// A tree in which something goes wrong with `key`, once.
struct Faulty {
    tree: Tree,
    key: &'static str,
    fault: Fault,
    writes: Cell<usize>,
    struck: Cell<bool>,
}

impl Sysctls for Faulty {
    fn read(&self, key: &str) -> io::Result<Option<String>> {
        self.tree.read(key)
    }

    fn may_write(&self, key: &str) -> io::Result<()> {
        if key == self.key && self.fault == Fault::Refuses {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.tree.may_write(key)
    }

    fn write(&self, key: &str, value: &str) -> io::Result<()> {
        self.writes.set(self.writes.get() + 1);
        if self.struck.get() && self.fault == Fault::FailsForGood {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if key != self.key || self.struck.replace(true) {
            return self.tree.write(key, value);
        }
        self.tree.write(key, "999")?;
        match self.fault {
            Fault::Clamps => Ok(()),
            Fault::Crashes => panic!("as killed"),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl Machine {
    fn faulty(&self, key: &'static str, fault: Fault) -> Faulty {
        Faulty {
            tree: self.tree(),
            key,
            fault,
            writes: Cell::new(0),
            struck: Cell::new(false),
        }
    }
}

#[test]
fn it_sets_all_says_what_and_gives_all_back() {
    let machine = Machine::new();
    let profile = machine.profile("p.conf", PROFILE);
    let plan = apply(&machine.tree(), &profile, &machine.options()).unwrap();
    assert_eq!(machine.values(), AS_WANTED);
    assert_eq!(plan.changes.len(), 3);
    assert_eq!(plan.absent, ["kernel.io_uring_disabled"]);
    assert!(Plan::make(&machine.tree(), &profile).unwrap().holds());

    let done = revert(&machine.tree(), &machine.state(), true).unwrap();
    assert_eq!(
        (machine.values(), done.restored.len()),
        (AS_WANTED.map(String::from).to_vec(), 3)
    );
    let done = revert(&machine.tree(), &machine.state(), false).unwrap();
    assert_eq!(machine.values(), AS_BEFORE);
    assert_eq!(done.restored.len(), 3);
    assert!(!machine.state().exists());
    let again = revert(&machine.tree(), &machine.state(), false).unwrap();
    assert_eq!(again.profile, None);
}

#[test]
fn more_of_a_ceiling_stays() {
    let machine = Machine::new();
    machine.set("fs/file-max", "9223372036854775807\n");
    let profile = machine.profile("p.conf", PROFILE);
    let plan = apply(&machine.tree(), &profile, &machine.persisting()).unwrap();
    assert_eq!(machine.values()[0], "9223372036854775807");
    assert_eq!(plan.changes.len(), 2);
    let text = fs::read_to_string(machine.dir.path().join("etc/90-test.conf")).unwrap();
    assert!(
        text.contains("fs.file-max = 9223372036854775807\n"),
        "{text}"
    );
}

#[test]
fn applied_twice_it_remembers_what_was_there_first() {
    let machine = Machine::new();
    let profile = machine.profile("p.conf", PROFILE);
    apply(&machine.tree(), &profile, &machine.options()).unwrap();
    let kept = State::load(&machine.state()).unwrap();
    let plan = apply(&machine.tree(), &profile, &machine.options()).unwrap();
    assert!(plan.changes.is_empty());
    assert_eq!(State::load(&machine.state()).unwrap(), kept);
    // Somebody changes one in between.
    machine.set("fs/file-max", "150\n");
    let plan = apply(&machine.tree(), &profile, &machine.options()).unwrap();
    assert_eq!(plan.changes.len(), 1);
    machine.set("net/ipv4/tcp_rmem", "7 8 9\n");
    let done = revert(&machine.tree(), &machine.state(), false).unwrap();
    assert_eq!(machine.values(), AS_BEFORE);
    assert_eq!(done.touched, ["net.ipv4.tcp_rmem"]);
}

#[test]
fn another_profile_must_be_reverted_first() {
    let machine = Machine::new();
    let first = machine.profile("p.conf", PROFILE);
    let second = machine.profile("q.conf", "# Q.\nfs.file-max = 300\n");
    apply(&machine.tree(), &first, &machine.options()).unwrap();
    let error = apply(&machine.tree(), &second, &machine.options()).unwrap_err();
    assert!(error.to_string().contains("doctor revert"), "{error}");
    assert_eq!(machine.values(), AS_WANTED);
    revert(&machine.tree(), &machine.state(), false).unwrap();
    apply(&machine.tree(), &second, &machine.options()).unwrap();
    assert_eq!(machine.values()[0], "300");
}

#[test]
fn where_a_write_fails_or_is_not_taken_all_is_put_back() {
    for key in ["fs.file-max", "net.ipv4.tcp_rmem"] {
        for fault in [Fault::Fails, Fault::Clamps] {
            let machine = Machine::new();
            let profile = machine.profile("p.conf", PROFILE);
            let kernel = machine.faulty(key, fault);
            let error = apply(&kernel, &profile, &machine.persisting()).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
            assert_eq!(machine.values(), AS_BEFORE, "{error}");
            assert!(!machine.state().exists(), "{error}");
            assert!(!machine.dir.path().join("etc").exists(), "{error}");
        }
    }
}

#[test]
fn what_an_earlier_apply_kept_outlives_a_failed_one() {
    let machine = Machine::new();
    let profile = machine.profile("p.conf", PROFILE);
    apply(&machine.tree(), &profile, &machine.options()).unwrap();
    let kept = State::load(&machine.state()).unwrap();
    machine.set("net/ipv4/tcp_rmem", "7 8 9\n");
    let kernel = machine.faulty("net.ipv4.tcp_rmem", Fault::Fails);
    apply(&kernel, &profile, &machine.options()).unwrap_err();
    assert_eq!(machine.values()[1], "7 8 9");
    assert_eq!(State::load(&machine.state()).unwrap(), kept);
    revert(&machine.tree(), &machine.state(), false).unwrap();
    assert_eq!(machine.values(), AS_BEFORE);
}

#[test]
fn what_cannot_be_put_back_is_named_and_its_state_stays() {
    let machine = Machine::new();
    let profile = machine.profile("p.conf", PROFILE);
    let kernel = machine.faulty("net.ipv4.tcp_rmem", Fault::FailsForGood);
    let error = apply(&kernel, &profile, &machine.options()).unwrap_err();
    let TuneError::Stuck { keys, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(keys, &["net.ipv4.tcp_rmem", "fs.file-max"]);
    revert(&machine.tree(), &machine.state(), false).unwrap();
    assert_eq!(machine.values(), AS_BEFORE);
}

#[test]
fn a_revert_that_fails_changes_nothing_and_can_be_tried_again() {
    let machine = Machine::new();
    let profile = machine.profile("p.conf", PROFILE);
    apply(&machine.tree(), &profile, &machine.options()).unwrap();
    // The second of its writes: backwards.
    let kernel = machine.faulty("net.ipv4.tcp_rmem", Fault::Fails);
    revert(&kernel, &machine.state(), false).unwrap_err();
    assert_eq!(machine.values(), AS_WANTED);
    revert(&machine.tree(), &machine.state(), false).unwrap();
    assert_eq!(machine.values(), AS_BEFORE);
}

#[test]
fn missing_keys_and_missing_rights_are_known_before_the_first_write() {
    let machine = Machine::new();
    let text = format!("{PROFILE}\n# Nowhere.\nnet.core.nothing = 1\n");
    let profile = machine.profile("p.conf", &text);
    let error = apply(&machine.tree(), &profile, &machine.options()).unwrap_err();
    assert!(error.to_string().contains("net.core.nothing"), "{error}");
    assert_eq!(machine.values(), AS_BEFORE);
    let options = Options {
        skip_missing: true,
        ..machine.options()
    };
    // The last of the keys.
    let kernel = machine.faulty("net.ipv4.ip_local_reserved_ports", Fault::Refuses);
    let error = apply(&kernel, &profile, &options).unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
    assert_eq!(kernel.writes.get(), 0);
    assert!(!machine.state().exists());
    apply(&machine.tree(), &profile, &options).unwrap();
    assert_eq!(machine.values(), AS_WANTED);
}

#[test]
fn where_the_state_cannot_be_kept_nothing_is_set() {
    // In the way: a file where the folder should be, a folder where the new state is written.
    for folder in [false, true] {
        let machine = Machine::new();
        let profile = machine.profile("p.conf", PROFILE);
        let lib = machine.dir.path().join("lib");
        if folder {
            fs::create_dir_all(lib.join("state.json.new")).unwrap();
        } else {
            fs::write(lib, "in the way").unwrap();
        }
        let error = apply(&machine.tree(), &profile, &machine.options()).unwrap_err();
        assert!(error.to_string().contains("--state FILE"), "{error}");
        assert_eq!(machine.values(), AS_BEFORE);
    }
}

#[test]
fn a_crash_after_the_first_write_can_be_reverted() {
    let machine = Machine::new();
    let profile = machine.profile("p.conf", PROFILE);
    let kernel = machine.faulty("net.ipv4.tcp_rmem", Fault::Crashes);
    let apply = || apply(&kernel, &profile, &machine.options());
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(apply)).unwrap_err();
    assert_eq!(machine.values()[0], "200");
    revert(&machine.tree(), &machine.state(), false).unwrap();
    assert_eq!(machine.values(), AS_BEFORE);
}

#[test]
fn the_file_for_the_next_boot_comes_and_goes_with_the_profile() {
    let machine = Machine::new();
    let profile = machine.profile("p.conf", PROFILE);
    let options = machine.persisting();
    let path = options.persist.clone().unwrap();
    // One that is not ours is not touched, and neither is anything else.
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "# mine\n").unwrap();
    let error = apply(&machine.tree(), &profile, &options).unwrap_err();
    assert!(error.to_string().contains("--persist=FILE"), "{error}");
    assert_eq!(machine.values(), AS_BEFORE);
    fs::remove_file(&path).unwrap();

    apply(&machine.tree(), &profile, &options).unwrap();
    let written = Profile::find(path.to_str().unwrap()).unwrap();
    assert!(Plan::make(&machine.tree(), &written).unwrap().holds());
    assert!(written.settings.iter().all(|s| !s.why.is_empty()));
    let done = revert(&machine.tree(), &machine.state(), false).unwrap();
    assert_eq!(done.removed.as_deref(), Some(path.as_path()));
    assert!(!path.exists());

    apply(&machine.tree(), &profile, &options).unwrap();
    fs::write(&path, "# edited\n").unwrap();
    let done = revert(&machine.tree(), &machine.state(), false).unwrap();
    assert_eq!(done.kept.as_deref(), Some(path.as_path()));
    assert_eq!(fs::read_to_string(&path).unwrap(), "# edited\n");
}

#[test]
fn there_is_one_file_for_the_next_boot() {
    let machine = Machine::new();
    let profile = machine.profile("p.conf", PROFILE);
    let at = |name: &str| machine.dir.path().join(name);
    for name in ["a.conf", "b.conf"] {
        let options = Options {
            persist: Some(at(name)),
            ..machine.options()
        };
        apply(&machine.tree(), &profile, &options).unwrap();
        assert!(at(name).exists());
    }
    assert!(!at("a.conf").exists(), "nothing would remove it any more");
    // Without the wish it stays, and is remembered.
    machine.set("fs/file-max", "150\n");
    apply(&machine.tree(), &profile, &machine.options()).unwrap();
    assert!(at("b.conf").exists());
    revert(&machine.tree(), &machine.state(), false).unwrap();
    assert!(!at("b.conf").exists());
}

#[test]
fn where_the_file_for_the_next_boot_cannot_be_written_all_is_put_back() {
    let machine = Machine::new();
    let profile = machine.profile("p.conf", PROFILE);
    let options = Options {
        persist: Some(machine.dir.path().join("p.conf/below-a-file")),
        ..machine.options()
    };
    let error = apply(&machine.tree(), &profile, &options).unwrap_err();
    assert!(matches!(error, TuneError::Persist { .. }), "{error}");
    assert_eq!(machine.values(), AS_BEFORE);
    assert!(!machine.state().exists());
}

#[test]
fn the_built_in_profiles_can_be_applied_and_reverted() {
    for name in ["dev", "100k", "1m", "2m"] {
        let machine = Machine::new();
        let profile = Profile::find(name).unwrap();
        for setting in &profile.settings {
            let path = setting.key.replace('.', "/");
            machine.set(&path, "1\n");
        }
        apply(&machine.tree(), &profile, &machine.options()).unwrap();
        assert!(
            Plan::make(&machine.tree(), &profile).unwrap().holds(),
            "{name}"
        );
        revert(&machine.tree(), &machine.state(), false).unwrap();
        let root: &Path = machine.dir.path();
        for setting in &profile.settings {
            let path = root.join("proc/sys").join(setting.key.replace('.', "/"));
            assert_eq!(fs::read_to_string(path).unwrap(), "1\n", "{}", setting.key);
        }
    }
}
