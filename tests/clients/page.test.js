// The web page in a real browser, before a real coordinator with three machines (tests/integration/page.sh starts them).
//
// PAGE_URL is the server, LOCKED_URL one that wants LOCKED_KEY, CHROMIUM the browser, SHOTS a folder for pictures.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";

const { PAGE_URL, LOCKED_URL, LOCKED_KEY, CHROMIUM, SHOTS } = process.env;
const SECONDS = 20_000;
let browser;

before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu"] });
});
after(() => browser?.close());

// A fresh page without memory. What the browser complains about, and what it asks others for, is kept.
const open = async (settings = {}, options = {}, url = PAGE_URL) => {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(SECONDS);
  page.problems = [];
  page.on("console", (message) => { if (message.type() === "error") page.problems.push(message.text()); });
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) page.problems.push("asked " + request.url());
  });
  await context.addInitScript((values) => {
    for (const [key, value] of Object.entries(values)) localStorage.setItem("pleiades." + key, value);
  }, settings);
  await page.goto(url);
  return page;
};

const close = async (page) => {
  await page.context().close();
  assert.deepEqual(page.problems, []);
};

const say = async (page, text) => {
  await page.fill("#prompt", text);
  await page.press("#prompt", "Enter");
};
const finished = (page) => page.waitForSelector(".answer:last-of-type .tail:not([hidden])");
const status = async () => (await fetch(PAGE_URL + "/v1/status")).json();

const idle = async () => {
  for (const end = Date.now() + SECONDS; Date.now() < end; await new Promise((done) => setTimeout(done, 50))) {
    const { requests } = await status();
    if (requests.active + requests.queued === 0) return true;
  }
  return false;
};

// Answers the next requests itself: events as the endpoint would send them.
const scripted = async (page, ...events) => {
  const body = [...events, "[DONE]"].map((event) =>
    `data: ${typeof event === "string" ? event : JSON.stringify(event)}\n\n`).join("");
  await page.route("**/v1/chat/completions", (route) => route.fulfill({ contentType: "text/event-stream", body }));
};
const delta = (fields, finish = null) => ({ choices: [{ index: 0, delta: fields, finish_reason: finish }] });

test("the page loads, names the model and complains about nothing", async () => {
  const page = await open();
  await page.waitForFunction(() => document.getElementById("model").textContent.includes("Synthetic"));
  assert.equal(await page.title(), "Pleiades");
  await close(page);
});

test("an answer streams in and its figures are told", async () => {
  const page = await open({ thinking: "off", tokens: "300" });
  const lengths = new Set();
  await say(page, "Which stars?");
  while (await page.isVisible("#stop")) {
    lengths.add(await page.evaluate(() => document.querySelector(".answer .text")?.textContent.length || 0));
    await page.waitForTimeout(5);
  }
  await finished(page);
  assert.ok(lengths.size >= 3, `the text had ${lengths.size} lengths while it came`);
  assert.equal(await page.textContent(".user"), "Which stars?");
  assert.match(await page.textContent("#figures"), /first token after .* tokens/);
  await close(page);
});

test("thinking is folded away until it is opened", async () => {
  const page = await open({ thinking: "on", tokens: "60" });
  await say(page, "Which stars?");
  await finished(page);
  assert.equal(await page.isVisible("details.thinking div"), false);
  assert.match(await page.textContent("details.thinking summary"), /^Thought for \d+ s$/);
  await page.click("details.thinking summary");
  assert.equal(await page.isVisible("details.thinking div"), true);
  assert.ok((await page.textContent("details.thinking div")).length > 20);
  await close(page);
});

test("Stop ends an answer, keeps it, and the machines stop as well", async () => {
  const page = await open({ thinking: "off" });
  await say(page, "Count without end");
  await page.waitForFunction(() => document.querySelector(".answer .text")?.textContent.length > 20);
  assert.equal(await page.isVisible("#send"), false);
  await page.click("#stop");
  await finished(page);
  assert.match(await page.textContent(".tail"), /stopped/);
  assert.ok((await page.textContent(".answer .text")).length > 20);
  assert.equal(await page.isVisible("#send"), true);
  assert.ok(await idle(), "the request was not cancelled");
  await close(page);
});

