//! `trunkline token`: a token for trying things out, and for scripts.

use std::path::PathBuf;
use std::time::Duration;

use clap::ArgMatches;
use trunkline_identity::{DevSecret, mint};
use trunkline_proto::ids::is_valid_id;

use crate::args;
use crate::exit::Failure;
use crate::settings::layers::{Layers, Problem, Source};
use crate::settings::table::{self, Role};
use crate::settings::value::parse_duration_ms;

/// Mints the token that the flags ask for. Only the two settings that it reads can stop it, and
/// mistakes in names, which might hide one of them.
pub fn run(matches: &ArgMatches, environment: &[(String, String)]) -> Result<String, Failure> {
    let flags = args::given_settings(matches);
    let config = args::given_config(matches);
    let (layers, mut problems) = Layers::collect(&flags, config.as_deref(), environment);
    let text = |id: &str| matches.get_one::<String>(id).cloned().unwrap_or_default();

    let user = text("user");
    if !is_valid_id(&user) {
        let message = format!("{user:?} is no user id: 1-64 bytes of A-Za-z0-9._:@-");
        problems.push(Problem::new("--user", message));
    }
    let ttl_ms = parse_duration_ms(&text("ttl")).unwrap_or_else(|message| {
        problems.push(Problem::new("--ttl", message));
        0
    });
    if !problems.is_empty() {
        return Err(Failure::Configuration(problems));
    }
    let secret = secret(&layers)?;
    Ok(format!(
        "{}\n",
        mint(&secret, &user, Duration::from_millis(ttl_ms))
    ))
}

/// `--secret`, `--data`, then whatever the other layers say.
fn secret(layers: &Layers) -> Result<String, Failure> {
    let get = |key: &str| {
        let (text, source) = layers.get(table::find(key)?, Role::Serve)?;
        Some((text.to_owned(), source))
    };
    let data = get("data");
    let data_by_flag = matches!(data, Some((_, Source::Flag)));
    if let Some((secret, _)) = get("jwt_secret").filter(|_| !data_by_flag) {
        return Ok(secret);
    }
    let dir = data.map(|(dir, _)| PathBuf::from(dir)).unwrap_or_default();
    // A mistyped directory is not to be made: its secret would sign tokens that nobody accepts.
    if !dir.join(DevSecret::FILE).exists() {
        return Err(Failure::configuration(
            "--data",
            format!(
                "{} holds no development secret: start `trunkline serve --data {}` once, or give \
                 --secret",
                dir.display(),
                dir.display()
            ),
        ));
    }
    DevSecret::load_or_create(&dir)
        .map_err(|e| Failure::Runtime(format!("{}: {e}", dir.join(DevSecret::FILE).display())))
}
