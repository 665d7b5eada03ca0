// The page's script: a conversation over /v1/chat/completions, and the cluster as /v1/status tells it.
//
// What the model writes reaches the document as text nodes only. Answers are rendered block by block, and a block
// that did not change since the last frame is left alone. The key lives in this tab's session storage.
"use strict";

const $ = (id) => document.getElementById(id);
const BLOCKS_MAX = 4000, INLINE_MAX = 20000;       // beyond: the rest is one plain block, no marks inside a block

// ---- storage; private windows may refuse it ----

const stored = (area, key) => { try { return area().getItem("pleiades." + key) || ""; } catch { return ""; } };
const store = (area, key, value) => {
  try {
    if (value) area().setItem("pleiades." + key, value);
    else area().removeItem("pleiades." + key);
  } catch { /* then it lasts as long as the page */ }
};
const settings = {
  key: stored(() => sessionStorage, "key"),
  system: stored(() => localStorage, "system"),
  thinking: stored(() => localStorage, "thinking"),
  temperature: stored(() => localStorage, "temperature"),
  tokens: stored(() => localStorage, "tokens"),
};

// ---- elements ----

const element = (name, attributes, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(key, value);
    else if (value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
};
const SVG = "http://www.w3.org/2000/svg";
const drawing = (width, rects) => {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} 10`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const [x, w, colour] of rects) {
    const rect = document.createElementNS(SVG, "rect");
    for (const [key, value] of [["x", x], ["y", 0], ["width", w], ["height", 10], ["class", colour]])
      rect.setAttribute(key, String(value));
    svg.append(rect);
  }
  return svg;
};
const announce = (text) => { $("announce").textContent = text; };
const showError = (text) => { $("error").textContent = text; $("error").hidden = !text; };

// ---- the server ----

const headers = (more) => ({ ...more, ...(settings.key ? { Authorization: "Bearer " + settings.key } : {}) });

const failure = async (response) => {
  let text = `the server answered ${response.status}`;
  try {
    const body = await response.json();
    if (body.error && body.error.message) text = String(body.error.message);
  } catch { /* not JSON: the status has to do */ }
  const wait = response.headers.get("retry-after");
  if (wait && (response.status === 429 || response.status === 503)) text += ` (try again in ${wait} s)`;
  const error = new Error(text);
  error.status = response.status;
  return error;
};

// Events of a stream, one parsed object each; ends at [DONE] or with the connection. A comment that tells how much of the
// prompt is computed is an event {prefill: [done, total]}.
async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "", data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() + "\n\n" : decoder.decode(value, { stream: true });
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        const progress = /^: ?prefill (\d+)\/(\d+)/.exec(line);
        if (progress) yield { prefill: [Number(progress[1]), Number(progress[2])] };
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        if (line !== "" || data.length === 0) continue;
        const text = data.join("\n");
        data = [];
        if (text === "[DONE]") return;
        yield JSON.parse(text);
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// ---- text as markdown, the common part of it ----

// Code, bold, italic, [text](address), bare addresses; each with groups of its own.
const INLINE = new RegExp([
  /(`+)([^`]|[^`][^]*?[^`])\1(?!`)/,
  /\*\*(?=\S)([^]+?)\*\*/,
  /(?<![\w*])\*(?=[^\s*])([^*\n]+?)\*(?!\w)/,
  /\[([^\]\n]+)\]\(([^()\s]+)\)/,
  /(https?:\/\/[^\s<>"'`)\]]*[^\s<>"'`)\].,;:!?])/,
].map((part) => part.source).join("|"), "g");

