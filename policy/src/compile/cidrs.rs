// SPDX-License-Identifier: Apache-2.0
//! Which ipBlocks hold where, as a longest-prefix match.
//!
//! The prefixes are those of every cidr and every except. All addresses whose longest prefix is the same one are in
//! the same blocks, since no block begins or ends below it:
//!
//! ```text
//! 10.0.0.0/8   cidr of A                       {A}
//!   10.1.0.0/16  except of A, cidr of B        {B}
//!     10.1.2.0/24  cidr of A' (A, no except)   {A', B}
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::selectors::Selectors;
use crate::model::{IpBlock, Peer};

pub(super) struct Cidrs {
    /// Sorted, so that a prefix stands before all that it contains.
    pub(super) prefixes: Vec<Prefix>,
}

pub(super) struct Prefix {
    pub(super) net: IpNet,
    /// The longest other prefix that contains it.
    parent: Option<usize>,
    /// Indices of the selectors whose block holds here, ascending.
    pub(super) blocks: Vec<usize>,
}

/// What begins and ends at a prefix.
#[derive(Default)]
struct Edges<'a> {
    begin: Vec<(usize, &'a IpBlock)>,
    end: Vec<usize>,
}

impl Cidrs {
    pub(super) fn new(selectors: &Selectors<'_>) -> Self {
        let mut edges: BTreeMap<IpNet, Edges<'_>> = BTreeMap::new();
        for (index, selector) in selectors.all.iter().enumerate() {
            let Peer::Block(block) = &selector.peer else { continue };
            edges.entry(block.cidr).or_default().begin.push((index, block));
            for except in &block.except {
                edges.entry(*except).or_default().end.push(index);
            }
        }
        guard_mapped(&mut edges);

        let mut prefixes: Vec<Prefix> = Vec::with_capacity(edges.len());
        for (net, edges) in edges {
            let parent = enclosing(&prefixes, prefixes.len().checked_sub(1), |outer| outer.contains(&net));
            let mut blocks = parent.map(|index| prefixes[index].blocks.clone()).unwrap_or_default();
            let excepted = |block: &IpBlock| block.except.iter().any(|except| except.contains(&net));
            blocks.extend(
                edges
                    .begin
                    .iter()
                    .filter(|(_, block)| !excepted(block))
                    .map(|(index, _)| index),
            );
            blocks.retain(|index| !edges.end.contains(index));
            blocks.sort_unstable();
            prefixes.push(Prefix { net, parent, blocks });
        }
        Self { prefixes }
    }

    /// The blocks that contain an address.
    pub(super) fn blocks_at(&self, address: IpAddr) -> &[usize] {
        // The longest prefix of an address is the last one that does not sort after it, or contains that one.
        let before = self
            .prefixes
            .partition_point(|prefix| prefix.net <= IpNet::from(address));
        let found = enclosing(&self.prefixes, before.checked_sub(1), |net| net.contains(&address));
        found
            .map(|index| self.prefixes[index].blocks.as_slice())
            .unwrap_or_default()
    }
}

/// The first prefix on the way out from `start` that holds.
fn enclosing(prefixes: &[Prefix], start: Option<usize>, holds: impl Fn(&IpNet) -> bool) -> Option<usize> {
    std::iter::successors(start, |&index| prefixes[index].parent).find(|&index| holds(&prefixes[index].net))
}

/// The packet programs look up an IPv4 address as the IPv6 address that it is mapped to. An IPv6 block that contains
/// all of those, as `::/0` does, must not catch them: IPv4 then needs a prefix of its own to fall to.
fn guard_mapped(edges: &mut BTreeMap<IpNet, Edges<'_>>) {
    let mapped = Ipv6Net::new_assert(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96);
    let catches = |net: &IpNet| matches!(net, IpNet::V6(net) if net.contains(&mapped));
    if edges.keys().any(catches) {
        edges
            .entry(IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)))
            .or_default();
    }
}
