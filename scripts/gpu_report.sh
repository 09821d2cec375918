#!/usr/bin/env bash
# bash scripts/gpu_report.sh [--wheels FOLDER] [--images FOLDER] [--output FILE] [--smoke]
#
# Measures precision, inference and training on the GPU of this machine in under 9 minutes: each step in a process of
# its own with a limit of time, each table written when it is there. Default output: gpu_report.md in the current folder.
#
# --wheels: a folder of wheels (`pip download . -d FOLDER`), for a machine without network; default: the Python of
#   $PYTHON, or `python`, has the package already
# --images: a folder of pictures for the training steps; default: noise
# --smoke: one size of every kind of step, as small as it can be, also on a CPU, and nothing is compiled
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python}" wheels="" output="gpu_report.md" limit=540 options=()

while (($#)); do
  case "$1" in
    --wheels | --images | --output)
      (($# > 1)) || { echo "$1: expected a value" >&2; exit 2; }
      [[ $1 == --wheels ]] && wheels="$2"
      [[ $1 == --output ]] && output="$2"
      [[ $1 == --images ]] && options+=(--images "$2")
      shift 2 ;;
    --smoke)
      export TORCHDYNAMO_DISABLE=1
      options+=(--smoke)
      limit=3600
      shift ;;
    *)
      echo "$1: expected --wheels, --images, --output or --smoke" >&2
      exit 2 ;;
  esac
done

if [[ -n $wheels ]]; then
  "$python" -m venv --system-site-packages "$ROOT/.venv-gpu"
  python="$ROOT/.venv-gpu/bin/python"
  "$python" -m pip install --quiet --no-index --find-links "$wheels" "$ROOT"
fi
: > "$output"
timeout --kill-after=10 "$limit" "$python" "$ROOT/scripts/benchmark.py" gpu_report "${options[@]}" | tee -a "$output"
