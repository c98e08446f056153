// SPDX-License-Identifier: Apache-2.0
//! Quantities of bytes, in the part of Kubernetes' notation that the CRD's pattern lets through.

use thiserror::Error;

/// Why a text is no quantity of bytes.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum QuantityError {
    #[error(
        "failed to parse quantity {0:?}: expected digits, at most one '.', and one of k, M, G, Ki, Mi, Gi or nothing"
    )]
    Malformed(String),
    #[error("failed to parse quantity {0:?}: it does not fit 64 bits")]
    TooLarge(String),
}

const SUFFIXES: [(&str, u64); 7] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("", 1),
];

/// Bytes that a quantity such as `10Mi` or `1.5G` stands for; parts of a byte count as a whole one, as Kubernetes
/// rounds them.
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    let malformed = || QuantityError::Malformed(text.to_owned());
    let (number, unit) = SUFFIXES
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
        .ok_or_else(malformed)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return Err(malformed());
    }
    let too_large = || QuantityError::TooLarge(text.to_owned());
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let numerator: u128 = fraction.parse().map_err(|_| too_large())?;
    let denominator = u32::try_from(fraction.len())
        .ok()
        .and_then(|n| 10u128.checked_pow(n))
        .ok_or_else(too_large)?;
    let part = numerator
        .checked_mul(u128::from(unit))
        .ok_or_else(too_large)?
        .div_ceil(denominator);
    let part = u64::try_from(part).map_err(|_| too_large())?;
    whole
        .checked_mul(unit)
        .and_then(|bytes| bytes.checked_add(part))
        .ok_or_else(too_large)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("64Ki", 65_536),
            ("10Mi", 10_485_760),
            ("1Gi", 1_073_741_824),
            ("1.5Mi", 1_572_864),
            ("2k", 2_000),
            ("2.5M", 2_500_000),
            ("1G", 1_000_000_000),
            ("0.3Ki", 308),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in [
            "", "Mi", "-1", "1 Mi", "1.Mi", ".5Mi", "1.2.3", "1e3", "10MB", "10mi", "١Mi",
        ] {
            assert_eq!(parse_bytes(text), Err(QuantityError::Malformed(text.into())), "{text}");
        }
        for text in ["99999999999999999999", "18446744073709551615Gi"] {
            assert_eq!(parse_bytes(text), Err(QuantityError::TooLarge(text.into())), "{text}");
        }
    }
}
