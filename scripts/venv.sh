# Sourced by demo.sh and test.sh: a virtual environment with the project in it. Needs only Python 3.11 or newer.
# An environment that is already active is used as it is; otherwise .venv in the project is made once and reused.
# shellcheck shell=bash
install_project() { # install_project PROJECT_FOLDER EXTRAS, for example . "[test]"
    local project="$1" extras="$2" python="" candidate
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        python="$VIRTUAL_ENV/bin/python"
    else
        python="$project/.venv/bin/python"
        if ! "$python" -m pip --version >/dev/null 2>&1; then
            for candidate in python3 python3.13 python3.12 python3.11 python; do
                if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
                    break
                fi
                candidate=""
            done
            if [ -z "$candidate" ]; then
                echo "Python 3.11 or newer is needed, and none was found on the PATH; install it and run this again." >&2
                exit 1
            fi
            echo "Making a virtual environment in $project/.venv ..."
            if ! "$candidate" -m venv --clear "$project/.venv"; then
                rm -rf "$project/.venv"
                echo "It could not be made; on Debian and Ubuntu install the package python3-venv and run this again." >&2
                exit 1
            fi
        fi
    fi
    echo "Installing sfrjax$extras ..."
    "$python" -m pip install --quiet --disable-pip-version-check --editable "$project$extras"
    PATH="$(dirname "$python"):$PATH"
    export PATH
}
