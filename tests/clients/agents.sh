#!/usr/bin/env bash
# Coding agents as npm ships them, each with one question that needs a tool, before the true server with a scripted model.
#
#     tests/clients/agents.sh FOLDER [claude|codex|opencode|pi]...
#
# Not part of `make check`: the first run puts some 1.2 GB of packages into FOLDER, which should lie outside the
# repository. Server and agent then run in a network namespace that has nothing but its own loopback, each agent in a
# home of its own below FOLDER. What was asked, answered and said stays there. Needs Linux, npm, `make all tests`.
set -eu
cd "$(dirname "$0")/../.."
program=${PLEIADES:-$PWD/build/release/pleiades}
scripted=$(dirname "$program")/tests/tools/scripted-serve
folder=$1
shift
[ $# -gt 0 ] || set -- claude codex opencode pi
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
port=8080 model=deepseek-v4-flash question='what is in note.txt?'

package_of() {
    case $1 in
    claude) echo @anthropic-ai/claude-code@2.1.197 ;;
    codex) echo @openai/codex@0.169.0 ;;
    opencode) echo opencode-ai@1.18.33 ;;
    pi) echo @mariozechner/pi-coding-agent@0.73.1 ;;
    esac
}

# The model asks for the tool that reads files, then tells what it saw. The second match is how Claude Code ends a prompt.
script() {
    local tool=$1 key=$2 value=$3 mark='｜DSML｜' call match
    call="I should read it.</think>Let me look.\\n\\n<${mark}tool_calls>\\n<${mark}invoke name=\\\"$tool\\\">\\n"
    call="$call<${mark}parameter name=\\\"$key\\\" string=\\\"true\\\">$value</${mark}parameter>\\n"
    call="$call</${mark}invoke>\\n</${mark}tool_calls>"
    for match in "$question" "\\\"$question\\\"" 'pending changes on the current branch'; do
        printf '{"match": "%s", "answer": "%s"}\n' "$match" "$call"
    done
    printf '{"match": "</tool_result>", "answer": "Now I know.</think>The note says that the password is Electra."}\n'
}

configure_codex() {
    mkdir -p "$HOME/.codex"
    cat >"$HOME/.codex/config.toml" <<TOML
model = "$model"
model_provider = "pleiades"

[model_providers.pleiades]
name = "Pleiades"
base_url = "http://127.0.0.1:$port/v1"
wire_api = "responses"
TOML
}

configure_opencode() {
    mkdir -p "$HOME/.config/opencode"
    cat >"$HOME/.config/opencode/opencode.json" <<JSON
{
  "provider": {
    "pleiades": {
      "npm": "@ai-sdk/openai-compatible",
      "name": "Pleiades",
      "options": { "baseURL": "http://127.0.0.1:$port/v1", "apiKey": "none" },
      "models": { "$model": { "name": "DeepSeek V4 Flash", "limit": { "context": 65536, "output": 16384 } } }
    }
  },
  "model": "pleiades/$model",
  "small_model": "pleiades/$model"
}
JSON
}

configure_pi() {
    mkdir -p "$HOME/.pi/agent"
    cat >"$HOME/.pi/agent/models.json" <<JSON
{
  "providers": {
    "pleiades": {
      "baseUrl": "http://127.0.0.1:$port/v1",
      "api": "openai-completions",
      "apiKey": "none",
      "models": [
        { "id": "$model", "name": "DeepSeek V4 Flash", "reasoning": true, "input": ["text"],
          "contextWindow": 65536, "maxTokens": 16384,
          "cost": { "input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0 },
          "compat": { "thinkingFormat": "deepseek" } }
      ]
    }
  }
}
JSON
}

ask() {
    local bin=$folder/$1/node_modules/.bin
    case $1 in
    claude)
        ANTHROPIC_BASE_URL=http://127.0.0.1:$port ANTHROPIC_AUTH_TOKEN=none CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 \
            "$bin/claude" -p "$question" --model "$model" ;;
    codex) configure_codex; "$bin/codex" exec --skip-git-repo-check "$question" ;;
    opencode) configure_opencode; "$bin/opencode" run "$question" ;;
    pi) configure_pi; "$bin/pi" --offline --provider pleiades --model "$model" -p "$question" ;;
    esac
}

# In the namespace: the server, the agent, and what can be said about them afterwards.
inside() {
    local name=$1 home=$folder/$1/home status=0 server
    ip link set lo up
    mkdir -p "$home" "$folder/$name/work"
    echo "The password is Electra." >"$folder/$name/work/note.txt"
    case $name in
    claude) script Read file_path "$folder/$name/work/note.txt" ;;
    codex) script exec_command cmd "cat note.txt" ;;
    opencode) script read filePath "$folder/$name/work/note.txt" ;;
    pi) script read path note.txt ;;
    esac >"$folder/$name/script.jsonl"
    "$program" synth -o "$folder/$name/tiny.gguf" >/dev/null 2>&1
    "$scripted" --script "$folder/$name/script.jsonl" -m "$folder/$name/tiny.gguf" --port $port --model-id $model \
        --metrics-open >"$folder/$name/server.log" 2>&1 </dev/null &
    server=$!
    for _ in $(seq 100); do grep -q '^serving' "$folder/$name/server.log" && break; sleep 0.1; done
    cd "$folder/$name/work"
    HOME=$home SHELL=/bin/bash
    export HOME SHELL
    (ask "$name") >"$folder/$name/stdout" 2>"$folder/$name/stderr" </dev/null || status=$?
    exec 3<>/dev/tcp/127.0.0.1/$port
    printf 'GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3
    cat <&3 >"$folder/$name/metrics"
    kill $server
    wait $server 2>/dev/null || true
    if [ $status -eq 0 ] && grep -q 'password is Electra' "$folder/$name/stdout"; then echo "ok - $name"
    else echo "not ok - $name (status $status, see $folder/$name)"; fi
    sed -n 's/^pleiades_\(cached_prompt_tokens_total\|prompt_tokens_total\) /#   \1 /p' "$folder/$name/metrics"
}

if [ "${AGENT_INSIDE:-}" ]; then
    inside "$1"
    exit
fi
[ -x "$scripted" ] || { echo "no $scripted: make tests"; exit 1; }
for name in "$@"; do
    package=$(package_of "$name")
    [ "$package" ] || { echo "no agent '$name'"; exit 2; }
    if [ ! -d "$folder/$name/node_modules" ]; then
        mkdir -p "$folder/$name"
        echo '{"private": true}' >"$folder/$name/package.json"
        (cd "$folder/$name" && npm install --no-progress --no-fund --no-audit "$package" >install.log 2>&1) ||
            { echo "not ok - $name: $package does not install, see $folder/$name/install.log"; continue; }
    fi
    AGENT_INSIDE=1 PLEIADES=$program timeout 180 unshare -rn bash "$PWD/tests/clients/agents.sh" "$folder" "$name" ||
        echo "not ok - $name: no namespace, or too slow"
done
