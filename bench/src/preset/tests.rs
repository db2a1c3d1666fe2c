//! Scenario files against a command line with each kind of flag, and against the real one.

use clap::{Args as _, Subcommand as _};

use super::*;

#[derive(Debug, clap::Args)]
struct Demo {
    /// Clients
    #[arg(long, short = 'n', default_value_t = 1_000)]
    connections: u32,
    #[arg(long, default_value_t = 0.5)]
    group_share: f64,
    /// How long
    #[arg(long, default_value = "10s")]
    duration: String,
    #[arg(long)]
    spawn: bool,
    #[arg(long, allow_hyphen_values = true)]
    spawn_args: Option<String>,
    #[arg(long, value_delimiter = ',')]
    server_pid: Vec<u32>,
    #[arg(long)]
    budget: Vec<String>,
    #[arg(long)]
    config: Option<String>,
}

fn bench() -> Command {
    let demo = Demo::augment_args(Command::new("demo").about("A demonstration"));
    Command::new("bench")
        .subcommand(demo)
        .subcommand(Command::new("other"))
        .subcommand(Command::new("run"))
        .subcommand(Command::new("inner").hide(true))
}

fn words(line: &str) -> Vec<OsString> {
    line.split(' ').map(OsString::from).collect()
}

/// What `line` with `FILE` in it means when the file says `text`.
fn expanded(text: &str, line: &str) -> Result<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    let argv = words(&line.replace("FILE", path));
    match expand(argv, &bench()) {
        Ok(argv) => Ok(argv
            .iter()
            .map(|w| w.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")),
        Err(problems) => Err(problems.join("\n").replace(path, "FILE")),
    }
}

const SOME: &str = "scenario = \"demo\"\nconnections = 5\ngroup-share = 0.25\nspawn = true\n\
    spawn_args = \"--shards 2\"\nserver_pid = [7, 8]\n[budgets]\n\"ack.p99_ms\" = \"<=25\"\n";

#[test]
fn a_file_means_what_one_would_type() {
    assert_eq!(
        expanded(SOME, "trunkline bench run FILE").unwrap(),
        "trunkline bench demo --budget=ack.p99_ms<=25 --connections=5 --group-share=0.25 \
         --server-pid=7 --server-pid=8 --spawn --spawn-args=--shards 2"
    );
    let listed = "scenario = \"demo\"\nspawn = false\nbudgets = [\"ack.p99_ms <= 25\"]";
    assert_eq!(
        expanded(listed, "trunkline bench demo --config FILE").unwrap(),
        "trunkline bench demo --budget=ack.p99_ms<=25"
    );
    assert_eq!(
        expanded("connections = 5", "trunkline bench demo -n 3 --config=FILE").unwrap(),
        "trunkline bench demo -n 3"
    );
}

#[test]
fn what_is_typed_replaces_the_files() {
    for (typed, gone) in [
        ("--connections 9", "--connections=5"),
        ("--connections=9", "--connections=5"),
        ("-n 9", "--connections=5"),
        ("-n9", "--connections=5"),
        ("--server-pid 9", "--server-pid=7"),
        ("--budget connect_rate>=1", "--budget=ack"),
    ] {
        let line = expanded(SOME, &format!("trunkline bench run FILE {typed}")).unwrap();
        assert!(!line.contains(gone), "{line}");
        assert!(line.ends_with(typed), "{line}");
        assert!(line.contains("--group-share=0.25"), "{line}");
    }
    // The value of one flag is not another flag.
    let line = expanded(SOME, "trunkline bench run FILE --spawn-args --connections").unwrap();
    assert!(line.contains("--connections=5"), "{line}");
}

#[test]
fn a_line_without_a_file_stays_as_it_is() {
    for line in [
        "trunkline",
        "trunkline serve --config x.toml",
        "trunkline bench",
        "trunkline bench demo --connections 5",
        "trunkline bench run",
        "trunkline bench run --help",
        "trunkline bench demo --config",
    ] {
        assert_eq!(
            expand(words(line), &bench()).unwrap(),
            words(line),
            "{line}"
        );
    }
}

#[test]
fn every_mistake_in_a_file_is_told_with_its_cure() {
    let error = |text: &str| expanded(text, "trunkline bench run FILE").unwrap_err();
    let both = error("scenario = \"demo\"\nconections = 5\nspwan = true");
    assert!(both.contains("FILE: no parameter \"conections\": did you mean connections?"));
    assert!(both.contains("FILE: no parameter \"spwan\": did you mean spawn"));
    for (text, told) in [
        ("connections = 5", "add a line such as scenario = \"demo\""),
        ("scenario = \"dmeo\"", "did you mean demo?"),
        ("scenario = \"run\"", "no scenario \"run\""),
        ("scenario = \"demo\"\nspawn = 1", "spawn is true or false"),
        (
            "scenario = \"demo\"\nconnections = [1]",
            "connections takes one value",
        ),
        (
            "scenario = \"demo\"\nconfig = \"x\"",
            "no parameter \"config\"",
        ),
        ("scenario = \"demo\"\n[budgets]\nack = 3", "a limit is text"),
        (
            "scenario = \"demo\"\n[budgets]\n\"akc.p99_ms\" = \"<=1\"",
            "did you mean ack?",
        ),
        ("scenario = ", "TOML parse error at line 1"),
    ] {
        let found = error(text);
        assert!(found.contains(told), "{text}: {found}");
    }
    let other = expanded("scenario = \"demo\"", "trunkline bench other --config FILE");
    assert!(other.unwrap_err().contains("trunkline bench demo --config"));
}

/// An example with the lines that have a default uncommented.
fn with_defaults(example: &str) -> String {
    let lines = example.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if is_setting(rest) => rest,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn is_setting(line: &str) -> bool {
    let key = line.split_once(" = ").map_or("", |(key, _)| key);
    let is_key = |key: &str| {
        !key.is_empty()
            && key
                .chars()
                .all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
    };
    is_key(key) && !line.ends_with("# no default")
}

#[test]
fn an_example_with_its_defaults_means_nothing_new() {
    let real = crate::args::BenchCommand::augment_subcommands(Command::new("bench"));
    for bench in [bench(), real] {
        for scenario in scenarios(&bench) {
            let text = with_defaults(&example(&bench, scenario).unwrap());
            let (_, flags) = read(&text, &bench, None, &[]).unwrap();
            let command = bench.find_subcommand(scenario).unwrap();
            let matches = |words: &[String]| {
                let line = [scenario.to_owned()]
                    .into_iter()
                    .chain(words.iter().cloned());
                command.clone().try_get_matches_from(line).unwrap()
            };
            let (empty, filled) = (matches(&[]), matches(&flags));
            for arg in command.get_arguments().filter(|a| takes_value(a)) {
                let raw = |m: &clap::ArgMatches| -> Option<Vec<String>> {
                    let all = m.get_raw(arg.get_id().as_str())?;
                    Some(all.map(|v| v.to_string_lossy().into_owned()).collect())
                };
                assert_eq!(raw(&empty), raw(&filled), "{scenario} {}", arg.get_id());
            }
        }
    }
}

#[test]
fn an_example_names_every_flag_and_what_it_is_for() {
    let text = example(&bench(), "demo").unwrap();
    for part in [
        "# A demonstration",
        "scenario = \"demo\"",
        "# Clients\n# connections = 1000",
        "# duration = \"10s\"",
        "# group_share = 0.5",
        "# spawn = false",
        "# spawn_args = \"\"  # no default",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(
        example(&bench(), "run")
            .unwrap_err()
            .ends_with("one of demo, other")
    );
}
