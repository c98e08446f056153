// SPDX-License-Identifier: Apache-2.0
//! How long an object is left alone after a failure: by the kind of failure, twice as long each time, up to a ceiling.
//!
//! | category | first | ceiling | |
//! |---|---|---|---|
//! | conflict | 100 ms | 10 s | somebody else wrote: the next attempt reads what |
//! | unavailable | 1 s | 30 s | the server is away or busy; `Retry-After` comes on top ([`crate::client`]) |
//! | forbidden, rejected, internal | 5 s | 5 min | the same attempt fails in the same way until somebody acts |

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use tower::util::rng::{HasherRng, Rng};

use crate::error::Category;

/// Failures in a row, by kind and name of the object.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: HashMap<String, Failure>,
}

#[derive(Debug)]
struct Failure {
    in_a_row: u32,
    until: Instant,
    /// `metadata.generation` that it failed with.
    generation: Option<i64>,
}

impl Backoff {
    /// Notes one more failure, and returns how long to wait.
    pub(crate) fn failed(&mut self, key: &str, generation: Option<i64>, category: Category) -> Duration {
        let in_a_row = self
            .failures
            .get(key)
            .map_or(0, |failure| failure.in_a_row.saturating_add(1));
        let wait = wait(category, in_a_row, HasherRng::new().next_f64());
        let failure = Failure {
            in_a_row,
            until: Instant::now() + wait,
            generation,
        };
        self.failures.insert(key.to_owned(), failure);
        wait
    }

    /// How long the object is still to be left alone, whatever changes around it; none where its own spec has changed.
    pub(crate) fn remaining(&self, key: &str, generation: Option<i64>) -> Option<Duration> {
        let failure = self.failures.get(key)?;
        let left = failure.until.saturating_duration_since(Instant::now());
        (failure.generation == generation && !left.is_zero()).then_some(left)
    }

    pub(crate) fn succeeded(&mut self, key: &str) {
        self.failures.remove(key);
    }
}

/// `random` in 0..1: half of the time is left to chance, so that those who failed together do not come back together.
fn wait(category: Category, in_a_row: u32, random: f64) -> Duration {
    let (first, ceiling) = match category {
        Category::Conflict => (Duration::from_millis(100), Duration::from_secs(10)),
        Category::Unavailable => (Duration::from_secs(1), Duration::from_secs(30)),
        Category::Forbidden | Category::Rejected | Category::Internal => {
            (Duration::from_secs(5), Duration::from_mins(5))
        }
    };
    let whole = first.saturating_mul(1 << in_a_row.min(16)).min(ceiling);
    whole.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_category_has_its_pace() {
        for (category, expected) in [
            (Category::Conflict, [100, 200, 400, 10_000]),
            (Category::Unavailable, [1000, 2000, 4000, 30_000]),
            (Category::Forbidden, [5000, 10_000, 20_000, 300_000]),
            (Category::Rejected, [5000, 10_000, 20_000, 300_000]),
            (Category::Internal, [5000, 10_000, 20_000, 300_000]),
        ] {
            let longest = [0, 1, 2, 1000].map(|n| wait(category, n, 1.0).as_millis());
            assert_eq!(longest, expected, "{category:?}");
            let shortest = [0, 1, 2, 1000].map(|n| wait(category, n, 0.0).as_millis());
            assert_eq!(shortest, expected.map(|all| all / 2), "{category:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_is_left_alone_until_its_time_or_its_spec_has_come() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.remaining("a", Some(1)), None);
        let waits: Vec<Duration> = (0..2)
            .map(|_| backoff.failed("a", Some(1), Category::Forbidden))
            .collect();
        assert!(
            waits[0] <= Duration::from_secs(5) && waits[1] >= Duration::from_secs(5),
            "{waits:?}"
        );
        assert_eq!(backoff.remaining("a", Some(1)), Some(waits[1]));
        assert_eq!(backoff.remaining("a", Some(2)), None, "another spec");
        assert_eq!(backoff.remaining("b", Some(1)), None, "another object");
        tokio::time::advance(waits[1]).await;
        assert_eq!(backoff.remaining("a", Some(1)), None);
        backoff.failed("a", Some(1), Category::Forbidden);
        backoff.succeeded("a");
        assert_eq!(backoff.remaining("a", Some(1)), None);
        assert!(
            backoff.failed("a", Some(1), Category::Forbidden) <= Duration::from_secs(5),
            "from the beginning"
        );
    }
}
