#!/usr/bin/env bash
# `make install` and `make bundle`: what leaves this machine runs elsewhere.
. "$(dirname "$0")/../harness/lib.sh"

run_make() { "${MAKE_PROGRAM:-make}" --no-print-directory CUDA="${CUDA:-auto}" METAL="${METAL:-auto}" "$@"; }
unset MAKEFLAGS MFLAGS MAKELEVEL

ok "make install" run_make install DESTDIR="$tmp/root" PREFIX=/opt/pleiades
ok "the installed program runs" "$tmp/root/opt/pleiades/bin/pleiades" --version
ok "README and licence are installed" ls "$tmp/root/opt/pleiades/share/doc/pleiades/README.md" \
    "$tmp/root/opt/pleiades/share/doc/pleiades/LICENSE"

ok "make bundle" run_make bundle
archive=$(sed -n 's/^\(dist\/.*\.tar\.gz\) .*/\1/p' "$tmp/output")
mkdir -p "$tmp/elsewhere"
ok "the archive unpacks" tar -C "$tmp/elsewhere" -xzf "$archive"
bundle=$(echo "$tmp"/elsewhere/pleiades-*)
ok "the bundled program runs without any environment" env -i "$bundle/bin/pleiades" version
"$bundle/bin/pleiades" version >"$tmp/a"
"$pleiades" version >"$tmp/b"
same "and is the same program" "$(cat "$tmp/b")" "$(cat "$tmp/a")"

if [ "$(uname -s)" != Linux ]; then
    skip "libraries come from the bundle" "this check is for Linux"
    exit
fi

# Whatever the loader takes from outside the bundle is the C library.
outside=$(env -i ldd "$bundle/bin/pleiades" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' | grep -v "^$bundle/bin/../lib/" |
    grep -v -E '/(libc|libm|libdl|librt|libpthread|libresolv)\.so' || true)
same "only the C library comes from the system" "" "$outside"
same "nothing is missing" "" "$(env -i ldd "$bundle/bin/pleiades" | grep 'not found')"

# A machine that has nothing but the C library and the bundle. It has no /proc either, where the loader looks up where
# the program lies; LD_ORIGIN_PATH tells it.
if [ "$(id -u)" -eq 0 ]; then
    machine=$tmp/machine
    mkdir -p "$machine/opt"
    for library in $(ldd "$bundle/bin/pleiades" | grep -o '/[^ ]*' | grep -v "^$bundle"); do
        mkdir -p "$machine$(dirname "$library")"
        cp -L "$library" "$machine$library"
    done
    cp -R "$bundle" "$machine/opt/pleiades"
    ok "it runs on a machine with nothing else" env -i LD_ORIGIN_PATH=/opt/pleiades/bin "$(command -v chroot)" "$machine" /opt/pleiades/bin/pleiades version
    rm -f "$machine"/opt/pleiades/lib/libjansson*
    fails 127 "and that machine really has nothing else" env -i LD_ORIGIN_PATH=/opt/pleiades/bin "$(command -v chroot)" "$machine" /opt/pleiades/bin/pleiades version
else
    skip "it runs on a machine with nothing else" "chroot needs root"
fi
