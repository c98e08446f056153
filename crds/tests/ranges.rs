// SPDX-License-Identifier: Apache-2.0
//! What the CRDs refuse is refused in Rust too, when an object is decoded or validated: it may have been stored under a
//! laxer CRD.

mod cases;

use cases::{CASES, Case};
use wardline_crds::{DataplaneSpec, NetworkLoggingSpec, SINGLETON_NAME, validate};

fn check(case: &Case) -> Result<(), String> {
    let value: serde_yaml::Value = serde_yaml::from_str(case.spec).map_err(|e| format!("bad case: {e}"))?;
    validate::name(case.kind, case.name).map_err(|e| e.to_string())?;
    match case.kind {
        "Dataplane" => {
            let spec: DataplaneSpec = serde_yaml::from_value(value).map_err(|e| e.to_string())?;
            validate::dataplane(&spec).map_err(|e| e.to_string())
        }
        "NetworkLogging" => {
            let spec: NetworkLoggingSpec = serde_yaml::from_value(value).map_err(|e| e.to_string())?;
            validate::network_logging(&spec).map_err(|e| e.to_string())
        }
        kind => Err(format!("bad case: kind {kind}")),
    }
}

#[test]
fn rust_refuses_what_the_crds_refuse() {
    for case in CASES {
        let found = check(case);
        assert!(
            !found.as_ref().is_err_and(|e| e.starts_with("bad case")),
            "{}: {found:?}",
            case.what
        );
        assert_eq!(
            found.is_err(),
            case.refused.is_some(),
            "{} {} ({}): {found:?}",
            case.kind,
            case.what,
            case.spec
        );
    }
}

#[test]
fn both_sides_of_the_name_are_walked() {
    assert!(CASES.iter().any(|c| c.name == SINGLETON_NAME) && CASES.iter().any(|c| c.name != SINGLETON_NAME));
}
