// SPDX-License-Identifier: Apache-2.0
//! Telling the user what happens and what is being waited for.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const POLL: Duration = Duration::from_millis(200);

/// Seconds since the program's first line of progress.
fn elapsed() -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

/// Prints a line with the time since the start, and which test it is of: several run side by side, each in a thread that
/// is called by its module and name.
pub fn step(text: &str) {
    let thread = std::thread::current();
    let test = thread.name().and_then(|name| name.rsplit_once("::"));
    let module = test.map(|(module, _)| format!("{module}: ")).unwrap_or_default();
    eprintln!("[{:6.1} s] {module}{text}", elapsed());
}

/// Waits until `condition` gives a value, asking five times a second; says what it waits for, and for how long it did.
///
/// An error of the condition does not end the wait, as servers that are still starting answer with errors.
///
/// # Errors
/// After `timeout`, with the last error of the condition, if it gave one.
pub async fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut told = false;
    loop {
        let last = match condition().await {
            Ok(Some(value)) => {
                if told {
                    step(&format!("    {what}: after {:.1} s", start.elapsed().as_secs_f64()));
                }
                return Ok(value);
            }
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if !told {
            step(&format!("  waiting for {what} (at most {} s)", timeout.as_secs()));
            told = true;
        }
        if start.elapsed() >= timeout {
            match last {
                Some(error) => bail!("timed out after {} s waiting for {what}: {error:#}", timeout.as_secs()),
                None => bail!("timed out after {} s waiting for {what}", timeout.as_secs()),
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::wait_until;

    #[tokio::test]
    async fn an_error_does_not_end_the_wait() {
        let mut asked = 0;
        let value = wait_until("the third answer", Duration::from_secs(5), async || {
            asked += 1;
            match asked {
                1 => anyhow::bail!("not yet"),
                2 => Ok(None),
                _ => Ok(Some(asked)),
            }
        })
        .await
        .unwrap();
        assert_eq!(value, 3);
    }

    #[tokio::test]
    async fn a_timeout_tells_the_last_error() {
        let error = wait_until::<()>("the moon", Duration::ZERO, async || anyhow::bail!("clouds"))
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "timed out after 0 s waiting for the moon: clouds");
    }
}
