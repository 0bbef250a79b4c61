#!/usr/bin/env bash
# Install sfrjax where needed and show what it does, on images it makes itself. Options are passed on to `sfrjax demo`.
set -euo pipefail
project="$(cd "$(dirname "$0")/.." && pwd)"
source "$project/scripts/venv.sh"
install_project "$project" ""
sfrjax demo "$@"
if [ -z "${VIRTUAL_ENV:-}" ]; then
    echo "To have the command sfrjax in this shell: source $project/.venv/bin/activate"
fi
