#!/usr/bin/env bash
# bash scripts/test.sh [--quick] [pytest arguments]
#
# Makes .venv (once), then runs ruff and the tests. --quick leaves out the tests marked slow.
set -euo pipefail
arguments=()
for argument in "$@"; do
    if [ "$argument" = --quick ]; then arguments+=(-m "not slow"); else arguments+=("$argument"); fi
done
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

setup_env .venv
say "ruff"
ruff check .
ruff format --check .
say "pytest ${arguments[*]-}"
# Files in the order of tests/conftest.py, the long ones first; pytest-xdist would begin with those of most tests.
run_pytest --no-loadscope-reorder --durations=30 "${arguments[@]+"${arguments[@]}"}"
