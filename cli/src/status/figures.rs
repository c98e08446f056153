// SPDX-License-Identifier: Apache-2.0
//! What a daemon counts and its DataplaneNode does not hold, of the text that Prometheus scrapes.

use std::collections::BTreeMap;

/// Counts of one node; they go on over restarts of the daemon, and begin anew when the node boots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    /// Records that were lost, by the cause.
    pub(super) lost: BTreeMap<String, u64>,
    pub(super) is_log_stopped: bool,
}

const LOST: &str = "wardline_log_lost_total";
const STOPPED: &str = "wardline_log_stopped";

/// # Errors
/// What is missing, where something else than a daemon answers.
pub(super) fn parse(text: &str) -> Result<Figures, String> {
    let mut figures = Figures::default();
    let (mut has_lost, mut has_stopped) = (false, false);
    for line in text.lines() {
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let Ok(value) = value.parse::<f64>() else { continue };
        match name {
            LOST => {
                has_lost = true;
                let cause = label(labels, "cause").unwrap_or("unknown");
                // Counters are whole numbers.
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative")]
                let count = value as u64;
                if count > 0 {
                    *figures.lost.entry(cause.to_owned()).or_default() += count;
                }
            }
            STOPPED => {
                has_stopped = true;
                figures.is_log_stopped = value > 0.0;
            }
            _ => {}
        }
    }
    match (has_lost, has_stopped) {
        (true, true) => Ok(figures),
        (false, _) => Err(format!("its metrics have no {LOST}")),
        (true, false) => Err(format!("its metrics have no {STOPPED}")),
    }
}

/// Of `direction="ingress",cause="ring-full"}`; our values hold no quotes.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = labels.trim_end_matches('}').split(',');
    pairs.find_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_summed_by_cause() {
        let text = "# HELP wardline_log_lost_total Verdicts whose record is lost\n\
            wardline_log_lost_total{cause=\"ring-full\",direction=\"egress\",verdict=\"allow\"} 3\n\
            wardline_log_lost_total{cause=\"ring-full\",direction=\"ingress\",verdict=\"allow\"} 4\n\
            wardline_log_lost_total{cause=\"disk-full\",direction=\"ingress\",verdict=\"deny\"} 0\n\
            wardline_log_stopped 1\n";
        let expected = Figures {
            lost: BTreeMap::from([("ring-full".to_owned(), 7)]),
            is_log_stopped: true,
        };
        assert_eq!(parse(text), Ok(expected));
        for (text, missing) in [("", LOST), ("<html>", LOST), ("wardline_log_lost_total 1\n", STOPPED)] {
            let error = parse(text).unwrap_err();
            assert!(error.ends_with(missing), "{text}: {error}");
        }
    }
}
