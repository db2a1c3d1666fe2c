//! This core, as others ask it.

use tonic::{Request as Call, Response as Answer, Status};
use trunkline_proto::ids::is_valid_id;
use trunkline_proto::peer::peer_server::Peer;
use trunkline_proto::peer::{AskRequest, AskResponse, VERSION};

use crate::engine::Request;
use crate::runtime::CoreHandle;

/// Answers for users whom another core has authenticated. The address that it listens on must be
/// reachable for cores and edges only.
pub struct PeerService {
    core: CoreHandle,
}

impl PeerService {
    pub const fn new(core: CoreHandle) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn ask(&self, call: Call<AskRequest>) -> Result<Answer<AskResponse>, Status> {
        let ask = call.into_inner();
        if ask.version != VERSION {
            return Err(Status::failed_precondition(
                "cores must be of one release: this one speaks another version",
            ));
        }
        if !is_valid_id(&ask.user_id) {
            return Err(Status::invalid_argument("not a user id"));
        }
        let request: Request = serde_json::from_slice(&ask.request)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let result = self.core.request_of_core(ask.user_id, request).await;
        let result =
            serde_json::to_vec(&result).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Answer::new(AskResponse { result }))
    }
}
