#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Scripts parse, and no text file has trailing blanks or conflict marks.
set -euo pipefail
for script in $(git ls-files '*.sh' .ci/run); do
    bash -n "$script"
done
if git grep -nIE '[[:blank:]]+$|^(<<<<<<<|>>>>>>>) ' -- ':!*.sum' ':!bpf/include/vendor'; then
    echo 'the lines above end in blanks, or mark a conflict'
    exit 1
fi
