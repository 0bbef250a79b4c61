#!/usr/bin/env bash
# Install sfrjax where needed and show what it does, on images it makes itself. Options are passed on to `sfrjax demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/venv.sh
install_project ""
exec sfrjax demo "$@"
