#!/usr/bin/env bash
# Install what the tests need and run them all. Options are passed on to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
install_project . "[test,lint]"
ruff check .
ruff format --check .
mypy
# Compilation is most of the time. The workers and the processes that tests start share what they compile, in this run only.
programs="$(mktemp -d)"
trap 'rm -rf "$programs"' EXIT
export JAX_COMPILATION_CACHE_DIR="$programs" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.3
python -m pytest -n auto --maxprocesses=4 --dist worksteal "$@"
