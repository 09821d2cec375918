#!/usr/bin/env bash
# bash scripts/quickstart.sh [--smoke] [--data FOLDER] [other arguments of scripts/quickstart.py]
#
# Makes .venv (once), then runs the main job from end to end: prepare, train, merge, reload, segment.
set -euo pipefail
called_from="$PWD"
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

setup_env .venv
say "quickstart"
cd "$called_from"  # so that relative paths in the arguments mean what they say
exec python "$ROOT/scripts/quickstart.py" "$@"
