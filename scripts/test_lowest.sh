#!/usr/bin/env bash
# bash scripts/test_lowest.sh [pytest arguments]
#
# The lower bounds in setup.py are a promise: this installs exactly those versions into .venv-lowest and runs all tests
# but the slow ones on them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

setup_env .venv-lowest lowest-direct
say "pytest, on the lowest declared versions"
run_pytest -m "not slow" "$@"
