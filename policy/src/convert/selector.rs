// SPDX-License-Identifier: Apache-2.0
//! Label selectors.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::{InvalidPolicy, each};
use crate::model::{Operator, Requirement, Selector};

/// Reads a selector; an absent one matches everything.
pub(super) fn read(source: Option<&LabelSelector>) -> Result<Selector, InvalidPolicy> {
    let Some(source) = source else {
        return Ok(Selector::default());
    };
    let mut requirements = each(source.match_expressions.as_deref(), "matchExpressions", requirement)?;
    for (key, value) in source.match_labels.iter().flatten() {
        let field = || format!("matchLabels[{key}]");
        check_key(key)
            .and_then(|()| check_value(value))
            .map_err(|cause| InvalidPolicy::at(field(), cause))?;
        requirements.push(Requirement {
            key: key.as_str().into(),
            operator: Operator::In(vec![value.as_str().into()]),
        });
    }
    requirements.sort();
    requirements.dedup();
    Ok(Selector { requirements })
}

fn requirement(source: &LabelSelectorRequirement) -> Result<Requirement, InvalidPolicy> {
    let values = source.values.as_deref().unwrap_or_default();
    let some = || {
        if values.is_empty() {
            let cause = format!("must not be empty where the operator is {}", source.operator);
            return Err(InvalidPolicy::at("values", cause));
        }
        for (index, value) in values.iter().enumerate() {
            check_value(value).map_err(|cause| InvalidPolicy::at(format!("values[{index}]"), cause))?;
        }
        let mut values: Vec<_> = values.iter().map(|value| value.as_str().into()).collect();
        values.sort();
        values.dedup();
        Ok(values)
    };
    let none = |operator| {
        if values.is_empty() {
            Ok(operator)
        } else {
            let cause = format!("must be empty where the operator is {}", source.operator);
            Err(InvalidPolicy::at("values", cause))
        }
    };
    let operator = match source.operator.as_str() {
        "In" => Operator::In(some()?),
        "NotIn" => Operator::NotIn(some()?),
        "Exists" => none(Operator::Exists)?,
        "DoesNotExist" => none(Operator::DoesNotExist)?,
        other => {
            let cause = format!("{other:?} is not an operator: In, NotIn, Exists or DoesNotExist");
            return Err(InvalidPolicy::at("operator", cause));
        }
    };
    check_key(&source.key).map_err(|cause| InvalidPolicy::at("key", cause))?;
    Ok(Requirement {
        key: source.key.as_str().into(),
        operator,
    })
}

/// A label key: a name, or a DNS subdomain, a slash and a name (`IsQualifiedName` of apimachinery).
fn check_key(key: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if is_name(name) && prefix.is_none_or(is_subdomain) {
        Ok(())
    } else {
        Err(format!("{key:?} is not a label key"))
    }
}

/// A label value: empty, or shaped like a name (`IsValidLabelValue` of apimachinery).
fn check_value(value: &str) -> Result<(), String> {
    if value.is_empty() || is_name(value) {
        Ok(())
    } else {
        Err(format!("{value:?} is not a label value"))
    }
}

/// Up to 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends.
fn is_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    name.len() <= 63 && name.bytes().all(inner) && ends(name, |b| b.is_ascii_alphanumeric())
}

/// Up to 253 characters of DNS labels (RFC 1123) in lower case.
fn is_subdomain(name: &str) -> bool {
    let outer = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let label = |label: &str| label.bytes().all(|b| outer(b) || b == b'-') && ends(label, outer);
    name.len() <= 253 && name.split('.').all(label)
}

/// Whether both ends are such characters; none are there in an empty text.
fn ends(text: &str, is: impl Fn(u8) -> bool) -> bool {
    text.bytes().next().is_some_and(&is) && text.bytes().next_back().is_some_and(&is)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for key in ["app", "a", "A-b_c.d", "example.com/app", "a.b-c/x", &"x".repeat(63)] {
            assert_eq!(check_key(key), Ok(()), "{key}");
        }
        let long = "x".repeat(64);
        for key in [
            "", "-a", "a-", "a b", "/a", "a/", "a/b/c", "Upper/a", "a..b/c", "-a/b", &long,
        ] {
            assert!(check_key(key).is_err(), "{key}");
        }
    }

    #[test]
    fn values() {
        for value in ["", "web", "1.2_3-x", &"v".repeat(63)] {
            assert_eq!(check_value(value), Ok(()), "{value}");
        }
        for value in ["a b", "-a", "a.", "a/b", &"v".repeat(64)] {
            assert!(check_value(value).is_err(), "{value}");
        }
    }

    #[test]
    fn labels_and_expressions_become_one_sorted_list() {
        let selector: LabelSelector = serde_yaml::from_str(
            "{matchLabels: {b: y, a: x}, matchExpressions: [{key: b, operator: In, values: [y, y]}, \
             {key: a, operator: NotIn, values: [q, p]}, {key: c, operator: Exists}, {key: d, operator: DoesNotExist}]}",
        )
        .unwrap();
        let one = |key: &str, operator| Requirement {
            key: key.into(),
            operator,
        };
        let expected = vec![
            one("a", Operator::In(vec!["x".into()])),
            one("a", Operator::NotIn(vec!["p".into(), "q".into()])),
            one("b", Operator::In(vec!["y".into()])),
            one("c", Operator::Exists),
            one("d", Operator::DoesNotExist),
        ];
        assert_eq!(read(Some(&selector)).unwrap().requirements, expected);
        assert_eq!(read(None).unwrap(), Selector::default());
    }
}
