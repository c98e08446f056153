#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Every source file says its license in its first five lines; what runs in the kernel has the kernel's.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=0
files=$(git ls-files '*.rs' '*.c' '*.h' '*.go' '*.mod' '*.sh' '*.yaml' '*.tpl' '*Cargo.toml' '*Dockerfile' Makefile .ci/run)
[ -n "$files" ] || { echo 'git knows of no source file here'; exit 1; }
while IFS= read -r file; do
    case $file in
        bpf/include/vendor/*) continue ;; # as the kernel has them, with the kernel's own lines
        bpf/prog/* | bpf/include/*.h) wanted='BSD-2-Clause OR GPL-2.0-only' ;;
        *) wanted='Apache-2.0' ;;
    esac
    if ! head -n 5 "$file" | grep -qF "SPDX-License-Identifier: $wanted"; then
        echo "$file: no line 'SPDX-License-Identifier: $wanted'"
        missing=1
    fi
done <<< "$files"
exit "$missing"
