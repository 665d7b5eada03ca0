# Sourced after lib.sh by tests of real processes on loopback: starts them, waits for them, ends them all at the end.
#
#     serve NAME OPTION...      `pleiades serve` in the background, log in $tmp/NAME.log; sets $url and $nodes_at
#     node NAME OPTION...       `pleiades node`, the same; joins $nodes_at unless told otherwise
#     wait_for STATE            until the service says so; fails after $patience seconds
#     soon "what" COMMAND...    until it succeeds; the same
#     pid NAME                  of the last process started under this name
#     stop NAME [SIGNAL]        sends it (TERM) and waits until the process is gone
#
# Every process that is left is killed when the script ends, by its own number. If anything failed, the ends of all logs
# are shown before; the log of a process that was started again is $tmp/NAME.earlier.log.
patience=${CLUSTER_PATIENCE:-120}
started=''
stop_all() {
    local p
    for p in $started; do kill -9 "$p" 2>/dev/null; done
    wait 2>/dev/null
}
show_logs() {
    local log
    for log in "$tmp"/*.log; do
        [ -s "$log" ] || continue
        printf '# ---- %s\n' "${log##*/}"
        tail -n 15 "$log" | sed 's/^/#   /'
    done
}
leave_cluster() {
    local status=$?
    [ $failures -eq 0 ] || show_logs
    stop_all
    (exit $status)
    finish
}
trap leave_cluster EXIT

pid() { cat "$tmp/$1.pid"; }

start() {
    local name=$1
    shift
    [ ! -e "$tmp/$name.log" ] || mv -f "$tmp/$name.log" "$tmp/$name.earlier.log"
    "$pleiades" "$@" >"$tmp/$name.log" 2>&1 </dev/null &
    echo $! >"$tmp/$name.pid"
    started="$started $!"
    disown
}

soon() {
    local what=$1 end=$((SECONDS + patience))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { echo "# $what: not within $patience s"; return 1; }
        sleep 0.05
    done
}

said() { grep -q "$2" "$tmp/$1.log"; }
gone() { ! kill -0 "$1" 2>/dev/null; }
has_begun() { said "$1" 'endpoint at ' || gone "$(pid "$1")"; }

serve() {
    local name=$1
    shift
    start "$name" serve --port 0 "$@"
    soon "the endpoint of $name" has_begun "$name"
    said "$name" 'endpoint at ' || { failed "serve begins as $name"; return 1; }
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
