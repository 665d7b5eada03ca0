// The `@anthropic-ai/sdk` package against our endpoint.
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { MODEL, OPEN_URL, SMALL_KEY, SMALL_URL, busyWith, collect, weather } from "./server.js";

const client = new Anthropic({ baseURL: OPEN_URL, apiKey: "none", maxRetries: 0 });
const small = (options) => new Anthropic({ baseURL: SMALL_URL, apiKey: SMALL_KEY, maxRetries: 0, ...options });
const user = (content) => [{ role: "user", content }];
const ask = (content, more = {}, who = client) =>
  who.messages.create({ model: "claude-x", max_tokens: 2000, messages: user(content), ...more });
const tools = [{ name: weather.name, description: weather.description, input_schema: weather.parameters }];
const HELLO = "Hello there, stargazer: 昴 🌌!";
const thinking = { type: "enabled", budget_tokens: 1024 };

test("anthropic: models are listed", async () => {
  const list = await client.models.list();
  assert.deepEqual(list.data.map((model) => [model.id, model.type]), [[MODEL, "model"]]);
});

test("anthropic: an answer has thinking with a signature, then text", async () => {
  const message = await ask("say hello", { thinking });
  assert.deepEqual(message.content.map((block) => block.type), ["thinking", "text"]);
  assert.equal(message.content[0].thinking, "Greetings are due.");
  assert.ok(message.content[0].signature.length > 0);
  assert.equal(message.content[1].text, HELLO);
  assert.equal(message.stop_reason, "end_turn");
  assert.equal(message.stop_sequence, null);
  assert.equal(message.model, "claude-x");
  assert.match(message.id, /^msg_/);
  assert.ok(message.usage.output_tokens > 0);
});

test("anthropic: thinking can be off", async () => {
  const message = await ask("say hello", { thinking: { type: "disabled" } });
  assert.deepEqual(message.content.map((block) => [block.type, block.text]), [["text", HELLO]]);
});

test("anthropic: a stream joined is the answer at once", async () => {
  const whole = await ask("say hello", { thinking });
  const stream = client.messages.stream({ model: "claude-x", max_tokens: 2000, thinking, messages: user("say hello") });
  const kinds = [];
  for await (const event of stream) if (kinds.at(-1) !== event.type) kinds.push(event.type);
  const final = await stream.finalMessage();
  const texts = ({ content }) => content.map((block) => block.thinking || block.text);
  assert.deepEqual(texts(final), texts(whole));
  assert.deepEqual(kinds, ["message_start", "content_block_start", "content_block_delta", "content_block_stop",
    "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop"]);
  assert.equal(final.usage.output_tokens, whole.usage.output_tokens);
});

test("anthropic: a tool makes the round trip, its thinking included", async () => {
  for (const stream of [false, true]) {
    const body = { model: "claude-x", max_tokens: 2000, thinking, tools, messages: user("weather in Rome?") };
    const first = stream ? await client.messages.stream(body).finalMessage() : await client.messages.create(body);
    assert.deepEqual(first.content.map((block) => block.type), ["thinking", "text", "tool_use"]);
    assert.equal(first.stop_reason, "tool_use");
    assert.deepEqual(first.content[2].input, { city: "Rome \"centro\"", days: 2 });
    const second = await client.messages.create({ ...body, messages: [...user("weather in Rome?"),
      { role: "assistant", content: first.content },
      { role: "user", content: [{ type: "tool_result", tool_use_id: first.content[2].id, content: "21 degrees" }] }] });
    assert.equal(second.content.at(-1).text, "It is 21 degrees in Rome.");
  }
});

test("anthropic: two calls are two blocks, and both results are read", async () => {
  const first = await ask("Rome and Oslo?", { tools });
  const calls = first.content.filter((block) => block.type === "tool_use");
  assert.deepEqual(calls.map((call) => call.input), [{ city: "Rome" }, { city: "Oslo", days: 1 }]);
  const second = await ask("", { tools, messages: [...user("Rome and Oslo?"), { role: "assistant", content: first.content },
    { role: "user", content: [
      { type: "tool_result", tool_use_id: calls[0].id, content: [{ type: "text", text: "21 degrees" }] },
      { type: "tool_result", tool_use_id: calls[1].id, content: "4 degrees" }] }] });
  assert.equal(second.content.at(-1).text, "Rome is warmer than Oslo.");
});

