#!/bin/sh
# Installs what Pleiades needs to build (deps) and, with --ci, what only `make check` needs in addition.
# Says what is missing and why; does nothing when all of it is there. Debian and Ubuntu (apt), macOS (brew).
set -eu

ci=no
[ "${1:-}" = --ci ] && ci=yes
say() { printf '%s\n' "$*"; }
die() { say "deps: $*" >&2; exit 1; }

# package | what for
debian_packages() {
    cat <<LIST
gcc|C compiler
libc6-dev|C library headers
make|the build
pkg-config|finds the libraries
libcmocka-dev|unit tests
libjansson-dev|JSON
libxxhash-dev|checksums and content keys
libedit-dev|line editing in the terminal
libuv1-dev|event loop, timers, files
libzmq3-dev|messages between machines, CurveZMQ
libprotobuf-c-dev|message schemas
protobuf-c-compiler|message schemas (generator)
libmicrohttpd-dev|HTTP server
libcurl4-openssl-dev|HTTP client
patchelf|self-contained bundles
python3|test scripts that check our output independently
git|version in the program
LIST
    [ $ci = no ] || cat <<LIST
clang|second compiler, fuzzing
libclang-rt-dev|clang's sanitizers and libFuzzer
gcc-aarch64-linux-gnu|arm64 build
libc6-dev-arm64-cross|arm64 build
qemu-user|runs the arm64 tests
iproute2|network namespaces for tests
nodejs|real API clients in tests
npm|real API clients in tests
chromium|the web page in a browser
LIST
}

brew_packages() {
    cat <<LIST
make|the build
pkg-config|finds the libraries
cmocka|unit tests
jansson|JSON
xxhash|checksums and content keys
libuv|event loop, timers, files
zeromq|messages between machines, CurveZMQ
protobuf-c|message schemas
libmicrohttpd|HTTP server
curl|HTTP client
LIST
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null 2>&1; then sudo "$@"
    else die "root is needed to install packages, and there is no sudo: run 'make deps' as root"
    fi
}

has_debian_package() {
    # Node.js often comes from its makers, with npm inside; Debian's npm would not fit beside it.
    case $1 in nodejs | npm) ! command -v "${1%js}" >/dev/null 2>&1 || return 0 ;; esac
    [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | cut -c1-2)" = ii ]
}

# The list filtered by a test for presence; prints what is missing to the user and the names to stdout.
missing_of() {
    while IFS='|' read -r name reason; do
        "$1" "$name" && continue
        printf '  %-24s %s\n' "$name" "$reason" >&2
        printf '%s ' "$name"
    done
}

install_debian() {
    missing=$(debian_packages | missing_of has_debian_package)
    if [ -z "$missing" ]; then
        say "deps: everything is installed"
        return
    fi
    say "deps: installing the packages above with apt-get"
    export DEBIAN_FRONTEND=noninteractive
    options="-y -qq --no-install-recommends -o Dpkg::Use-Pty=0"
    # The package lists may be absent or old: fetch them only when the first try fails.
    # shellcheck disable=SC2086
    as_root apt-get install $options $missing >/dev/null 2>&1 && return
    as_root apt-get update -qq
    # shellcheck disable=SC2086
    as_root apt-get install $options $missing >/dev/null || die "apt-get could not install: $missing"
}

has_brew_package() {
    brew list --versions "$1" >/dev/null 2>&1
}

install_brew() {
    command -v brew >/dev/null 2>&1 || die "Homebrew is needed (https://brew.sh), then run 'make deps' again"
    xcode-select -p >/dev/null 2>&1 || die "the command line tools are needed: xcode-select --install"
    missing=$(brew_packages | missing_of has_brew_package)
    if [ -z "$missing" ]; then
        say "deps: everything is installed"
        return
    fi
    say "deps: installing the packages above with brew"
    # shellcheck disable=SC2086
    brew install --quiet $missing
}

case "$(uname -s)" in
Linux)
    command -v apt-get >/dev/null 2>&1 || {
        say "deps: no apt-get here. Packages by their Debian names, for your own package manager:"
        debian_packages | while IFS='|' read -r name reason; do printf '  %-24s %s\n' "$name" "$reason"; done
        exit 1
    }
    install_debian
    if [ $ci = yes ]; then bash deploy/arm64-libraries.sh || say "deps: no arm64 libraries; make check will skip arm64"; fi
    ;;
Darwin) install_brew ;;
*) die "only Linux with apt and macOS with brew are known here" ;;
esac
