//! OpenAPI documents.
use crate::resource::ApiResource;
use serde_json::Value;

/// A custom resource's part: its kind's `openAPIV3Schema`.
#[derive(Clone, Copy, Debug)]
pub struct Custom<'a> {
    pub resource: &'a ApiResource,
    pub schema: Option<&'a Value>,
}

/// `/openapi/v3`: `{"paths": {"apis/apps/v1": {"serverRelativeURL": "/openapi/v3/apis/apps/v1?hash=…"}}}`.
pub fn v3_index(_resources: &[ApiResource], _custom: &[Custom<'_>]) -> Vec<u8> {
    unimplemented!()
}
/// The hash in the index of one group and version (an ETag); None if nothing is served there.
pub fn v3_hash(
    _resources: &[ApiResource],
    _custom: &[Custom<'_>],
    _group: &str,
    _version: &str,
) -> Option<String> {
    unimplemented!()
}
/// `/openapi/v3/apis/<group>/<version>` as JSON.
pub fn v3_document(
    _resources: &[ApiResource],
    _custom: &[Custom<'_>],
    _group: &str,
    _version: &str,
) -> Option<Vec<u8>> {
    unimplemented!()
}
/// `/openapi/v2` as JSON.
pub fn v2_json(_resources: &[ApiResource], _custom: &[Custom<'_>]) -> Vec<u8> {
    unimplemented!()
}
/// `/openapi/v2` as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`.
pub fn v2_protobuf(_resources: &[ApiResource], _custom: &[Custom<'_>]) -> Vec<u8> {
    unimplemented!()
}