test("Escape stops, too, and the next question carries the conversation", async () => {
  const page = await open({ thinking: "off", system: "be brief" });
  await say(page, "one");
  await page.waitForFunction(() => document.querySelector(".answer .text")?.textContent.length > 5);
  await page.keyboard.press("Escape");
  await finished(page);
  const request = page.waitForRequest("**/v1/chat/completions");
  await say(page, "two");
  const { messages } = (await request).postDataJSON();
  assert.deepEqual(messages.map((message) => message.role), ["system", "user", "assistant", "user"]);
  assert.equal(messages[0].content, "be brief");
  await page.keyboard.press("Escape");
  await page.click("#new-chat");
  assert.equal(await page.isVisible("#empty"), true);
  const fresh = page.waitForRequest("**/v1/chat/completions");
  await say(page, "three");
  assert.equal((await fresh).postDataJSON().messages.length, 2);
  await page.keyboard.press("Escape");
  await close(page);
});

test("what the model writes is text, never markup that acts", async () => {
  const page = await open();
  const text = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>\n\n" +
    "[bad](javascript:document.title='owned') [good](https://example.org/a?b) **bold** `<b>code</b>`\n\n" +
    "| a | b |\n|---|---|\n| <i>1</i> | *2* |\n\n```html\n<h1>raw</h1>\n```\n\n- one\n- two\n  1. inner\n\n# Title";
  await scripted(page, delta({ reasoning_content: "<img src=y onerror=\"document.title='owned'\">" }),
    ...[...text].map((c) => delta({ content: c })), delta({}, "stop"));
  await say(page, "<b>me</b>");
  await finished(page);
  const seen = await page.evaluate(() => ({
    images: document.querySelectorAll("#log img, #log script, #log h1, #log i").length,
    links: [...document.querySelectorAll("#log a")].map((a) => a.href),
    bold: document.querySelector("#log strong").textContent,
    code: [...document.querySelectorAll("#log code")].map((code) => code.textContent),
    cells: [...document.querySelectorAll("#log td")].map((cell) => cell.textContent),
    items: [...document.querySelectorAll("#log li")].length,
    nested: document.querySelectorAll("#log li ol li").length,
    heading: document.querySelector("#log .answer h3").textContent,
    user: document.querySelector(".user").textContent,
    title: document.title,
  }));
  assert.deepEqual(seen, {
    images: 0, links: ["https://example.org/a?b"], bold: "bold", code: ["<b>code</b>", "<h1>raw</h1>"],
    cells: ["<i>1</i>", "2"], items: 3, nested: 1, heading: "Title", user: "<b>me</b>", title: "Pleiades",
  });
  await close(page);
});

test("errors of the server are shown in its words", async () => {
  const page = await open();
  await scripted(page, delta({ content: "half" }), { error: { message: "a machine was lost" } });
  await say(page, "x");
  await page.waitForSelector("#error:not([hidden])");
  assert.equal(await page.textContent("#error"), "a machine was lost");
  await page.unroute("**/v1/chat/completions");
  await page.route("**/v1/chat/completions", (route) => route.fulfill({ status: 429, headers: { "Retry-After": "7" },
    contentType: "application/json", body: JSON.stringify({ error: { message: "the queue is full" } }) }));
  await say(page, "y");
  await page.waitForFunction(() => document.getElementById("error").textContent.includes("(try again in 7 s)"));
  page.problems = page.problems.filter((text) => !text.includes("429"));      // the browser's own line
  await close(page);
});

test("a long prompt tells how far it is", async () => {
  const page = await open();
  await page.evaluate(() => {
    window.fetch = async () => new Response(new ReadableStream({ async start(controller) {
      const put = (text) => controller.enqueue(new TextEncoder().encode(text));
      put(": prefill 100/400\n");
      put("\n");
      await new Promise((done) => { window.goOn = done; });
      put('data: {"choices":[{"index":0,"delta":{"content":"read it"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n');
      controller.close();
    } }));
  });
  await say(page, "x");
  await page.waitForFunction(() => document.querySelector(".text")?.dataset.progress);
  const shown = () => page.evaluate(() => getComputedStyle(document.querySelector(".text"), "::after").content);
  assert.match(await shown(), /reading the prompt, 100 of 400 tokens/);
  await page.evaluate(() => window.goOn());
  await finished(page);
  assert.equal(await page.textContent(".answer .text"), "read it");
  assert.equal(await shown(), "none");
  await close(page);
});

