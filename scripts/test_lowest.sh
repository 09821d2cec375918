#!/usr/bin/env bash
# bash scripts/test_lowest.sh [pytest arguments]
#
# The lower bounds in setup.py are a promise: this installs exactly those versions into .venv-lowest and runs all tests
# but the slow ones on them, and but those that are the same on every version:
# - test_layers.py and tests/commands read source text and the parsers of commands;
# - test_clip_memory.py, test_tracking.py and test_clip_model.py compare with SAM 2's own package, of which both
#   environments have the same version; videos and SAM 2's training go through the same code in other tests;
# - test_relations.py and tests/search are arithmetic of this package alone;
# - tests/data/sources, tests/data/shapes and tests/evaluation read files of datasets, draw shapes and count pixels, with
#   the standard library and numpy; what they share with the libraries, Arrow rows and generation, is in the tests of
#   preparing, datasets and inference;
# - tests/serving and test_generated_images.py are about gradio, FastAPI, diffusers and a browser, of which both
#   environments have the same versions; generation itself is in test_inference.py;
# - test_sam2.py in tests/checkpoints converts between files of the sam2 package; test_docs.py runs the documentation;
# - tests/training/test_faults.py is about files, signals and processes; that a run resumes is in the trainers' tests;
# - tests/training/shapes_tiny is about the lessons of the bundled model, which are run once and on the newest versions.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

setup_env .venv-lowest lowest-direct
say "pytest, on the lowest declared versions"
skipped=(tests/test_layers.py tests/commands tests/model/test_clip_memory.py tests/model/test_tracking.py
         tests/training/sam2/test_clip_model.py tests/data/test_relations.py
         tests/search tests/serving tests/test_generated_images.py tests/data/sources tests/data/shapes
         tests/evaluation tests/checkpoints/test_sam2.py tests/test_docs.py tests/training/test_faults.py
         tests/training/shapes_tiny)
run_pytest -m "not slow" "${skipped[@]/#/--ignore=}" "$@"
