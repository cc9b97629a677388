//! A client of all services of one member.

use keelson_proto::etcd::etcdserverpb::cluster_client::ClusterClient;
use keelson_proto::etcd::etcdserverpb::kv_client::KvClient;
use keelson_proto::etcd::etcdserverpb::lease_client::LeaseClient;
use keelson_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use keelson_proto::etcd::etcdserverpb::watch_client::WatchClient;
use keelson_proto::etcd::etcdserverpb::{
    HashKvRequest, RangeRequest, RangeResponse, StatusRequest, StatusResponse,
};
use tonic::Status;
use tonic::transport::Channel;

#[derive(Clone)]
pub struct Client {
    pub kv: KvClient<Channel>,
    pub watch: WatchClient<Channel>,
    pub lease: LeaseClient<Channel>,
    pub cluster: ClusterClient<Channel>,
    pub maintenance: MaintenanceClient<Channel>,
}

impl Client {
    pub fn new(channel: Channel) -> Self {
        Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            watch: WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            lease: LeaseClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel),
        }
    }

    pub async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Status> {
        let request = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
        let response = self.kv.clone().range(request).await?.into_inner();
        Ok(response.kvs.into_iter().next().map(|kv| kv.value.to_vec()))
    }

    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        Ok(self.kv.clone().range(request).await?.into_inner())
    }

    pub async fn status(&self) -> Result<StatusResponse, Status> {
        Ok(self.maintenance.clone().status(StatusRequest {}).await?.into_inner())
    }

    /// A checksum of the whole state with the revision that it stands at.
    pub async fn hash(&self) -> Result<(i64, u32), Status> {
        let response = self.maintenance.clone().hash_kv(HashKvRequest::default()).await?.into_inner();
        Ok((response.header.unwrap().revision, response.hash))
    }
}