test("anthropic: tool_choice any forces a call", async () => {
  const message = await ask("weather in Rome?", { tools, tool_choice: { type: "any" }, thinking: { type: "disabled" } });
  assert.equal(message.stop_reason, "tool_use");
  assert.equal(message.content.find((block) => block.type === "tool_use").name, "get_weather");
});

test("anthropic: count_tokens is what the answer counts", async () => {
  const body = { model: "claude-x", tools, system: "be kind", messages: user("weather in Rome?") };
  const { input_tokens } = await client.messages.countTokens(body);
  const { usage } = await client.messages.create({ ...body, max_tokens: 2000 });
  assert.equal(usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens, input_tokens);
});

test("anthropic: stop sequences and limits end an answer", async () => {
  const stopped = await ask("stop at the moon", { stop_sequences: ["Moon"], thinking });
  assert.equal(stopped.content.at(-1).text, "Sun, ");
  assert.equal(stopped.stop_reason, "stop_sequence");
  assert.equal(stopped.stop_sequence, "Moon");
  const cut = await ask("count slowly", { max_tokens: 5, thinking: { type: "disabled" } });
  assert.equal(cut.stop_reason, "max_tokens");
  assert.equal(cut.usage.output_tokens, 5);
});

test("anthropic: wrong requests are typed errors", async () => {
  await assert.rejects(ask("x", { messages: [] }), (error) => error instanceof Anthropic.BadRequestError &&
    error.error.type === "error" && error.error.error.type === "invalid_request_error");
  await assert.rejects(ask("x ".repeat(20000)), (error) => error instanceof Anthropic.BadRequestError &&
    error.error.error.message.startsWith("prompt is too long"));
  await assert.rejects(small({ apiKey: "wrong" }).messages.create({ model: MODEL, max_tokens: 5, messages: user("x") }),
    (error) => error instanceof Anthropic.AuthenticationError && error.error.error.type === "authentication_error" &&
      /^req_/.test(error.requestID));
  await assert.rejects(ask("x", {}, small()), (error) => error instanceof Anthropic.NotFoundError &&
    error.error.error.type === "not_found_error");
});

test("anthropic: both kinds of keys open", async () => {
  for (const key of [{ apiKey: SMALL_KEY }, { apiKey: null, authToken: SMALL_KEY }]) {
    const message = await ask("say hello", { model: MODEL }, small(key));
    assert.equal(message.content.at(-1).text, HELLO);
  }
});

test("anthropic: abort in the middle of a stream frees the place at once", async () => {
  const stream = client.messages.stream({ model: "claude-x", max_tokens: 2000, thinking: { type: "disabled" },
    messages: user("count slowly") });
  await new Promise((done) => stream.once("text", done));
  stream.abort();
  await assert.rejects(stream.finalMessage(), Anthropic.APIUserAbortError);
  assert.ok(await busyWith(OPEN_URL, 0, 1000) < 500);
});

test("anthropic: a full queue is a RateLimitError, and retries get through", async () => {
  const slow = { model: MODEL, max_tokens: 2000, thinking: { type: "disabled" }, messages: user("count slowly"),
    stream: true };
  const running = [await small().messages.create(slow)];
  await busyWith(SMALL_URL, 1);
  running.push(await small().messages.create(slow));
  await busyWith(SMALL_URL, 2);
  const refused = await ask("say hello", { model: MODEL }, small()).then(() => null, (error) => error);
  assert.ok(refused instanceof Anthropic.RateLimitError, String(refused));
  assert.equal(refused.error.error.type, "rate_limit_error");
  const patient = ask("say hello", { model: MODEL }, small({ maxRetries: 5 }));
  for (const stream of running) stream.controller.abort();
  assert.equal((await patient).content.at(-1).text, HELLO);
  await busyWith(SMALL_URL, 0);
});

test("anthropic: a stream of events has no gaps for a reader that takes them one by one", async () => {
  const events = await collect(await client.messages.create({ model: "claude-x", max_tokens: 2000, thinking, stream: true,
    messages: user("say hello") }));
  let open = null, next = 0;
  for (const event of events) {
    if (event.type === "content_block_start") {
      assert.equal(open, null);
      assert.equal(event.index, next++);
      open = event.index;
    }
    if (event.type === "content_block_delta" || event.type === "content_block_stop") assert.equal(event.index, open);
    if (event.type === "content_block_stop") open = null;
  }
  assert.equal(events.at(-1).type, "message_stop");
});
