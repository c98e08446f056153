// SPDX-License-Identifier: Apache-2.0
//! How the nodes are left.

use super::*;

#[test]
fn nodes_are_left_one_by_one_until_nothing_is_left_on_any() {
    let away = |nodes: &[Node]| step(nodes, &RolloutSpec::default(), Way::Away);
    assert_eq!(away(&[old("a"), old("b")]), "replace a");
    let cleaning = node("a", "new", None);
    assert_eq!(
        away(&[cleaning.clone(), old("b")]),
        "wait 294 s: a: it is being cleaned"
    );
    let clean = |name| node(name, "new", Some(1));
    assert_eq!(away(&[clean("a"), old("b")]), "replace b");
    assert_eq!(away(&[clean("a"), clean("b")]), "done");
    // One that is down is waited for, and one that cannot be cleaned.
    assert_eq!(
        away(&[clean("a"), down(old("b"), 10)]),
        "wait: b: its kubelet does not answer"
    );
    let fails = troubled("a", "new", "CrashLoopBackOff: exit code 1: failed to remove", false, 5);
    assert_eq!(
        away(&[fails, old("b")]),
        "wait 55 s: a: CrashLoopBackOff: exit code 1: failed to remove"
    );
    // Others need not wait for it beyond the deadline; it is waited for in the end.
    let late = |seconds| {
        let mut late = troubled("a", "new", "CrashLoopBackOff", false, seconds);
        late.pod.created = at(NOW - seconds);
        late
    };
    assert_eq!(away(&[late(300), old("b")]), "replace b");
    assert_eq!(away(&[late(300), clean("b")]), "wait: a: CrashLoopBackOff");
    // There is nothing on a node where no daemon ever started.
    let mut never = troubled("a", "new", "ImagePullBackOff", true, 5);
    never.report = None;
    assert_eq!(away(&[never, clean("b")]), "done");
}
