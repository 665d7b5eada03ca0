# Sourced after lib.sh by tests of real processes on loopback: starts them, waits for them, ends them all at the end.
#
#     serve NAME OPTION...      `pleiades serve` in the background, log in $tmp/NAME.log; sets $url and $nodes_at
#     node NAME OPTION...       `pleiades node`, the same; joins $nodes_at unless told otherwise
#     wait_for STATE            until the service says so; fails after $patience seconds
#     pid NAME                  of the last process started under this name
#     stop NAME [SIGNAL]        sends it (TERM) and waits until the process is gone
#
# Every process that is left is killed when the script ends, by its own number.
patience=${CLUSTER_PATIENCE:-60}
started=''
stop_all() {
    local p
    for p in $started; do kill -9 "$p" 2>/dev/null; done
    wait 2>/dev/null
}
trap 'stop_all; finish' EXIT

pid() { cat "$tmp/$1.pid"; }

start() {
    local name=$1
    shift
    "$pleiades" "$@" >"$tmp/$name.log" 2>&1 </dev/null &
    echo $! >"$tmp/$name.pid"
    started="$started $!"
    disown
}

# soon "what" COMMAND...: until it succeeds, twenty times a second.
soon() {
    local what=$1 tries=$((patience * 20))
    shift
    while [ $tries -gt 0 ]; do
        if "$@" >/dev/null 2>&1; then return 0; fi
        tries=$((tries - 1))
        sleep 0.05
    done
    echo "# $what: not within $patience s"
    return 1
}

said() { grep -q "$2" "$tmp/$1.log"; }

serve() {
    local name=$1
    shift
    start "$name" serve --port 0 "$@"
    soon "the endpoint of $name" said "$name" 'endpoint at ' || { tail -n 5 "$tmp/$name.log" | sed 's/^/# /'; return 1; }
    url=$(sed -n 's/^endpoint at \([^ ]*\).*/\1/p' "$tmp/$name.log" | head -n 1)
    if said "$name" 'nodes join at'; then
        nodes_at=$(sed -n 's|^nodes join at tcp://||p' "$tmp/$name.log" | head -n 1)
    fi
}

node() {
    local name=$1
    shift
    start "$name" node --name "$name" --bind 127.0.0.1 --no-measure -t 1 --join "$nodes_at" "$@"
}

state() { "$pleiades" status --url "$url" --json 2>/dev/null | sed -n 's/^{"state": "\([a-z]*\)".*/\1/p'; }
state_is() { [ "$(state)" = "$1" ]; }
wait_for() { soon "state $1" state_is "$1"; }

# member KEY: a number of the status document, the first of that name.
member() { "$pleiades" status --url "$url" --json 2>/dev/null | grep -o "\"$1\": [0-9.]*" | head -n 1 | sed 's/.*: //'; }

gone() { ! kill -0 "$1" 2>/dev/null; }
stop() {
    local p
    p=$(pid "$1")
    kill "-${2:-TERM}" "$p" 2>/dev/null
    soon "the end of $1" gone "$p"
}

# ask FILE OPTION...: the tokens of one request, as `generate` prints them.
ask() {
    local ids=$1
    shift
    "$pleiades" generate --cluster "$url" --ids "$ids" "$@"
}
