#!/usr/bin/env bash
# Install what the tests need and run them all. Options are passed on to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
install_project . "[test,lint]"
ruff check .
ruff format --check .
mypy
exec python -m pytest -n auto --maxprocesses=4 --dist worksteal "$@"
