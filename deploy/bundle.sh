#!/usr/bin/env bash
# bundle.sh PROGRAM VERSION - writes dist/pleiades-VERSION-OS-ARCH/ and a .tar.gz of it: the program in bin/, in lib/ every
# shared library that it needs except the C library's own, and run paths relative to where it lies. So it runs on any
# machine with the same or a newer C library, from any folder, with nothing installed.
set -eu
cd "$(dirname "$0")/.."
program=$1 version=$2

case "$(uname -s)" in Darwin) os=macos ;; Linux) os=linux ;; *) os=$(uname -s | tr '[:upper:]' '[:lower:]') ;; esac
case "$(uname -m)" in x86_64 | amd64) arch=x86_64 ;; aarch64 | arm64) arch=arm64 ;; *) arch=$(uname -m) ;; esac
name=pleiades-$version-$os-$arch
out=dist/$name

# Linux: what belongs to the C library, and drivers, must be the machine's own.
is_system_library() {
    case "$(basename "$1")" in
    ld-linux* | ld64* | libc.so* | libm.so* | libdl.so* | librt.so* | libpthread.so* | libresolv.so* | libnsl.so* | \
        libutil.so* | libanl.so* | libnss_* | libcuda.so* | linux-vdso*) true ;;
    *) false ;;
    esac
}

linux_libraries() {
    local line path
    ldd "$1" | while read -r line; do
        case $line in *"not found"*) echo "bundle: $line" >&2; exit 1 ;; esac
        path=$(printf '%s\n' "$line" | sed -n 's/.*=> \(\/[^ ]*\) (.*/\1/p')
        [ -n "$path" ] || continue
        is_system_library "$path" || echo "$path"
    done
}

bundle_linux() {
    local library
    command -v patchelf >/dev/null 2>&1 || { echo "bundle: patchelf is needed: make deps"; exit 1; }
    linux_libraries "$program" > "$out.list"
    while read -r library; do
        cp -L "$library" "$out/lib/"
        chmod 755 "$out/lib/$(basename "$library")"
        patchelf --set-rpath '$ORIGIN' "$out/lib/$(basename "$library")"
    done < "$out.list"
    rm -f "$out.list"
    patchelf --set-rpath '$ORIGIN/../lib' "$out/bin/pleiades"
}

# macOS: everything that does not come with the system (/usr/lib, /System), and what that needs in turn.
mac_libraries() {
    otool -L "$1" | sed -n '2,$s/^[[:space:]]*\([^ ]*\) (.*/\1/p' | grep -v -e '^/usr/lib/' -e '^/System/' -e '^@' || true
}

mac_take() {
    local file=$1 prefix=$2 library base
    for library in $(mac_libraries "$file"); do
        base=$(basename "$library")
        install_name_tool -change "$library" "$prefix/$base" "$file"
        [ -e "$out/lib/$base" ] && continue
        cp -L "$library" "$out/lib/$base"
        chmod 755 "$out/lib/$base"
        install_name_tool -id "@rpath/$base" "$out/lib/$base"
        mac_take "$out/lib/$base" @loader_path
    done
    codesign --force --sign - "$file" >/dev/null 2>&1 || true         # changed names break the linker's signature
}

rm -rf "$out" "$out.tar.gz"
mkdir -p "$out/bin" "$out/lib"
cp "$program" "$out/bin/pleiades"
if [ "$os" = macos ]; then mac_take "$out/bin/pleiades" @loader_path/../lib
else bundle_linux; fi
strip -S "$out/bin/pleiades" 2>/dev/null || true
[ "$os" != macos ] || codesign --force --sign - "$out/bin/pleiades" >/dev/null 2>&1 || true
cp README.md LICENSE "$out/"
tar -C dist -czf "$out.tar.gz" "$name"
echo "$out.tar.gz ($(du -k "$out.tar.gz" | cut -f1) KiB)"
