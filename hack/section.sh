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
outcome=$([ "$status" -eq 0 ] && echo ok || echo FAILED)
grep -E '^test result: ' target/test/section.log >> "$results"
printf 'section: %5s s  %-6s  %s\n' "$((SECONDS - start))" "$outcome" "$title" >> "$results"
printf '== %s: %s after %s s\n' "$title" "$outcome" "$((SECONDS - start))"
exit "$status"
