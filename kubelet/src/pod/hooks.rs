//! Lifecycle hooks: postStart and preStop as exec, HTTP GET or sleep.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use crate::{probes::http, runtime::Runtime};

/// What a hook runs in.
pub struct Target<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub id: &'a str,
    pub ip: Option<&'a str>,
}

/// Runs a hook to its end.
///
/// # Errors
/// What went wrong, for a FailedPostStartHook or FailedPreStopHook event.
pub async fn run(runtime: &Runtime, handler: &LifecycleHandler, target: &Target<'_>) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = command.join(" ");
        let result =
            runtime.exec_sync(target.id, command, Duration::ZERO).await.map_err(|error| error.to_string())?;
        if result.exit_code != 0 {
            let output = [result.stdout, result.stderr].concat();
            return Err(format!(
                "command '{shown}' exited with {}: {}",
                result.exit_code,
                String::from_utf8_lossy(&output).trim_end()
            ));
        }
        return Ok(());
    }
    if let Some(get) = &handler.http_get {
        let request =
            http::Request::of(get, target.container, target.ip.unwrap_or_default(), "kube-lifecycle")?;
        // Whatever the server answers, it was told.
        return http::get(&request, Duration::from_secs(60)).await.map(|_| ());
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    Err("Invalid handler: one of exec, httpGet and sleep must be set".to_owned())
}
