// SPDX-License-Identifier: Apache-2.0
//! Generated clusters that change, through the shipped programs: what the kernel decides about new flows and open ones,
//! and what the log says of it, is what the naive evaluator says. Needs root.
//!
//! ```text
//! generate --> cluster --change--> cluster --> ...        each state: watch's events -> index -> datapath -> kernel
//!                 |                   |
//!            new flows           open flows, new flows    through the programs, by test-run
//! ```
//!
//! `WARDLINE_FLOWS` and `WARDLINE_SEED` say how many new flows, and which.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod judge;
mod meaning;
mod packet;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::collections::VecDeque;
use std::path::Path;

use wardline_policy::oracle::case::{self, Case};
use wardline_policy::oracle::generate::Generator;
use wardline_policy::oracle::{Cluster, Extent, Flow};

use judge::{Disagreement, Judge, route_to_all_pods};
use meaning::difference;
use support::{Node, on_a_node};
use world::{VETHS, World};

const FLOWS: usize = 100_000;
const FLOWS_A_STATE: usize = 100;
/// States until another cluster begins.
const STATES_A_CLUSTER: usize = 40;
/// New connections until the kernel's table is emptied; each is from a port of its own.
const CONNECTIONS: usize = 15_000;
/// States that a case may need to fail again.
const HISTORY: usize = 48;
/// States of which the pods are told where tables differ.
const TOLD: usize = 6;
/// New flows until the daemon is restarted: loading programs takes longest of all.
const RESTART: usize = 9_000;

#[test]
fn the_kernel_decides_as_the_naive_evaluator_does_while_the_cluster_changes() {
    on_a_node(2 * VETHS, |node| {
        route_to_all_pods();
        let extent = Extent::from_env(FLOWS).unwrap();
        println!("seed {}", extent.seed);
        let (own, spare) = node.veths.split_at(VETHS);
        let changing = node.beside("changing", own);
        let beginner = |name: &str| node.beside(name, spare);
        let mut run = Run::new(&changing, &beginner, extent.seed);
        while run.judge.flows < extent.flows {
            if let Err(wrong) = run.next_state() {
                run.fail(wrong);
            }
        }
        let Judge { answers, again, .. } = &run.judge;
        println!(
            "{} states; new flows: {answers:?}; packets of open ones: {again:?}",
            run.number
        );
        for verdict in ["always allowed", "not isolated", "allowed", "denied"] {
            assert!(
                answers[verdict] > extent.flows / 50,
                "too few are {verdict}: {answers:?}"
            );
            assert!(again[verdict] > run.number / 50, "too few are {verdict}: {again:?}");
        }
    });
}

#[test]
fn what_disagreed_once_agrees_in_the_kernel() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy/tests/cases");
    on_a_node(VETHS, |node| {
        route_to_all_pods();
        let mut world = World::start(node, Cluster::default());
        for (path, case) in case::read_all(&folder).unwrap() {
            match replay(&mut world, &case) {
                Ok(asked) => assert!(asked > 0, "{} is not asked", path.display()),
                Err(wrong) => panic!("{}: {wrong:?}", path.display()),
            }
        }
    });
}

struct Run<'a> {
    /// Makes a node at interfaces of its own that has nothing yet.
    beginner: &'a dyn Fn(&str) -> Node,
    world: Option<World<'a>>,
    generator: Generator,
    judge: Judge,
    /// Of the state that the world is in.
    number: usize,
    /// The states until now, the last ones.
    history: VecDeque<Cluster>,
    seed: u64,
    restarts: Every,
    forgets: Every,
}

/// What happens once in so many flows.
struct Every {
    flows: usize,
    next: usize,
}

impl Every {
    fn new(flows: usize) -> Self {
        Self { flows, next: flows }
    }

    fn is_due(&mut self, flows: usize) -> bool {
        let is_due = flows >= self.next;
        if is_due {
            self.next = flows + self.flows;
        }
        is_due
    }
}

impl<'a> Run<'a> {
    fn new(node: &'a Node, beginner: &'a dyn Fn(&str) -> Node, seed: u64) -> Self {
        let mut generator = Generator::new(seed);
        let cluster = generator.cluster();
        Self {
            beginner,
            world: Some(World::start(node, cluster.clone())),
            generator,
            judge: Judge::default(),
            number: 0,
            history: VecDeque::from([cluster]),
            seed,
            restarts: Every::new(RESTART),
            forgets: Every::new(CONNECTIONS),
        }
    }