test("Try again replaces the last answer", async () => {
  const page = await open();
  await scripted(page, delta({ content: "first" }, "stop"));
  await say(page, "x");
  await finished(page);
  await page.unroute("**/v1/chat/completions");
  await scripted(page, delta({ content: "second" }, "stop"));
  const request = page.waitForRequest("**/v1/chat/completions");
  await page.click(".again");
  assert.deepEqual((await request).postDataJSON().messages, [{ role: "user", content: "x" }]);
  await page.waitForFunction(() => document.querySelector(".answer .text")?.textContent === "second");
  assert.equal(await page.locator(".answer").count(), 1);
  await close(page);
});

test("the cluster shows three machines with their layers, memory and links", async () => {
  const page = await open({ thinking: "off", tokens: "50" });
  await say(page, "something to compute");
  await finished(page);
  if (!await page.isVisible("#cluster")) await page.click("#toggle-cluster");
  await page.waitForFunction(() => document.querySelectorAll("[data-node]").length === 3);
  await page.waitForFunction(() => document.getElementById("cluster-body").textContent.includes("Time of a token"));
  const text = await page.textContent("#cluster");
  assert.match(text, /serving/);
  assert.match(text, /3 machines/);
  assert.match(text, /stage 0, layers 0/);
  assert.match(text, /stage 2, layer 4/);
  assert.match(text, /tokens\/s/);
  assert.match(text, /of .* memory/);
  assert.match(text, /Links/);
  if (SHOTS) await page.screenshot({ path: `${SHOTS}/page.png` });
  await close(page);
});

test("a server with a key asks for it, and the key stays in the tab", async () => {
  const page = await open({}, {}, LOCKED_URL);
  await page.waitForSelector("#settings[open]");
  assert.equal(await page.evaluate(() => document.activeElement.id), "set-key");
  await page.keyboard.type(LOCKED_KEY);
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.getElementById("model").textContent.includes("Synthetic"));
  const kept = await page.evaluate(() => [sessionStorage["pleiades.key"], Object.values({ ...localStorage })]);
  assert.equal(kept[0], LOCKED_KEY);
  assert.ok(!kept[1].includes(LOCKED_KEY));
  page.problems = page.problems.filter((text) => !text.includes("401"));
  await close(page);
});

test("settings are kept, checked and sent", async () => {
  const page = await open();
  await page.click("#open-settings");
  await page.fill("#set-temperature", "7");
  await page.click("#settings-save");
  assert.equal(await page.isVisible("#settings"), true, "a temperature of 7 was taken");
  await page.fill("#set-temperature", "0.5");
  await page.fill("#set-tokens", "3");
  await page.selectOption("#set-thinking", "max");
  await page.click("#settings-save");
  await page.reload();
  const request = page.waitForRequest("**/v1/chat/completions");
  await say(page, "x");
  const body = (await request).postDataJSON();
  assert.equal(body.temperature, 0.5);
  assert.equal(body.max_tokens, 3);
  assert.deepEqual(body.thinking, { type: "enabled" });
  assert.equal(body.reasoning_effort, "max");
  await finished(page);
  assert.match(await page.textContent(".tail"), /limit of tokens/);
  await close(page);
});

test("everything can be reached with keys and has a name", async () => {
  const page = await open();
  const nameless = await page.evaluate(() => [...document.querySelectorAll("button, input, textarea, select")]
    .filter((node) => !(node.labels?.length || node.textContent.trim())).map((node) => node.outerHTML));
  assert.deepEqual(nameless, []);
  const reached = new Set();
  for (let i = 0; i < 12; i++) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => document.activeElement.id));
  }
  for (const id of ["prompt", "send", "new-chat", "toggle-cluster", "open-settings", "log"])
    assert.ok(reached.has(id), `Tab does not reach ${id}`);
  await page.fill("#prompt", "a");
  await page.press("#prompt", "Shift+Enter");
  assert.equal(await page.inputValue("#prompt"), "a\n");
  await close(page);
});

test("it fits a phone, dark and light", async () => {
  for (const colorScheme of ["dark", "light"]) {
    const page = await open({ thinking: "off", tokens: "80" }, { viewport: { width: 360, height: 740 }, hasTouch: true,
      isMobile: true, colorScheme });
    await say(page, "a_very_long_word_".repeat(20));
    await finished(page);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(wide <= 0, `${wide} pixels too wide`);
    const box = await page.locator("#send").boundingBox();
    assert.ok(box.y + box.height <= 740 && box.height >= 40, "the button is out of reach");
    if (SHOTS && colorScheme === "dark") await page.screenshot({ path: `${SHOTS}/page-phone.png` });
    await page.click("#toggle-cluster");
    await page.waitForSelector("[data-node]");
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth) <= 0, "the cluster is too wide");
    await close(page);
  }
});
