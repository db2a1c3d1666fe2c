//! Other cores, as this one asks them.
//!
//! Bounds: an ask takes at most [`ASK_MAX`]; as many are under way as calls hold permits and gathers
//! have parts. Channels are kept for cores that the map names.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use trunkline_proto::client::Error;
use trunkline_proto::codes::Code;
use trunkline_proto::peer::peer_client::PeerClient;
use trunkline_proto::peer::{AskRequest, VERSION};

use crate::engine::{Request, Response};
use crate::ingress::MESSAGE_BYTES_MAX;
use crate::ownership::map::PartitionMap;

/// An owner that does not answer for so long is taken for gone: the outcome is unknown.
pub const ASK_MAX: Duration = Duration::from_secs(5);
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// See the module.
pub struct Peers {
    map: watch::Receiver<Arc<PartitionMap>>,
    channels: Mutex<HashMap<String, Channel>>,
}

impl Peers {
    pub fn new(map: watch::Receiver<Arc<PartitionMap>>) -> Self {
        Self {
            map,
            channels: Mutex::default(),
        }
    }

    /// Has the owner of a partition answer.
    pub async fn ask(
        &self,
        partition: u16,
        user: String,
        request: &Request,
    ) -> Result<Response, Error> {
        let map = Arc::clone(&self.map.borrow());
        let Some((owner, _)) = map.owner(partition) else {
            return Err(unavailable("the conversation has no owner just now"));
        };
        let Ok(request) = serde_json::to_vec(request) else {
            return Err(Code::Internal.error("a call that cannot be passed on"));
        };
        let request = AskRequest {
            version: VERSION,
            user_id: user,
            request,
        };
        let channel = self.channel(&owner.address, &map)?;
        let mut client = PeerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let answer = match tokio::time::timeout(ASK_MAX, client.ask(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                tracing::debug!(core = %owner.address, %status, "another core did not answer");
                return Err(unavailable(
                    "the owner did not answer; the outcome is unknown",
                ));
            }
            Err(_) => return Err(unavailable("no answer in time; the outcome is unknown")),
        };
        serde_json::from_slice(&answer.result)
            .unwrap_or_else(|_| Err(unavailable("the owner speaks another version")))
    }

    fn channel(&self, address: &str, map: &PartitionMap) -> Result<Channel, Error> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        channels.retain(|known, _| map.living().any(|core| core.address == *known));
        let Ok(endpoint) = Endpoint::from_shared(address.to_owned()) else {
            return Err(unavailable("the owner gave no address"));
        };
        let channel = endpoint.connect_timeout(CONNECT_MAX).connect_lazy();
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

fn unavailable(message: &str) -> Error {
    Code::Unavailable.error(message)
}
