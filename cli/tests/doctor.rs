//! `trunkline doctor` on real kernels: sysctls of a network namespace of its own, a process without
//! rights, a read-only /proc/sys; and what it prints. Nothing here changes the host. How `apply`
//! behaves when something fails stands in `kernel-tuning/tests/tune.rs`.

use std::path::Path;
use std::process::Command;

const BINARY: &str = env!("CARGO_BIN_EXE_trunkline");

/// Keys that every network namespace has for itself.
const PROFILE: &str = "\
# More may wait.
net.core.somaxconn = 5000

# A range and a list.
net.ipv4.ip_local_port_range = 1024 65535
net.ipv4.ip_local_reserved_ports = 7400-7431

# Three numbers.
net.ipv4.tcp_rmem = 4096 131072 1048576
";

/// Prints what the kernel has.
const SHOW: &str = "for k in core/somaxconn ipv4/ip_local_port_range ipv4/ip_local_reserved_ports \
                    ipv4/tcp_rmem; do cat /proc/sys/net/$k; done";

struct Run {
    code: i32,
    out: String,
    err: String,
}

fn run(command: &mut Command) -> Run {
    let output = command.env_clear().output().unwrap();
    Run {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn doctor(args: &[&str]) -> Run {
    run(Command::new(BINARY).arg("doctor").args(args))
}

/// Runs a script as root of new namespaces, in `dir`; `$doctor` is the doctor. Needs no rights but
/// those to make a user namespace.
fn isolated(dir: &Path, script: &str) -> Run {
    let script = format!("doctor='{BINARY} doctor'\n{script}");
    let mut command = Command::new("/usr/bin/unshare");
    command.args([
        "--user",
        "--map-root-user",
        "--net",
        "--mount",
        "/bin/sh",
        "-ec",
    ]);
    let run = run(command.arg(script).current_dir(dir));
    assert!(
        !run.err.contains("unshare:"),
        "user namespaces are needed (sysctl user.max_user_namespaces): {}",
        run.err
    );
    run
}

fn dir_with_profile() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("net.conf"), PROFILE).unwrap();
    dir
}

#[test]
fn the_kernel_takes_a_profile_and_gets_its_own_values_back() {
    let dir = dir_with_profile();
    let run = isolated(
        dir.path(),
        &format!(
            "{SHOW} > before
             $doctor verify --profile ./net.conf > verify.0 && exit 9
             $doctor apply --profile ./net.conf --dry-run --state state.json > dry
             {SHOW} > still; test ! -e state.json
             $doctor apply --profile ./net.conf --state state.json --persist=boot.conf > apply.1
             {SHOW} > applied
             $doctor apply --profile ./net.conf --state state.json > apply.2
             $doctor verify --profile ./net.conf
             $doctor verify --profile ./boot.conf
             $doctor revert --state state.json > revert
             {SHOW} > after
             test ! -e state.json; test ! -e boot.conf"
        ),
    );
    let file = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert!(file("verify.0").contains("net.core.somaxconn"));
    assert!(file("dry").contains("4 would be set"), "{}", file("dry"));
    assert_eq!(file("still"), file("before"));
    assert!(file("apply.1").contains("4 set"), "{}", file("apply.1"));
    let applied = file("applied");
    assert_eq!(
        applied.lines().collect::<Vec<_>>(),
        ["5000", "1024\t65535", "7400-7431", "4096\t131072\t1048576"]
    );
    assert!(file("apply.2").contains("0 set, 4 as wanted already"));
    assert_eq!(
        run.out.matches("All 4 sysctls are").count(),
        2,
        "{}",
        run.out
    );
    assert_ne!(applied, file("before"));
    assert_eq!(file("after"), file("before"), "{}", file("revert"));
}

#[test]
fn a_value_that_the_kernel_refuses_undoes_what_was_written_before_it() {
    let dir = dir_with_profile();
    let bad = format!("{PROFILE}\n# No number.\nnet.ipv4.tcp_fin_timeout = soon\n");
    std::fs::write(dir.path().join("bad.conf"), bad).unwrap();
    let run = isolated(
        dir.path(),
        &format!(
            "{SHOW} > before
             $doctor apply --profile ./bad.conf --state state.json && exit 9
             {SHOW} > after
             test ! -e state.json"
        ),
    );
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert!(run.err.contains("net.ipv4.tcp_fin_timeout"), "{}", run.err);
    assert!(run.err.contains("put back"), "{}", run.err);
    let file = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert_eq!(file("after"), file("before"));
}

#[test]
fn a_read_only_proc_is_refused_with_its_cure() {
    let dir = dir_with_profile();
    let run = isolated(
        dir.path(),
        "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys
         $doctor apply --profile ./net.conf --state state.json && exit 9
         test ! -e state.json",
    );
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert!(run.err.contains("docker run --sysctl"), "{}", run.err);
}

#[test]
fn without_rights_it_says_so_and_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let profile = dir.path().join("p.conf");
    // A value that no machine has.
    std::fs::write(&profile, "# Odd.\nnet.ipv4.tcp_fin_timeout = 61\n").unwrap();
    let state = dir.path().join("new/state.json");
    let args = [
        "doctor",
        "apply",
        "--profile",
        profile.to_str().unwrap(),
        "--state",
        state.to_str().unwrap(),
    ];
    let root = run(Command::new("/usr/bin/id").arg("-u")).out.trim() == "0";
    let mut command = Command::new(if root { "/usr/bin/setpriv" } else { BINARY });
    if root {
        use std::os::unix::fs::PermissionsExt as _;
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(dir.path(), open).unwrap();
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", BINARY]);
    }
    let refused = run(command.args(args));
    assert_eq!(refused.code, 1, "{}{}", refused.out, refused.err);
    assert!(refused.err.contains("as root"), "{}", refused.err);
    assert!(
        refused.err.contains("Nothing was changed"),
        "{}",
        refused.err
    );
    assert!(!state.parent().unwrap().exists());
}

