//! Compiles the schema with protox, so that no protoc is needed, and gives client frames the serde
//! attributes that make the same structs the JSON encoding (see `src/json.rs`).

use prost::Message as _;

const CLIENT: &str = ".trunkline.client.v1";

/// Frame bodies and their parts: read from and written to JSON, default values left out.
const JSON_MESSAGES: &[&str] = &[
    "Connect",
    "SendMessage",
    "Media",
    "Receipt",
    "Typing",
    "Sync",
    "SyncPosition",
    "Fetch",
    "Watch",
    "Unwatch",
    "Ping",
    "Heartbeat",
    "Connected",
    "Limits",
    "Ack",
    "Message",
    "Presence",
    "PresenceUser",
    "Page",
    "Synced",
    "Conversation",
    "Reconnect",
    "Error",
    "Pong",
];

/// Fields that an answer always carries, also when they hold their default.
const ALWAYS_WRITTEN: &[&str] = &[
    "Ack.seq",
    "Message.content",
    "Receipt.seq",
    "Typing.active",
    "Page.messages",
    "Page.head_seq",
    "Page.more",
    "Page.version",
    "Synced.conversations",
    "Conversation.head_seq",
    "Conversation.version",
    "Reconnect.after_ms",
    "Limits.send_rate",
    "Limits.send_burst",
    "Presence.users",
    "SyncPosition.after_seq",
    "Sync.conversations",
];

/// Fields without which a client's frame is a `bad_request`.
const REQUIRED: &[&str] = &[
    "Connect.device_id",
    "SendMessage.client_msg_id",
    "Receipt.conversation_id",
    "Receipt.seq",
    "Receipt.status",
    "Typing.conversation_id",
    "Typing.active",
    "Sync.conversations",
    "SyncPosition.conversation_id",
    "SyncPosition.after_seq",
    "Fetch.conversation_id",
    "Watch.users",
    "Unwatch.users",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(
        ["client.proto", "link.proto", "peer.proto", "store.proto"],
        ["proto"],
    )?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), files.encode_to_vec())?;

    let mut config = tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        // Slices of the batch that they came in.
        .bytes(".trunkline.link.v1.EdgeOp.frame");
    for name in JSON_MESSAGES {
        let path = format!("{CLIENT}.{name}");
        config = config
            .type_attribute(&path, "#[derive(serde::Serialize, serde::Deserialize)]")
            .type_attribute(&path, "#[serde(rename_all = \"snake_case\")]");
    }
    for file in files
        .file
        .iter()
        .filter(|f| f.package() == "trunkline.client.v1")
    {
        for message in &file.message_type {
            if !JSON_MESSAGES.contains(&message.name()) {
                continue;
            }
            for field in &message.field {
                let path = format!("{}.{}", message.name(), field.name());
                let mut serde = Vec::new();
                if !REQUIRED.contains(&path.as_str()) {
                    serde.push("default".to_owned());
                }
                if !ALWAYS_WRITTEN.contains(&path.as_str()) {
                    serde.push("skip_serializing_if = \"crate::json::is_default\"".to_owned());
                }
                if field.name() == "message_id" {
                    serde.push("with = \"crate::json::decimal_string\"".to_owned());
                }
                if !serde.is_empty() {
                    config = config.field_attribute(
                        format!("{CLIENT}.{path}"),
                        format!("#[serde({})]", serde.join(", ")),
                    );
                }
            }
        }
    }
    config.compile_fds(files)?;
    Ok(())
}
