// The `ai` package with `@ai-sdk/openai-compatible`, as opencode uses them, against our endpoint.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { MODEL, OPEN_URL, SMALL_KEY, SMALL_URL, busyWith, collect, star, weather } from "./server.js";

const at = (url, apiKey) => createOpenAICompatible({ name: "pleiades", baseURL: url + "/v1", apiKey, includeUsage: true,
  supportsStructuredOutputs: true })(MODEL);
const model = at(OPEN_URL, "none");
const HELLO = "Hello there, stargazer: 昴 🌌!";
const tools = (asked) => ({
  get_weather: tool({ description: weather.description, inputSchema: jsonSchema(weather.parameters),
    execute: async (input) => { asked.push(input); return "21 degrees"; } }),
});

test("ai: text, reasoning and figures", async () => {
  const answer = await generateText({ model, prompt: "say hello" });
  assert.equal(answer.text, HELLO);
  assert.equal(answer.reasoningText, "Greetings are due.");
  assert.equal(answer.finishReason, "stop");
  assert.ok(answer.usage.inputTokens > 0 && answer.usage.outputTokens > 0);
});

test("ai: a stream has its parts in order", async () => {
  const result = streamText({ model, prompt: "say hello" });
  const parts = await collect(result.fullStream);
  const kinds = parts.map((part) => part.type).filter((kind, i, all) => kind !== all[i - 1]);
  assert.deepEqual(kinds, ["start", "start-step", "reasoning-start", "reasoning-delta", "reasoning-end", "text-start",
    "text-delta", "text-end", "finish-step", "finish"]);
  assert.equal(await result.text, HELLO);
  assert.ok((await result.usage).totalTokens > 0);
});

test("ai: tools run over several steps, whole and streamed", async () => {
  for (const run of [generateText, streamText]) {
    const asked = [];
    const result = await run({ model, prompt: "weather in Rome?", tools: tools(asked), stopWhen: stepCountIs(4) });
    assert.equal(await result.text, "It is 21 degrees in Rome.");
    assert.equal((await result.steps).length, 2);
    assert.deepEqual(asked, [{ city: "Rome \"centro\"", days: 2 }]);
  }
});

test("ai: an object by a schema", async () => {
  const { output } = await generateText({ model, prompt: "as JSON", output: Output.object({ schema: jsonSchema(star) }) });
  assert.deepEqual(output, { name: "Maia", stars: 7, bright: true });
});

test("ai: errors have their status, and only those that may pass are tried again", async () => {
  let tries = 0;
  const counted = createOpenAICompatible({ name: "pleiades", baseURL: SMALL_URL + "/v1", apiKey: "wrong",
    fetch: (...args) => { tries++; return fetch(...args); } })(MODEL);
  await assert.rejects(generateText({ model: counted, prompt: "x" }), (error) => APICallError.isInstance(error) &&
    error.statusCode === 401 && error.message.length > 0);
  assert.equal(tries, 1);
  await assert.rejects(generateText({ model, prompt: "x", temperature: 7, maxRetries: 0 }),
    (error) => error.statusCode === 400);
});

test("ai: abort in the middle of a stream frees the place at once", async () => {
  const controller = new AbortController();
  const result = streamText({ model, prompt: "count slowly", abortSignal: controller.signal, onError: () => {} });
  for await (const part of result.fullStream) {
    if (part.type === "reasoning-delta" || part.type === "text-delta") break;
  }
  controller.abort();
  assert.ok(await busyWith(OPEN_URL, 0, 1000) < 500);
});

test("ai: the key in a header opens", async () => {
  assert.equal((await generateText({ model: at(SMALL_URL, SMALL_KEY), prompt: "say hello" })).text, HELLO);
});
