//! Bearer tokens of browsers: they cannot set headers on a WebSocket, so they send the token as a subprotocol
//! (`base64url.bearer.authorization.k8s.io.<token>`).
//!
//! Invariant: the token never travels on to what the request is passed on to, and is never the subprotocol that is
//! agreed on.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, header};

const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// The request names a token in a way that upstream refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("multiple base64.bearer.authorization tokens specified")]
    Several,
    #[error("invalid base64.bearer.authorization token encoding")]
    Encoding,
    #[error("missing additional subprotocol")]
    Alone,
}

/// Moves the token of a WebSocket request to where all other requests have it. A token that is there already stays.
pub fn move_token(headers: &mut HeaderMap) -> Result<(), TokenError> {
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    if !upgrade.is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket")) {
        return Ok(());
    }
    let offered: Vec<String> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|protocol| protocol.trim().to_owned())
        .collect();
    let (tokens, others): (Vec<String>, Vec<String>) =
        offered.into_iter().partition(|protocol| protocol.starts_with(PREFIX));
    let token = match tokens.as_slice() {
        [] => return Ok(()),
        [one] => &one[PREFIX.len()..],
        _ => return Err(TokenError::Several),
    };
    if others.is_empty() {
        // The server must choose one of the offered protocols, and the token is none.
        return Err(TokenError::Alone);
    }
    let token = URL_SAFE_NO_PAD.decode(token).ok().filter(|token| !token.is_empty());
    let bearer = token.map(|token| [b"Bearer ", token.as_slice()].concat());
    let bearer =
        bearer.and_then(|bearer| HeaderValue::from_bytes(&bearer).ok()).ok_or(TokenError::Encoding)?;
    let others = HeaderValue::from_str(&others.join(", ")).map_err(|_| TokenError::Encoding)?;
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, others);
    headers.entry(header::AUTHORIZATION).or_insert(bearer);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_moved() {
        let check = |upgrade: &str, protocols: &str, expected: Result<(&str, &str), TokenError>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::UPGRADE, upgrade.parse().unwrap());
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap());
            let found = move_token(&mut headers).map(|()| {
                let text = |name| headers.get(name).map_or("", |value: &HeaderValue| value.to_str().unwrap());
                (text(header::AUTHORIZATION), text(header::SEC_WEBSOCKET_PROTOCOL))
            });
            assert_eq!(found, expected, "{protocols}");
        };
        let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode("a.b.c"));
        check("websocket", "v4.channel.k8s.io", Ok(("", "v4.channel.k8s.io")));
        check("WebSocket", &format!("v5, {token},v4"), Ok(("Bearer a.b.c", "v5, v4")));
        check("SPDY/3.1", &format!("v5, {token}"), Ok(("", &format!("v5, {token}"))));
        check("websocket", &token, Err(TokenError::Alone));
        check("websocket", &format!("v5, {token}, {token}"), Err(TokenError::Several));
        check("websocket", &format!("v5, {PREFIX}="), Err(TokenError::Encoding));
        check("websocket", &format!("v5, {PREFIX}"), Err(TokenError::Encoding));
    }
}