    /// Asks in the state that there is, and goes on to the next.
    fn next_state(&mut self) -> Result<(), Disagreement> {
        let mut world = self.world.take().unwrap();
        let result = self.ask(&mut world);
        let cluster = self.next_cluster(&world.cluster);
        let flows = self.judge.flows;
        // The daemon ends now and then, and has tidied up or did not get to it.
        world = if self.restarts.is_due(flows) {
            world.restart(cluster)
        } else {
            world.turn_to(cluster);
            world
        };
        if self.number.is_multiple_of(3) {
            world.life.datapath.collect_garbage().unwrap();
        }
        if self.forgets.is_due(flows) {
            self.judge.forget_connections(&world);
        }
        let cluster = world.cluster.clone();
        self.world = Some(world);
        result?;
        self.number += 1;
        self.history.push_back(cluster);
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        self.compare();
        Ok(())
    }

    fn ask(&mut self, world: &mut World<'_>) -> Result<(), Disagreement> {
        self.judge.ask_again(world)?;
        let flows: Vec<Flow> = (0..FLOWS_A_STATE)
            .filter_map(|_| self.generator.flow(&world.cluster))
            .collect();
        self.judge.ask(world, self.number, &flows)
    }

    fn next_cluster(&mut self, cluster: &Cluster) -> Cluster {
        if self.number % STATES_A_CLUSTER == STATES_A_CLUSTER - 1 {
            return self.generator.cluster();
        }
        let mut cluster = cluster.clone();
        for _ in 0..=self.number % 3 {
            self.generator.change(&mut cluster);
        }
        cluster
    }

    /// The tables that all the changes have come to mean what tables mean that come from nothing.
    fn compare(&self) {
        let world = self.world.as_ref().unwrap();
        if let Some(difference) = difference(world) {
            let (seed, number) = (self.seed, self.number);
            let states = self.history.iter().rev().take(TOLD).rev();
            let pods: Vec<_> = states.map(world::own_pods).collect();
            panic!(
                "seed {seed}, state {number}: {difference}\nunmanaged: {:#?}\n{:#?}\nthe node's pods in the last \
                 states: {pods:#?}",
                world.unmanaged, world.cluster
            );
        }
    }

    /// Makes a case of a disagreement, as small as it still fails, and keeps it.
    fn fail(&self, wrong: Disagreement) -> ! {
        println!(
            "seed {}, state {}: {wrong:?}; making it smaller",
            self.seed, self.number
        );
        let first = self.number + 1 - self.history.len();
        let case = Case {
            why: wrong.why,
            flow: wrong.flow,
            opened_in: wrong.opened_in.and_then(|number| number.checked_sub(first)),
            clusters: self.history.iter().cloned().collect(),
        };
        let node = (self.beginner)("case");
        let mut world = World::start(&node, Cluster::default());
        let mut case = case.shrink(|case| replay(&mut world, case).is_err());
        match replay(&mut world, &case) {
            Err(wrong) => case.why = wrong.why,
            Ok(_) => println!("it does not fail again by the last {} states alone", self.history.len()),
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policy/tests/cases");
        let path = folder.join(format!("seed-{}-state-{}.yaml", self.seed, self.number));
        case.write(&path).unwrap();
        let yaml = std::fs::read_to_string(&path).unwrap();
        panic!(
            "seed {}, state {}: kept as {}\n{yaml}",
            self.seed,
            self.number,
            path.display()
        );
    }
}

/// From an empty cluster through all the states of a case. Returns how many flows were asked.
fn replay(world: &mut World<'_>, case: &Case) -> Result<usize, Disagreement> {
    let mut judge = Judge::default();
    world.turn_to(Cluster::default());
    world.life.forget_connections();
    for (number, cluster) in case.clusters.iter().enumerate() {
        world.turn_to(cluster.clone());
        judge.ask_again(world)?;
        if case.opened_in == Some(number) || number + 1 == case.clusters.len() {
            judge.ask(world, number, std::slice::from_ref(&case.flow))?;
        }
    }
    Ok(judge.flows)
}
