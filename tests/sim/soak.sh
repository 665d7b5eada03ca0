#!/usr/bin/env bash
# soak.sh SIM - $SIM_SEEDS (a million) seeds of the cluster simulation over all cores; the range starts at $SIM_FIRST.
set -u
sim=$1
seeds=${SIM_SEEDS:-1000000} first=${SIM_FIRST:-1000}
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
share=$(((seeds + cores - 1) / cores))
pids=()
for ((i = 0; i < cores; i++)); do
    SIM_FIRST=$((first + i * share)) SIM_SEEDS=$share "$sim" --no-plants &
    pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
exit $failed
