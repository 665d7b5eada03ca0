#!/usr/bin/env bash
# An nvcc in PATH may be a script far from its toolkit, or broken: the build finds the CUDA runtime all the same, or does
# without CUDA, and CUDA=1 says what is missing. Nothing is compiled.
. "$(dirname "$0")/../harness/lib.sh"

make=${MAKE_PROGRAM:-make}
unset CUDA MAKEFLAGS
variable() { "$make" --no-print-directory -pn help 2>/dev/null | sed -n "s/^$1 := //p"; }

real=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
mkdir "$tmp/bin"
export PATH="$tmp/bin:$PATH"

# nvcc_is LINE: what the nvcc in PATH does.
nvcc_is() { printf '#!/bin/sh\n%s\n' "$1" >"$tmp/bin/nvcc"; chmod +x "$tmp/bin/nvcc"; }

if [ -x "$real" ]; then
    nvcc_is "exec $real \"\$@\""
    same "the nvcc in PATH is the script" "$tmp/bin/nvcc" "$(variable NVCC)"
    same "its toolkit's runtime is found" yes "$([ -f "$(variable CUDART)" ] && echo yes)"
    ok "help" "$make" help
    says "so there is CUDA" "CUDA yes"
else
    skip "an nvcc that is a script" "no nvcc here"
fi

nvcc_is "exit 1"
ok "an nvcc that only fails" "$make" help
says "is no reason for CUDA" "CUDA no"
fails 2 "CUDA=1 with such an nvcc" "$make" CUDA=1 help
says "says what is missing" "CUDA=1, but $tmp/bin/nvcc has no libcudart_static.a"
