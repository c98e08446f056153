#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Scripts parse, and no text file has trailing blanks or conflict marks.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts=$(git ls-files '*.sh' .ci/run)
[ -n "$scripts" ] || { echo 'git knows of no script here'; exit 1; }
while IFS= read -r script; do
    bash -n "$script"
done <<< "$scripts"
# Below, git's failure would look like a text without faults.
if git grep -nIE '[[:blank:]]+$|^(<<<<<<<|>>>>>>>) ' -- ':!*.sum' ':!bpf/include/vendor'; then
    echo 'the lines above end in blanks, or mark a conflict'
    exit 1
fi
