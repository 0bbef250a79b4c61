# Sourced by demo.sh and test.sh: a virtual environment with the project in it. Needs only Python 3.11 or newer.
# An environment that is already active is used as it is; otherwise .venv in the project is made once and reused.
# shellcheck shell=bash
install_project() { # install_project EXTRAS, for example "" or "[test]"
    local python
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        python="$VIRTUAL_ENV/bin/python"
    else
        if [ ! -x .venv/bin/python ]; then
            python=""
            for candidate in python3 python3.13 python3.12 python3.11 python; do
                if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
                    python="$candidate"
                    break
                fi
            done
            if [ -z "$python" ]; then
                echo "Python 3.11 or newer is needed, and none was found on the PATH; install it and run this again." >&2
                exit 1
            fi
            echo "Making a virtual environment in .venv ..."
            "$python" -m venv .venv
        fi
        python=.venv/bin/python
    fi
    echo "Installing sfrjax$1 ..."
    "$python" -m pip install --quiet --disable-pip-version-check --editable ".$1"
    PATH="$(dirname "$python"):$PATH"
    export PATH
}
