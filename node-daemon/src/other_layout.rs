// SPDX-License-Identifier: Apache-2.0
//! The daemon with another layout of its maps: nothing else differs, so an upgrade to it, and back, can be tested.

include!("main.rs");
