//! The binary as scripts and operators meet it: layers of settings, exit codes, what is said about
//! mistakes. Each test runs the real binary with an environment of its own.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use trunkline_identity::{DevSecret, KeySource, Verifier};

struct Run {
    code: i32,
    out: String,
    err: String,
}

/// Runs the binary with no variables but `variables`, in `dir`.
fn run_in(dir: &Path, args: &[&str], variables: &[(&str, &str)]) -> Run {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_trunkline"))
        .args(args)
        .env_clear()
        .envs(variables.iter().copied())
        .current_dir(dir)
        .output()
        .unwrap();
    Run {
        code: status.code().unwrap(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

fn run(args: &[&str], variables: &[(&str, &str)]) -> Run {
    run_in(Path::new("/"), args, variables)
}

fn file(dir: &Path, text: &str) -> String {
    let path = dir.join("trunkline.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(
        dir.path(),
        "send_rate = 2\nsend_burst = 2\nheartbeat = \"2s\"\n",
    );
    let variables = [
        ("TRUNKLINE_CONFIG", config.as_str()),
        ("TRUNKLINE_SEND_RATE", "3"),
        ("TRUNKLINE_SEND_BURST", "3"),
    ];
    let shown = run(&["config", "show", "--send-rate", "4"], &variables);
    assert_eq!(shown.code, 0, "{}", shown.err);
    for line in [
        "send_rate = 4  # flag".to_owned(),
        "send_burst = 3  # environment".to_owned(),
        format!("heartbeat = \"2s\"  # {config}"),
        "frame_bytes_max = \"64 KiB\"  # default".to_owned(),
        "# shards is not set".to_owned(),
    ] {
        assert!(
            shown.out.lines().any(|l| l == line),
            "{line} in {}",
            shown.out
        );
    }
    // The flag for the file wins over the variable for it.
    let other = dir.path().join("other.toml");
    std::fs::write(&other, "heartbeat = \"9s\"").unwrap();
    let args = ["config", "show", "--config", other.to_str().unwrap()];
    let shown = run(&args, &variables);
    assert!(shown.out.contains("heartbeat = \"9s\""), "{}", shown.out);
}

#[test]
fn the_effective_settings_can_be_read_again_and_hide_secrets() {
    let secret = "not-for-your-eyes";
    let args = [
        "config",
        "show",
        "--role",
        "edge",
        "--origins",
        "https://a,https://b",
    ];
    let shown = run(&args, &[("TRUNKLINE_JWT_SECRET", secret)]);
    assert_eq!(shown.code, 0, "{}", shown.err);
    assert!(!shown.out.contains(secret) && shown.out.contains("********"));
    let dir = tempfile::tempdir().unwrap();
    let config = file(dir.path(), &shown.out);
    let again = run(
        &["config", "show", "--role", "edge", "--config", &config],
        &[],
    );
    assert_eq!(again.code, 0, "{}", again.err);
    assert!(
        again
            .out
            .contains(r#"origins = ["https://a", "https://b"]"#)
    );
}

#[test]
fn unknown_names_are_told_the_nearest_known_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(dir.path(), "send_rat = 1\n");
    let variables = [("TRUNKLINE_HARTBEAT", "1s")];
    let checked = run(&["config", "check", "--config", &config], &variables);
    assert_eq!(checked.code, 64);
    assert!(
        checked
            .err
            .contains("send_rat: unknown key; did you mean send_rate?"),
        "{}",
        checked.err
    );
    let expected = "TRUNKLINE_HARTBEAT: unknown variable; did you mean TRUNKLINE_HEARTBEAT?";
    assert!(checked.err.contains(expected), "{}", checked.err);

    let flag = run(&["serve", "--send-rat", "1"], &[]);
    assert_eq!(flag.code, 64);
    assert!(flag.err.contains("--send-rate"), "{}", flag.err);
    let subcommand = run(&["srve"], &[]);
    assert_eq!(subcommand.code, 64);
    assert!(subcommand.err.contains("serve"), "{}", subcommand.err);
}

#[test]
fn all_problems_are_printed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(
        dir.path(),
        "ws = \"nowhere\"\nheartbeat = 30\n[limits]\na = 1\n",
    );
    let variables = [("TRUNKLINE_SEND_RATE", "fast"), ("TRUNKLINE_NOPE", "")];
    let args = [
        "config",
        "check",
        "--config",
        &config,
        "--io-driver",
        "kqueue",
        "--jwks",
        "k",
    ];
    let checked = run(&args, &variables);
    assert_eq!(checked.code, 64);
    assert_eq!(checked.out, "");
    for place in [
        "trunkline.toml: ws:",
        "trunkline.toml: heartbeat:",
        "trunkline.toml: limits:",
        "TRUNKLINE_SEND_RATE:",
        "TRUNKLINE_NOPE:",
        "--io-driver:",
        "--jwks:",
    ] {
        assert!(checked.err.contains(place), "{place} in {}", checked.err);
    }
    assert_eq!(checked.err.lines().count(), 7, "{}", checked.err);
}

#[test]
fn bad_configuration_ends_with_64_whatever_it_is() {
    for args in [
        &["serve", "--ws", "7400"][..],
        &[
            "serve",
            "--ws",
            "0.0.0.0:0",
            "--dev-tokens",
            "--jwt-secret",
            "s",
        ],
        &["serve", "--ws", "0.0.0.0:0"],
        &["serve", "--config", "/nonexistent/trunkline.toml"],
        &["--send-rate", "-1"],
        &["edge"],
        &[
            "core",
            "--jwt-secret",
            "s",
            "--store",
            "cassandra://db/chat",
        ],
        &["core", "--jwt-secret", "s", "--registry", "redis://r"],
        &["core", "--jwt-secret", "s", "--bus", "kafka://k:9092"],
        &["serve", "--jwks", "https://idp.example.org/keys"],
        &["token", "--user", "not a user", "--secret", "s"],
        &["token", "--user", "alice", "--ttl", "soon", "--secret", "s"],
        &["token", "--user", "alice", "--data", "/nonexistent"],
        &["doctor", "--target", "many"],
        &["config", "check", "--role", "edge"],
        &["nonsense"],
    ] {
        let run = run(args, &[]);
        assert_eq!(run.code, 64, "{args:?}: {}", run.err);
        assert!(!run.err.is_empty(), "{args:?}");
    }
}

#[test]
fn the_default_file_parses_and_checks_clean() {
    let default = run(&["config", "default"], &[]);
    assert_eq!(default.code, 0);
    let dir = tempfile::tempdir().unwrap();
    let config = file(dir.path(), &default.out);
    for role in ["serve", "edge", "core"] {
        let variables = [("TRUNKLINE_JWT_SECRET", "s")];
        let checked = run(
            &["config", "check", "--config", &config, "--role", role],
            &variables,
        );
        assert_eq!(checked.code, 0, "{role}: {}", checked.err);
        let args = ["config", "show", "--role", role];
        let without = run(&args, &variables).out;
        let with = run(&[&args[..], &["--config", &config]].concat(), &variables).out;
        let values = |text: &str| -> Vec<String> {
            text.lines()
                .map(|l| l.split("  # ").next().unwrap_or(l).to_owned())
                .collect()
        };
        assert_eq!(values(&with), values(&without), "the file changes nothing");
    }
}

#[test]
fn a_token_is_all_that_token_prints_and_it_verifies() {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let identity = |run: &Run, secret: &str| {
        assert_eq!(run.code, 0, "{}", run.err);
        assert_eq!(run.err, "");
        assert_eq!(run.out.lines().count(), 1);
        let verifier = Verifier::new(&KeySource::Secret(secret.to_owned()));
        verifier.verify(run.out.trim_end(), now).unwrap()
    };
    let by_flag = run(
        &["token", "--user", "alice", "--ttl", "1h", "--secret", "s"],
        &[],
    );
    let alice = identity(&by_flag, "s");
    assert_eq!(alice.user, "alice");
    let expires = alice.expires_at.unwrap();
    assert!((now + 3_590..=now + 3_660).contains(&expires), "{expires}");

    let variables = [("TRUNKLINE_JWT_SECRET", "v")];
    let by_variable = run(&["token", "--user", "bob"], &variables);
    assert_eq!(identity(&by_variable, "v").user, "bob");

    let dir = tempfile::tempdir().unwrap();
    let secret = DevSecret::load_or_create(&dir.path().join("data")).unwrap();
    let by_data = run_in(dir.path(), &["token", "--user", "carol"], &[]);
    assert_eq!(identity(&by_data, &secret).user, "carol");
    let data = dir.path().join("data");
    let args = ["token", "--user", "dave", "--data", data.to_str().unwrap()];
    let by_data_flag = run(&args, &variables);
    assert_eq!(identity(&by_data_flag, &secret).user, "dave");
}

#[test]
fn help_names_every_flag_and_gives_examples() {
    for (subcommand, flags) in [
        (
            "serve",
            &[
                "--data",
                "--ws",
                "--tcp",
                "--http",
                "--admin",
                "--jwt-secret",
                "--jwks",
                "--shards",
                "--rings-per-shard",
                "--io-driver",
                "--send-rate",
                "--send-burst",
                "--dev-tokens",
                "--config",
                "--heartbeat",
                "--drain-budget",
                "--ports-file",
                "--log",
                "--origins",
                "--cors",
                "--worker-id",
                "--group-members-max",
            ][..],
        ),
        (
            "edge",
            &[
                "--ws",
                "--tcp",
                "--admin",
                "--core",
                "--jwt-secret",
                "--jwks",
                "--echo",
                "--shards",
            ],
        ),
        (
            "core",
            &[
                "--data",
                "--http",
                "--grpc",
                "--admin",
                "--store",
                "--registry",
                "--bus",
            ],
        ),
        ("doctor", &["--target", "--json"]),
        ("token", &["--user", "--ttl", "--secret", "--data"]),
    ] {
        let help = run(&[subcommand, "--help"], &[]);
        assert_eq!(help.code, 0, "{}", help.err);
        assert!(help.out.contains("Examples:"), "{}", help.out);
        for flag in flags {
            let named = help
                .out
                .split_whitespace()
                .any(|w| w == *flag || w.starts_with(&format!("{flag}[")));
            assert!(named, "{subcommand} {flag}: {}", help.out);
        }
    }
    let help = run(&["--help"], &[]);
    for subcommand in [
        "serve", "edge", "core", "bench", "doctor", "token", "config",
    ] {
        assert!(
            help.out.contains(&format!("  {subcommand}")),
            "{}",
            help.out
        );
    }
    assert_eq!(run(&["--version"], &[]).code, 0);
}

#[test]
fn doctor_reports_for_people_and_for_tools() {
    let report = run(&["doctor", "--target", "10"], &[]);
    assert!(
        report.out.contains("RLIMIT_NOFILE") && report.out.contains("Target 10"),
        "{}",
        report.out
    );
    let json = run(&["doctor", "--target", "1M", "--json"], &[]);
    let value: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(value["target"], 1_000_000);
    let fails = value["checks"]
        .as_array()
        .unwrap()
        .iter()
        .any(|c| c["status"] == "fail");
    assert_eq!(json.code, i32::from(fails));
    let impossible = run(&["doctor", "--target", "100000M"], &[]);
    assert_eq!(impossible.code, 1, "{}", impossible.out);
    assert!(impossible.out.contains("FAIL") && impossible.out.contains("\n      > "));
}
