//! `serviceaccounts/token`: a TokenRequest is answered with a signed token.

use keelson_access::token::request;
use keelson_schema::types::Schemas;

use super::Call;
use crate::{
    encoding, generic::decode, http::body::Response, request::options::WriteOptions, status::Status,
};

pub async fn serve(call: &Call) -> Result<Response, Status> {
    if call.verb != "create" {
        return Err(Status::method_not_allowed());
    }
    let options = WriteOptions::from_query(&call.query, "CreateOptions")?;
    let ty = Schemas::builtin()
        .of("authentication.k8s.io", "v1", "TokenRequest")
        .ok_or_else(|| Status::internal("no schema of TokenRequest"))?;
    let named = decode::Named { ty, version: "v1", kind: "TokenRequest" };
    let decoded = decode::decoded(&call.body, decode::encoding(&call.headers)?, named)?;
    let mut object = decode::checked(decoded, options.field_validation, &call.warnings)?;
    decode::type_meta(&mut object, "TokenRequest", "authentication.k8s.io/v1")?;
    let write = call.write(&options, "");
    let name = call.path.name.as_str();
    write.admit_create(name, &mut object).await?;
    let access = &call.server.access;
    let answer = request::create(
        &access.tokens,
        &access.state,
        access.freshness.as_ref(),
        (&call.path.namespace, name),
        &object,
    )
    .await?;
    let (representation, _) = call.representation()?;
    encoding::value_response(201, &answer, representation.media)
}
