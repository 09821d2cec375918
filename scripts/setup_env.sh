# shellcheck shell=bash
# Sourced by quickstart.sh, test.sh and test_lowest.sh; does nothing on its own.
#
#   setup_env FOLDER [highest|lowest-direct]
#
# makes the virtual environment FOLDER under the repository root, installs the package in editable mode with its test
# extra, and puts FOLDER/bin first on PATH (deepspeed calls `ninja` by name). uv does the work; where uv cannot be had,
# pip does it more slowly. The second call is quick: a stamp in FOLDER holds a hash of everything the install depends on.
# PYTHON chooses the interpreter (default: the first python3 of 3.11 or newer). Then
#
#   run_pytest [ARGUMENTS]
#
# runs the tests in it.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT" || exit 1

say() { printf '\n==> %s\n' "$*" >&2; }
die() { printf '\nERROR: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
}

find_uv() {  # prints the path of a working uv, or nothing; installs one into .venv-uv when there is none
    if uv --version >/dev/null 2>&1; then command -v uv; return; fi
    if ! .venv-uv/bin/uv --version >/dev/null 2>&1; then
        say "uv is not here: installing it into .venv-uv"
        local any_python; any_python="$(command -v "${PYTHON:-python3}" || true)"
        { "$any_python" -m venv .venv-uv && .venv-uv/bin/python -m pip install --quiet uv; } >&2 || return 0
    fi
    echo "$ROOT/.venv-uv/bin/uv"
}

write_constraints() {  # wheels of torch 2.11 and newer are built for CUDA 13, which drivers before 580 cannot run
    local driver; driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)"
    local major="${driver%%.*}"
    if [[ "$major" =~ ^[0-9]+$ ]] && ((major < 580)); then
        say "NVIDIA driver $driver: taking the last torch built for CUDA 12 (drivers 580 and newer get the newest torch)"
        echo "torch<2.11"
    fi
}

install_with_uv() {  # uv, folder, resolution, constraints file; without a fitting Python, uv fetches one
    local limits=()
    [ ! -s "$4" ] || limits=(--constraints "$4" --build-constraints "$4")
    "$1" venv --quiet --allow-existing --python "${PYTHON_BIN:->=3.11}" "$2"
    "$1" pip install --python "$2" --resolution "$3" "${limits[@]+"${limits[@]}"}" --editable '.[test]'
}

install_with_pip() {  # folder, constraints file; torch first, so that sam2 builds against it and not against a second copy
    [ -n "$PYTHON_BIN" ] || die "no Python 3.11 or newer found. Install one, or name it: PYTHON=/path/to/python3.11 $0"
    "$PYTHON_BIN" -m venv "$1" || die "\`$PYTHON_BIN -m venv\` failed (on Debian and Ubuntu: install python3-venv)"
    "$1/bin/python" -m pip install --constraint "$2" --upgrade pip 'setuptools>=77' wheel torch torchvision
    "$1/bin/python" -m pip install --constraint "$2" --no-build-isolation --editable '.[test]'
}

run_pytest() {  # on up to four processes, a file of tests in one of them; three need 16 GB of memory
    local cores workers
    cores="$(python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')"
    workers=$((cores < 4 ? cores + 1 : 4))  # one more than cores: many tests wait for a process that they have started
    # Compiled sources are kept, also where PYTHONDONTWRITEBYTECODE is set, as in many containers: each of the processes
    # would compile torch and transformers anew, which is most of what importing them takes.
    env -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX="$VIRTUAL_ENV/compiled" OMP_NUM_THREADS=$((cores < workers ? 1 : cores / workers)) \
        python -m pytest --numprocesses "$workers" --dist loadfile "$@"
}

check_gpu() {
    nvidia-smi -L >/dev/null 2>&1 || { say "no NVIDIA GPU here: everything runs on the CPU"; return; }
    python - <<'PY' >&2
import torch
if torch.cuda.is_available():
    print(f"GPU: {torch.cuda.get_device_name()} (torch {torch.__version__}, CUDA {torch.version.cuda})")
else:
    print(f"WARNING: there is a GPU, but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it; running on "
          "the CPU.\nSee README, 'Versions and drivers'.")
PY
}

setup_env() {
    local folder="$1" resolution="${2:-highest}" constraints hash
    constraints="$(mktemp)"
    export SAM2_BUILD_CUDA=0  # its one CUDA kernel only fills holes; without this the result depends on a local nvcc
    PYTHON_BIN="$(find_python)"
    write_constraints >"$constraints"
    hash="$(cat setup.py pyproject.toml "$constraints" <(echo "$ROOT $resolution ${PYTHON:-}") | cksum)"
    if [ "$(cat "$folder/.stamp" 2>/dev/null)" = "$hash" ] && "$folder/bin/python" -c '' 2>/dev/null; then
        say "$folder is up to date"
    else
        local uv; uv="$(find_uv)"
        say "installing into $folder (about 6 GB; one to four minutes on a good line)"
        if [ -n "$uv" ]; then
            install_with_uv "$uv" "$folder" "$resolution" "$constraints"
        elif [ "$resolution" = highest ]; then
            say "uv could not be installed: using pip"
            install_with_pip "$folder" "$constraints"
        else
            die "the lowest versions are resolved by uv, and uv could not be installed"
        fi
        echo "$hash" >"$folder/.stamp"
    fi
    rm -f "$constraints"
    export PATH="$ROOT/$folder/bin:$PATH" VIRTUAL_ENV="$ROOT/$folder"
    unset PYTHONHOME
    command -v c++ >/dev/null || command -v g++ >/dev/null || say "no C++ compiler found: deepspeed will not run (install g++)"
    check_gpu
}
