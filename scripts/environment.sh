# Sourced by the scripts beside it: makes a virtual environment, and installs into it as the constraints say.

# find_python: prints the first Python on the PATH that can run the package.
find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or newer with venv on the PATH: install one, for example with" \
        "'apt install python3 python3-venv' or 'brew install python'" >&2
    return 1
}

# make_environment DIRECTORY: makes it, or makes it anew if its interpreter has been removed.
make_environment() {
    local python
    "$1/bin/python" -c '' 2>/dev/null && return
    python="$(find_python)" || return
    "$python" -m venv --clear "$1"
}

# install_into DIRECTORY REQUIREMENT...
install_into() {
    local directory="$1"
    shift
    echo "Installing into $directory ..." >&2
    # Twice quiet leaves only errors.
    "$directory/bin/python" -m pip install --quiet --quiet --disable-pip-version-check \
        --root-user-action=ignore --constraint constraints.txt "$@"
}

# require_program NAME USE [PACKAGE]: as root, installs Debian's package of it if there is no such program.
require_program() {
    local package="${3:-$1}"
    command -v "$1" >/dev/null && return
    if [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then
        echo "Installing $1 ..." >&2
        apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq "$package" >/dev/null
    fi
    command -v "$1" >/dev/null && return
    echo "error: no $1 on the PATH, $2: install it, for example with 'apt install $package'" >&2
    return 1
}
