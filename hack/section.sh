#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# section.sh TITLE COMMAND...: runs a command under a heading, says how long it took and how it ended, and adds the
# outcome of its tests to target/test/results for tally.sh.
set -uo pipefail
title=$1
shift
results=target/test/results
mkdir -p target/test
printf '\n== %s\n   %s\n' "$title" "$*"
start=$SECONDS
"$@" 2>&1 | tee target/test/section.log
status=${PIPESTATUS[0]}
grep -E '^test result: ' target/test/section.log >> "$results"
if [ "$status" -ne 0 ]; then
    printf 'section failed: %s\n' "$title" >> "$results"
fi
printf '== %s: %s after %s s\n' "$title" "$([ "$status" -eq 0 ] && echo ok || echo FAILED)" "$((SECONDS - start))"
exit "$status"
