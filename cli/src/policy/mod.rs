// SPDX-License-Identifier: Apache-2.0
//! `wardline policy`: whether policies can be used, and what they say about one connection.

pub(crate) mod check;
pub(crate) mod eval;
