#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# named-tests.sh ARGUMENTS...: `cargo test` with these, for tests that are selected by name. Fails too where no test has
# the name any more, which cargo takes for success.
set -euo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --quiet "$@" 2>&1 | tee "$log"
if ! grep -qE '^test result: ok\. [1-9]' "$log"; then
    echo "failed to find a test: cargo test $*"
    exit 1
fi