#[test]
fn keys_of_the_host_are_missed_in_a_network_namespace_before_anything_is_set() {
    let dir = dir_with_profile();
    let text = format!("{PROFILE}\n# Of the whole machine.\nnet.ipv4.tcp_mem = 1 2 3\n");
    std::fs::write(dir.path().join("host.conf"), text).unwrap();
    let run = isolated(
        dir.path(),
        &format!(
            "{SHOW} > before
             $doctor apply --profile ./host.conf --state state.json && exit 9
             {SHOW} > after
             $doctor apply --profile ./host.conf --state state.json --skip-missing
             $doctor verify --profile ./host.conf && exit 9
             $doctor revert --state state.json"
        ),
    );
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert!(
        run.err.contains("not here: net.ipv4.tcp_mem"),
        "{}",
        run.err
    );
    assert!(run.out.contains("4 set"), "{}", run.out);
    let file = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert_eq!(file("after"), file("before"));
}

#[test]
fn targets_and_profiles_are_understood_as_people_write_them() {
    for (args, target, profile) in [
        (&["--target", "1m"][..], 1_000_000, "1m"),
        (&["--target", "1M"], 1_000_000, "1m"),
        (&["--target", "1_000_000"], 1_000_000, "1m"),
        (&["--target", "50k"], 50_000, "100k"),
        (&[], 10_000, "dev"),
        (&["--profile", "2M"], 2_000_000, "2m"),
        (&["--profile", "dev", "--target", "1.2m"], 0, ""),
        (&["--target", "0"], 0, ""),
        (&["--target", "-1"], 0, ""),
        (&["--target", "99999999999999M"], 0, ""),
        (&["--profile", "3m"], 0, ""),
        (&["--profile", "./nowhere.conf"], 0, ""),
    ] {
        let report = doctor(&[args, &["--json"]].concat());
        if target == 0 {
            assert_eq!(report.code, 64, "{args:?}: {}", report.err);
            assert!(!report.err.is_empty(), "{args:?}");
            continue;
        }
        let json: serde_json::Value = serde_json::from_str(&report.out).unwrap();
        assert_eq!(json["target"], target, "{args:?}");
        assert_eq!(json["profile"], profile, "{args:?}");
    }
}

#[test]
fn bad_arguments_of_its_commands_are_64() {
    for args in [
        &["apply"][..],
        &["apply", "--profile", "3m"],
        &["verify"],
        &["revert", "--profile", "1m"],
        &["print"],
        &["print", "nonsense"],
        &["print", "sysctl"],
        &["print", "limits", "--profile", "./x.conf"],
        &["--target", "1m", "apply", "--profile", "1m"],
    ] {
        let run = doctor(args);
        assert_eq!(run.code, 64, "{args:?}: {}", run.err);
        assert!(!run.err.is_empty(), "{args:?}");
    }
    for command in ["apply", "verify", "revert", "print"] {
        let help = doctor(&[command, "--help"]);
        assert_eq!(help.code, 0);
        assert!(help.out.contains("Examples:"), "{}", help.out);
    }
}

#[test]
fn the_files_of_the_profiles_come_out_of_the_binary() {
    let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/../kernel-tuning");
    for (args, file) in [
        (
            &["sysctl", "--profile", "1m"][..],
            "profiles/1m/sysctl.conf",
        ),
        (
            &["limits", "--profile", "100K"],
            "profiles/100k/limits.conf",
        ),
        (&["systemd", "--profile", "2m"], "profiles/2m/systemd.conf"),
        (&["unit"], "units/trunkline.service"),
        (&["unit", "--role", "edge"], "units/trunkline-edge.service"),
        (&["seccomp"], "seccomp/edge.json"),
    ] {
        let printed = doctor(&[&["print"][..], args].concat());
        assert_eq!(printed.code, 0, "{}", printed.err);
        let kept = std::fs::read_to_string(Path::new(tree).join(file)).unwrap();
        assert_eq!(printed.out, kept, "{file}");
    }
}

#[test]
fn units_stop_no_sooner_than_a_drain_takes() {
    let seconds = |text: &str, name: &str| -> u64 {
        let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.trim_matches('"')
            .trim_end_matches('s')
            .parse()
            .unwrap()
    };
    let defaults = run(Command::new(BINARY).args(["config", "default"])).out;
    let drain = seconds(&defaults, "drain_budget = ");
    for (role, after) in [("serve", 15), ("edge", 5), ("core", 15)] {
        let unit = doctor(&["print", "unit", "--role", role]).out;
        let stop = seconds(&unit, "TimeoutStopSec=");
        let budget = if role == "core" { 0 } else { drain };
        assert!(stop >= budget + after, "{role}: {stop}");
        for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
            let filter = unit.lines().find(|l| l.starts_with("SystemCallFilter="));
            assert!(filter.unwrap().contains(call), "{role}");
        }
        assert!(unit.contains(&format!("ExecStart=/usr/local/bin/trunkline {role} ")));
    }
}
