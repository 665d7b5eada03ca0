# Sourced after lib.sh by tests that set programs in node against servers: what they need is here or the test is skipped.
#
#     need "what is tested" TOOL...    each TOOL is installed, and tests/clients/node_modules; else a skip and the end
#     start LOG COMMAND...             in the background; killed when the script ends, by its own number
#     said LOG TEXT                    waits until the log says it, and prints what stands behind it
#     node_tests FILE...               runs them, one after the other; their TAP lines are ours
pids=
trap 'kill $pids 2>/dev/null; wait $pids 2>/dev/null; finish' EXIT

need() {
    local what=$1 tool
    shift
    for tool in "$@"; do
        command -v "$tool" >/dev/null 2>&1 || { skip "$what" "no $tool here: make deps-ci"; exit 0; }
    done
    # shellcheck source=tests/clients/install.sh
    . tests/clients/install.sh || { skip "$what" "npm packages cannot be installed"; exit 0; }
}

start() { local log=$1; shift; "$@" >"$log" 2>&1 </dev/null & pids="$pids $!"; }

said() {
    for _ in $(seq 300); do
        grep -qF "$2" "$1" 2>/dev/null && { sed -n "s|.*$2||p" "$1" | head -n 1; return 0; }
        sleep 0.1
    done
    sed 's/^/#   /' "$1"
    return 1
}

node_tests() {
    local status=0
    HOME=$tmp timeout 540 node --test --test-concurrency=1 --test-reporter=./tests/clients/reporter.js "$@" || status=$?
    [ $status -eq 0 ] || failed "the node tests end well (status $status; 124: too slow)"
}
