# Sourced by the scripts here that compare one process with two stages on a core each:
#
#     one OPTION...            bench_cluster with a stage of its own, on core 0; prints its JSON
#     two STAGES OPTION...     the same with two nodes, one on each of two cores
#     stages_for N             the plan for most throughput of N streams with two equal machines
#     halves                   half of the layers each
#     synthetic FILE OPTION... writes the model if it is not there yet
#     field NAME               a number out of that JSON (stdin)
#     ratio A B                A / B, three digits
#
# $bench, $program and $model are the caller's; $tmp is a folder of its own. With $keys set, links are encrypted.
# Elsewhere than on loopback: boss_at, a_at, b_at (addresses) and boss_in, a_in, b_in (words before the command).
nodes='' port=$((20000 + RANDOM % 20000))
command -v taskset >/dev/null || { echo "${0##*/}: taskset is needed"; exit 1; }
mkdir -p build/bench

end_nodes() {
    local p
    for p in $nodes; do kill "$p" 2>/dev/null || true; done
    # shellcheck disable=SC2086
    [ -z "$nodes" ] || wait $nodes 2>/dev/null || true
    nodes=''
}

synthetic() {
    local file=$1
    shift
    [ -e "$file" ] || "$program" synth --preset mid --mix q2 "$@" -o "$file"
}

# node NAME CORE OPTION...: in the background.
node() {
    local name=$1 core=$2 in_name=$1_in at_name=$1_at
    shift 2
    # shellcheck disable=SC2086
    ${!in_name:-} taskset -c "$core" "$program" node --name "$name" --bind "${!at_name:-127.0.0.1}" --no-measure -t 1 \
        -m "$model" -q "$@" 2>/dev/null &
    nodes="$nodes $!"
}

one() { taskset -c 0 "$bench" -m "$model" --local -t 1 "$@"; }
two() {
    local plan=$1 name core=0 boss
    shift
    port=$((port + 1))
    boss=${boss_at:-127.0.0.1}:$port
    if [ -n "${keys:-}" ]; then "$program" keys init --out "$tmp/keys" >/dev/null 2>&1 || true; fi
    for name in a b; do
        if [ -n "${keys:-}" ]; then
            (umask 077 && "$program" keys invite --keys "$tmp/keys" --address "$boss" >"$tmp/$name.key")
            node "$name" $core --key "$tmp/$name.key"
        else
            node "$name" $core --insecure --join "$boss"
        fi
        core=$((core + 1))
    done
    if [ -n "${keys:-}" ]; then set -- --key "$tmp/keys" "$@"; fi
    # shellcheck disable=SC2086
    ${boss_in:-} "$bench" -m "$model" --bind "$boss" --nodes 2 --stages "$plan" "$@"
    end_nodes
}

layers_of() { "$program" inspect --json "$model" | sed -n 's/.*"n_layer": *\([0-9]*\).*/\1/p' | head -n 1; }
halves() {
    local n
    n=$(layers_of)
    echo "a=0-$((n / 2 - 1)),b=$((n / 2))-$((n - 1))"
}
stages_for() {
    "$program" shard plan -m "$model" --machine a,mem=64G,bw=10G --machine b,mem=64G,bw=10G --objective throughput \
        --ordered --streams "$1" --ctx 8192 --no-helpers --link ms=0.05,bw=2G --json |
        tr -d ' \n' | grep -o '"machine":"[ab]","layers":\[[0-9]*,[0-9]*\]' |
        sed 's/"machine":"\(.\)","layers":\[\([0-9]*\),\([0-9]*\)\]/\1=\2-\3/' | paste -sd, -
}

field() { sed -n "s/.*\"$1\": \([0-9.]*\).*/\1/p" | head -n 1; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", (b > 0 ? a / b : 0) }'; }
