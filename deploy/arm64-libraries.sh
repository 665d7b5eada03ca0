#!/usr/bin/env bash
# Fetches the arm64 builds of the libraries that we link and unpacks them into build/root-aarch64, for the cross build
# and for qemu-aarch64 -L. Nothing is installed: the system's package database stays as it is, and root is not needed.
set -eu
cd "$(dirname "$0")/.."

packages="libcmocka-dev libjansson-dev libxxhash-dev libedit-dev libuv1-dev libzmq5 libprotobuf-c-dev libmicrohttpd12"
packages="$packages libcurl4"
# Headers and link names alone: what these would pull in (the development files of everything that libzmq can use, of
# ICU and Kerberos, of GnuTLS) nobody includes.
alone="libzmq3-dev libmicrohttpd-dev libcurl4-openssl-dev"
root=build/root-aarch64
apt=build/apt-arm64

if [ -e $root/.complete ] && [ "$(cat $root/.complete)" = "$packages $alone" ]; then exit 0; fi
for tool in apt-get dpkg-deb; do
    command -v $tool >/dev/null 2>&1 || { echo "arm64-libraries: no $tool here"; exit 1; }
done

rm -rf $root $apt
mkdir -p $root $apt/lists/partial $apt/archives/partial
: > $apt/status
here=$(pwd)
# Our own lists, status and cache, as if this were an empty arm64 machine.
options=(-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User= -o Acquire::Languages=none
         -o Dir::State::lists="$here/$apt/lists" -o Dir::State::status="$here/$apt/status" -o Dir::Cache="$here/$apt"
         -o Dir::Cache::archives="$here/$apt/archives" -o Debug::NoLocking=1)
echo "arm64-libraries: fetching $packages and what they need"
apt-get "${options[@]}" update -qq >$apt/log 2>&1 || { tail -n 5 $apt/log; exit 1; }
# shellcheck disable=SC2086
apt-get "${options[@]}" install -y -qq --no-install-recommends --download-only $packages >>$apt/log 2>&1 ||
    { tail -n 5 $apt/log; exit 1; }
# shellcheck disable=SC2086
(cd $apt/archives && apt-get "${options[@]}" download -qq $alone) >>$apt/log 2>&1 || { tail -n 5 $apt/log; exit 1; }
for package in $apt/archives/*.deb; do
    case $package in
    */libc6-dev_* | */linux-libc-dev_*) ;;        # the cross compiler has its own; two would disagree
    *) dpkg-deb -x "$package" $root ;;
    esac
done
rm -rf $apt
echo "$packages $alone" > $root/.complete