const link = (text, address) => {
  if (!/^https?:\/\//i.test(address)) return document.createTextNode(text);
  return element("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, text);
};

const inline = (into, text, depth = 0) => {
  let at = 0;
  if (text.length > INLINE_MAX) return into.append(text), into;
  for (const m of text.matchAll(INLINE)) {
    into.append(text.slice(at, m.index));
    at = m.index + m[0].length;
    if (m[1]) into.append(element("code", {}, m[2].length > 2 ? m[2].replace(/^ (.*) $/, "$1") : m[2]));
    else if (m[3] && depth < 4) into.append(inline(element("strong"), m[3], depth + 1));
    else if (m[4] && depth < 4) into.append(inline(element("em"), m[4], depth + 1));
    else if (m[5]) into.append(link(m[5], m[6]));
    else if (m[7]) into.append(link(m[7], m[7]));
    else into.append(m[0]);
  }
  into.append(text.slice(at));
  return into;
};

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const kindOf = (line) => {
  if (FENCE.test(line)) return "code";
  if (/^#{1,6}\s/.test(line)) return "heading";
  if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) return "rule";
  if (ITEM.test(line)) return "list";
  if (/^\s*>/.test(line)) return "quote";
  if (/^\s*\|.*\|\s*$/.test(line)) return "table";
  return line.trim() === "" ? "" : "text";
};

// Cuts a text into blocks {kind, lines}; joined they are the text again, so equal blocks look equal.
const blocksOf = (text) => {
  const blocks = [];
  let open = null, fence = "";
  for (const line of text.split("\n")) {
    if (fence) {
      open.lines.push(line);
      if (line.trim().startsWith(fence) && line.trim().replace(/^(`+|~+)$/, "") === "") fence = "", open = null;
      continue;
    }
    let kind = kindOf(line);
    if (kind === "text" && open && open.kind === "list") kind = "list";       // a wrapped item
    if (kind === "" || !open || open.kind !== kind || kind === "heading" || kind === "rule" || kind === "code")
      open = null;
    if (kind === "") continue;
    if (!open) blocks.push(open = { kind, lines: [] });
    open.lines.push(line);
    if (kind === "code") fence = FENCE.exec(line)[1].slice(0, 3);
  }
  if (blocks.length <= BLOCKS_MAX) return blocks;
  const rest = blocks.splice(BLOCKS_MAX).flatMap((block) => [...block.lines, ""]);
  return [...blocks, { kind: "code", lines: ["", ...rest] }];
};

const listBlock = (lines) => {
  const items = [];
  for (const line of lines) {
    const m = ITEM.exec(line);
    if (m) items.push({ indent: m[1].replace(/\t/g, "    ").length, ordered: /\d/.test(m[2]), mark: m[2], text: m[3] });
    else if (items.length) items[items.length - 1].text += "\n" + line.trim();
  }
  const level = (from, indent, depth) => {
    const start = parseInt(items[from].mark, 10);
    const list = items[from].ordered ? element("ol", start > 1 ? { start } : {}) : element("ul");
    let i = from;
    while (i < items.length && items[i].indent >= indent) {
      if (items[i].indent > indent + 1 && list.lastChild && depth < 8) {
        const [child, next] = level(i, items[i].indent, depth + 1);
        list.lastChild.append(child);
        i = next;
      } else list.append(inline(element("li"), items[i++].text));
    }
    return [list, i];
  };
  const box = element("div");
  for (let i = 0; i < items.length;) {
    const [list, next] = level(i, items[i].indent, 0);
    box.append(list);
    i = next;
  }
  return box;
};

const tableBlock = (lines) => {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const hasHead = lines.length > 1 && /^[\s|:-]+$/.test(lines[1]);
  const table = element("table");
  lines.forEach((line, i) => {
    if (hasHead && i === 1) return;
    const row = element("tr");
    for (const cell of cells(line)) row.append(inline(element(hasHead && i === 0 ? "th" : "td"), cell));
    table.append(row);
  });
  return element("div", { class: "table" }, table);
};

const renderBlock = ({ kind, lines }) => {
  switch (kind) {
  case "code": {
    const body = lines.slice(1);
    if (body.length && /^\s*(```+|~~~+)\s*$/.test(body[body.length - 1])) body.pop();
    return element("pre", { tabindex: "0" }, element("code", {}, body.join("\n")));
  }
  case "heading": {
    const depth = Math.min(3, lines[0].match(/^#+/)[0].length);
    return inline(element("h" + (depth + 2)), lines[0].replace(/^#+\s*/, "").replace(/\s#+\s*$/, ""));
  }
  case "rule": return element("hr");
  case "list": return listBlock(lines);
  case "quote": return inline(element("blockquote"), lines.map((line) => line.replace(/^\s*>\s?/, "")).join("\n"));
  case "table": return tableBlock(lines);
  default: {
    const paragraph = element("p");
    lines.forEach((line, i) => { if (i) paragraph.append(element("br")); inline(paragraph, line); });
    return paragraph;
  }
  }
};

// Brings `into` to show `text`, touching only the blocks that differ from those it shows.
const renderText = (into, text) => {
  const blocks = blocksOf(text);
  blocks.forEach((block, i) => {
    const source = block.kind + "\n" + block.lines.join("\n");
    const old = into.children[i];
    if (old && old.source === source) return;
    const fresh = renderBlock(block);
    fresh.source = source;
    if (old) old.replaceWith(fresh);
    else into.append(fresh);
  });
  while (into.children.length > blocks.length) into.lastElementChild.remove();
};

// ---- the conversation ----

let messages = [];                                // {role, content, reasoning_content?}
let running = null;                               // AbortController of the answer that comes

const follows = () => { const log = $("log"); return log.scrollHeight - log.scrollTop - log.clientHeight < 60; };
const toEnd = () => { $("log").scrollTop = $("log").scrollHeight; };

const addUser = (text) => {
  $("empty").hidden = true;
  $("log").append(element("div", { class: "user" }, text));
  toEnd();
};

const addAnswer = () => {
  const thinking = element("div");
  const summary = element("summary", {}, "Thinking");
  const details = element("details", { class: "thinking", hidden: true }, summary, thinking);
  const text = element("div", { class: "text waiting" });
  const tail = element("div", { class: "tail", hidden: true });
  const box = element("article", { class: "answer", "aria-label": "Answer" }, details, text, tail);
  $("log").append(box);
  toEnd();
  return { box, details, summary, thinking, text, tail };
};

const copy = async (text, button) => {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "The browser does not allow it";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
};

const requestBody = () => {
  const body = { messages: [], stream: true, stream_options: { include_usage: true } };
  if (settings.system) body.messages.push({ role: "system", content: settings.system });
  body.messages.push(...messages);
  if (settings.temperature !== "") body.temperature = Number(settings.temperature);
  if (settings.tokens !== "") body.max_tokens = Number(settings.tokens);
  if (settings.thinking) body.thinking = { type: settings.thinking === "off" ? "disabled" : "enabled" };
  if (settings.thinking === "max") body.reasoning_effort = "max";
  return body;
};

const setRunning = (controller) => {
  running = controller;
  $("send").hidden = Boolean(controller);
  $("stop").hidden = !controller;
};

// What came so far, drawn at most once a frame.
const painter = (view, answer, started) => {
  let planned = false;
  const paint = () => {
    planned = false;
    const stay = follows();
    if (answer.reasoning) {
      view.details.hidden = false;
      view.thinking.textContent = answer.reasoning;
      const seconds = Math.max(1, Math.round(((answer.thoughtAt || performance.now()) - started) / 1000));
      view.summary.textContent = answer.content || answer.over ? `Thought for ${seconds} s` : `Thinking, ${seconds} s`;
    }
    renderText(view.text, answer.content);
    const waits = !answer.over && !answer.content;
    view.text.classList.toggle("waiting", waits);
    if (waits && answer.prefill && !answer.firstAt) {
      const [done, total] = answer.prefill;
      view.text.dataset.progress = `reading the prompt, ${done} of ${total} tokens`;
    } else delete view.text.dataset.progress;
    if (stay) toEnd();
  };
  return { paint, plan: () => { if (!planned) { planned = true; requestAnimationFrame(paint); } } };
};

const figures = (answer, started) => {
  const now = performance.now();
  const tokens = answer.usage ? answer.usage.completion_tokens : 0;
  const rate = tokens > 1 && answer.firstAt ? (tokens - 1) / ((now - answer.firstAt) / 1000) : 0;
  const parts = [];
  if (answer.firstAt) parts.push(`first token after ${((answer.firstAt - started) / 1000).toFixed(1)} s`);
  if (tokens) parts.push(`${tokens} tokens`);
  if (rate) parts.push(`${rate.toFixed(1)} tokens/s`);
  const cached = answer.usage && answer.usage.prompt_tokens_details && answer.usage.prompt_tokens_details.cached_tokens;
  if (answer.usage) parts.push(`prompt ${answer.usage.prompt_tokens}${cached ? `, ${cached} of it cached` : ""}`);
  return parts.join(" · ");
};

const take = (answer, event) => {
  if (event.error) throw new Error(String(event.error.message || "the answer failed"));
  if (event.usage) answer.usage = event.usage;
  if (event.prefill) answer.prefill = event.prefill;
  const choice = event.choices && event.choices[0];
  if (!choice) return;
  const delta = choice.delta || {};
  if ((delta.reasoning_content || delta.content) && !answer.firstAt) answer.firstAt = performance.now();
  if (delta.reasoning_content) answer.reasoning += delta.reasoning_content;
  if (delta.content) {
    if (!answer.thoughtAt) answer.thoughtAt = performance.now();
    answer.content += delta.content;
  }
  if (choice.finish_reason) answer.finish = choice.finish_reason;
};

const finishAnswer = (view, answer, started, stopped) => {
  answer.over = true;
  const note = stopped ? "stopped" : answer.finish === "length" ? "cut: the limit of tokens is reached" : "";
  const copyButton = element("button", { type: "button", class: "quiet" }, "Copy");
  copyButton.addEventListener("click", () => copy(answer.content, copyButton));
  const again = element("button", { type: "button", class: "quiet again", click: retry }, "Try again");
  for (const old of document.querySelectorAll(".again")) old.remove();
  view.tail.append(copyButton, again, note);
  view.tail.hidden = false;
  $("figures").textContent = figures(answer, started);
  announce(stopped ? "Stopped" : "Answer complete");
};

async function ask() {
  const conversation = messages;
  const controller = new AbortController();
  const answer = { content: "", reasoning: "", usage: null, finish: "", over: false };
  const view = addAnswer(), started = performance.now(), screen = painter(view, answer, started);
  setRunning(controller);
  showError("");
  announce("Answering");
  let stopped = false, problem = null;
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", signal: controller.signal, cache: "no-store",
      headers: headers({ "Content-Type": "application/json" }), body: JSON.stringify(requestBody()),
    });
    if (!response.ok) throw await failure(response);
    for await (const event of events(response)) {
      take(answer, event);
      screen.plan();
    }
    if (!answer.finish) throw new Error("the connection ended before the answer did");
  } catch (error) {
    stopped = controller.signal.aborted;
    if (!stopped) problem = error;
  }
  if (answer.content || answer.reasoning) {
    conversation.push({ role: "assistant", content: answer.content,
      ...(answer.reasoning ? { reasoning_content: answer.reasoning } : {}) });
  }
  if (running === controller) setRunning(null);
  if (conversation !== messages) return;
  const stay = follows();
  finishAnswer(view, answer, started, stopped);
  screen.paint();
  if (stay) toEnd();
  if (problem) report(problem);
}

const report = (error) => {
  showError(error instanceof TypeError ? "the server cannot be reached" : error.message);
  if (error.status === 401) openSettings("This server wants a key.");
};

function retry() {
  if (running) return;
  if (messages.length && messages[messages.length - 1].role === "assistant") messages.pop();
  if (!messages.length) return;
  $("log").lastElementChild.remove();
  ask();
}

const send = () => {
  const text = $("prompt").value;
  if (running || text.trim() === "") return;
  $("prompt").value = "";
  grow();
  messages.push({ role: "user", content: text });
  addUser(text);
  ask();
};

const newChat = () => {
  if (running) running.abort();
  messages = [];                                  // an answer that still ends goes to the old ones
  for (const old of [...$("log").children]) if (old.id !== "empty") old.remove();
  $("empty").hidden = false;
  $("figures").textContent = "";
  showError("");
  $("prompt").focus();
};

const grow = () => {
  const box = $("prompt");
  box.style.height = "auto";
  box.style.height = box.scrollHeight + 2 + "px";
};

// ---- settings ----

const openSettings = (note) => {
  for (const name of Object.keys(settings)) $("set-" + name).value = settings[name];
  $("settings-note").textContent = note || "";
  $("settings-note").hidden = !note;
  if (!$("settings").open) $("settings").showModal();
  if (note) $("set-key").focus();
};

const saveSettings = () => {
  for (const input of [$("set-temperature"), $("set-tokens")]) if (!input.reportValidity()) return;
  for (const name of Object.keys(settings)) {
    settings[name] = $("set-" + name).value.trim();
    store(name === "key" ? () => sessionStorage : () => localStorage, name, settings[name]);
  }
  $("settings").close();
  showError("");
  loadModel();
  if (!$("cluster").hidden) pollCluster();
};

const loadModel = async () => {
  try {
    const response = await fetch("v1/models", { headers: headers(), cache: "no-store" });
    if (!response.ok) throw await failure(response);
    const model = (await response.json()).data[0];
    $("model").textContent = model ? model.display_name || model.id : "";
  } catch (error) {
    report(error);
  }
};

// ---- the cluster ----

let pollTimer = 0;

async function pollCluster() {
  clearTimeout(pollTimer);
  if ($("cluster").hidden || document.hidden) return;
  try {
    const response = await fetch("v1/status", { headers: headers(), cache: "no-store" });
    if (!response.ok) throw await failure(response);
    showCluster(await response.json());
  } catch (error) {
    $("cluster-state").className = "state bad";
    $("cluster-state").textContent = error instanceof TypeError ? "the server cannot be reached" : error.message;
  }
  pollTimer = setTimeout(pollCluster, 2000);
}

const bytesText = (n) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  while (n >= 1024 && i + 1 < units.length) n /= 1024, i++;
  return `${n >= 100 || i === 0 ? Math.round(n) : n.toFixed(1)} ${units[i]}`;
};
const timeText = (us) => {
  if (us >= 1e6) return `${(us / 1e6).toFixed(1)} s`;
  return us >= 1000 ? `${(us / 1000).toFixed(1)} ms` : `${Math.round(us)} \u00b5s`;
};
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

// A bar of shares [name, amount, colour] of `total`, and the words for it below.
const sharesBar = (shares, total, wordOf) => {
  let x = 0;
  const rects = shares.filter((share) => share[1] > 0).map(([, amount, colour]) => {
    const width = 1000 * amount / total, rect = [x, width, colour];
    x += width;
    return rect;
  });
  const legend = element("ul", { class: "legend" });
  for (const [name, amount, colour] of shares)
    legend.append(element("li", {}, drawing(10, [[0, 10, colour]]), `${name} ${wordOf(amount)}`));
  return element("div", {}, element("div", { class: "bar" }, drawing(1000, rects)), legend);
};

const fact = (value, name) => element("div", {}, element("b", {}, value), element("span", {}, name));

const factsPart = ({ tokens, requests }) => element("div", { class: "facts" },
  fact(tokens.output_per_s.toFixed(1), "tokens/s"), fact(tokens.prompt_per_s.toFixed(0), "prompt/s"),
  fact(`${requests.active}${requests.queued ? ` + ${requests.queued}` : ""}`, "requests"));

const stagesPart = (nodes) => {
  const stages = nodes.filter((node) => node.layers && !node.helper).sort((a, b) => a.stage - b.stage);
  if (!stages.length) return [];
  const total = stages.reduce((sum, node) => sum + node.layers[1] - node.layers[0] + 1, 0);
  const shares = stages.map((node, i) => [node.name, node.layers[1] - node.layers[0] + 1, "c" + i % 6]);
  return [element("h3", {}, "Layers"), sharesBar(shares, total, (n) => `${n}`)];
};

const nodePart = (node) => {
  const [first, last] = node.layers || [0, 0];
  const layers = first === last ? `layer ${first}` : `layers ${first}\u2013${last}`;
  const place = node.layers ? `stage ${node.stage}, ${node.helper ? "experts of " : ""}${layers}` : "no layers yet";
  const bad = node.state === "failed" || node.state === "gone";
  const { limit, used } = node.memory;
  const part = element("section", { class: "node", "data-node": node.name },
    element("header", {}, element("span", {}, node.name),
      element("span", { class: "state " + (node.state === "ready" ? "good" : bad ? "bad" : "warn") }, node.state)),
    element("p", {}, `${place} \u00b7 ${node.device || node.backend}`));
  if (limit) part.append(element("div", { class: "bar" }, drawing(1000, [[0, Math.min(1000, 1000 * used / limit), "c0"]])),
    element("p", {}, `${bytesText(used)} of ${bytesText(limit)} memory`));
  if (node.state === "loading" && node.load.total)
    part.append(element("p", {}, `loading, ${percent(node.load.done / node.load.total)} of ${bytesText(node.load.total)}`));
  else part.append(element("p", {}, `busy ${percent(node.busy)}, ${node.sequences} sequences` +
    (node.rtt_us ? `, ${timeText(node.rtt_us)} away` : "")));
  return part;
};

const linksPart = (links) => {
  if (!links.length) return [];
  const table = element("table", {}, element("tr", {}, element("th", {}, "link"), element("th", {}, "round trip"),
    element("th", {}, "per second")));
  for (const link of links)
    table.append(element("tr", {}, element("td", {}, `${link.from} \u2192 ${link.to}`),
      element("td", {}, link.rtt_us ? timeText(link.rtt_us) : "\u2013"),
      element("td", {}, link.bytes_per_s ? bytesText(link.bytes_per_s) : "\u2013")));
  return [element("h3", {}, "Links"), element("div", { class: "table" }, table)];
};

const TIMES = [["compute", "compute_us"], ["wire", "wire_us"], ["queue", "queue_us"], ["hold", "hold_us"],
  ["wait", "wait_us"], ["sampling", "sample_us"]];

// Of the tokens since the last look, or of all when there were none.
let lastTime = null;
const timePart = (time) => {
  const since = lastTime && time.tokens > lastTime.tokens ? lastTime : null;
  lastTime = time;
  const amount = (key) => Math.max(0, time[key] - (since ? since[key] : 0));
  const shares = TIMES.map(([name, key], i) => [name, amount(key), "c" + i]);
  const parts = shares.reduce((sum, share) => sum + share[1], 0), total = Math.max(parts, amount("wall_us"));
  const tokens = amount("tokens");
  if (!tokens || !total) return [];
  if (total > parts * 1.01) shares.push(["other", total - parts, "cx"]);
  return [element("h3", {}, `Time of a token: ${timeText(total / tokens)}`),
    sharesBar(shares, total, (us) => percent(us / total))];
};

const showCluster = (status) => {
  const state = $("cluster-state");
  state.className = "state " + (status.state === "serving" ? "good" : "warn");
  state.textContent = status.why ? `${status.state}: ${status.why}` : status.state;
  const nodes = [...status.nodes].sort((a, b) => (a.stage ?? 1e9) - (b.stage ?? 1e9) || a.helper - b.helper);
  $("cluster-body").replaceChildren(factsPart(status), ...timePart(status.time), ...stagesPart(nodes),
    element("h3", {}, nodes.length === 1 ? "1 machine" : `${nodes.length} machines`), ...nodes.map(nodePart),
    ...linksPart(status.links));
};

const toggleCluster = () => {
  const shown = $("cluster").hidden;
  $("cluster").hidden = !shown;
  $("toggle-cluster").setAttribute("aria-expanded", String(shown));
  if (shown) pollCluster();
};

// ---- start ----

$("send").addEventListener("click", send);
$("stop").addEventListener("click", () => { if (running) running.abort(); $("prompt").focus(); });
$("new-chat").addEventListener("click", newChat);
$("prompt").addEventListener("input", grow);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !$("settings").open) running.abort();
});
$("open-settings").addEventListener("click", () => openSettings(""));
$("settings-cancel").addEventListener("click", () => $("settings").close());
$("settings-save").addEventListener("click", saveSettings);
$("settings").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.tagName === "INPUT") { event.preventDefault(); saveSettings(); }
});
$("toggle-cluster").addEventListener("click", toggleCluster);
document.addEventListener("visibilitychange", () => pollCluster());
loadModel();
if (matchMedia("(min-width: 70rem)").matches) toggleCluster();
