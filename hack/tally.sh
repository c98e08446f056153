#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Lists the sections that section.sh ran, and adds up their tests; fails if one failed, or if there were none.
set -euo pipefail
awk '
    /^test result: / { for (i = 1; i < NF; i++) { if ($(i + 1) == "passed;") passed += $i; if ($(i + 1) == "failed;") failed += $i } }
    /^section: / { sections += ($4 == "FAILED"); print $0 }
    END {
        printf "%d passed, %d failed\n", passed, failed
        exit (failed > 0 || sections > 0 || passed == 0)
    }
' target/test/results
