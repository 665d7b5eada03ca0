// The `openai` package against our endpoint: chat, responses, completions.
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import OpenAI from "openai";
import { MODEL, OPEN_URL, SMALL_KEY, SMALL_URL, busyWith, collect, star, weather } from "./server.js";

const client = new OpenAI({ baseURL: OPEN_URL + "/v1", apiKey: "none", maxRetries: 0 });
const small = (options) => new OpenAI({ baseURL: SMALL_URL + "/v1", apiKey: SMALL_KEY, maxRetries: 0, ...options });
const user = (content) => [{ role: "user", content }];
const ask = (content, more = {}, who = client) =>
  who.chat.completions.create({ model: MODEL, messages: user(content), ...more });
const tools = [{ type: "function", function: weather }];
const HELLO = "Hello there, stargazer: 昴 🌌!";

test("openai: models are listed, one is found, an unknown one is a NotFoundError", async () => {
  const list = await client.models.list();
  assert.deepEqual(list.data.map((model) => [model.id, model.object]), [[MODEL, "model"]]);
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
  await assert.rejects(client.models.retrieve("no/such model"), OpenAI.NotFoundError);
});

test("openai: an answer has content, reasoning, a reason to end and figures that add up", async () => {
  const answer = await ask("say hello");
  const [choice] = answer.choices;
  assert.equal(choice.message.content, HELLO);
  assert.equal(choice.message.reasoning_content, "Greetings are due.");
  assert.equal(choice.message.role, "assistant");
  assert.equal(choice.message.refusal, null);
  assert.equal(choice.message.tool_calls, undefined);
  assert.equal(choice.finish_reason, "stop");
  assert.match(answer.id, /^chatcmpl-/);
  assert.match(answer._request_id, /^req_/);
  const { usage } = answer;
  assert.equal(usage.prompt_tokens + usage.completion_tokens, usage.total_tokens);
  assert.equal(usage.prompt_cache_hit_tokens + usage.prompt_cache_miss_tokens, usage.prompt_tokens);
  assert.ok(usage.completion_tokens_details.reasoning_tokens > 0);
  assert.ok(usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens);
});

test("openai: a stream joined is the answer at once, with its figures in the last chunk", async () => {
  const whole = await ask("say hello");
  const chunks = await collect(await ask("say hello", { stream: true, stream_options: { include_usage: true } }));
  const joined = (field) => chunks.map((chunk) => chunk.choices[0]?.delta[field] || "").join("");
  assert.equal(joined("content"), whole.choices[0].message.content);
  assert.equal(joined("reasoning_content"), whole.choices[0].message.reasoning_content);
  assert.deepEqual(chunks.map((chunk) => chunk.choices[0]?.finish_reason).filter(Boolean), ["stop"]);
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.equal(chunks.at(-1).usage.completion_tokens, whole.usage.completion_tokens);
  assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
  assert.ok(chunks.filter((chunk) => chunk.choices[0]?.delta.content).length > 3, "it did not come in pieces");
});

test("openai: thinking can be switched off in three ways", async () => {
  for (const off of [{ thinking: { type: "disabled" } }, { reasoning_effort: "none" },
    { chat_template_kwargs: { thinking: false } }]) {
    const { message } = (await ask("say hello", off)).choices[0];
    assert.equal(message.content, HELLO);
    assert.equal(message.reasoning_content, undefined);
  }
});

test("openai: runTools calls our function and comes back with the answer", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({ model: MODEL, messages: user("weather in Rome?"), tools: [
    { type: "function", function: { ...weather, parse: JSON.parse,
      function: (input) => { asked.push(input); return "21 degrees"; } } }] });
  assert.equal(await runner.finalContent(), "It is 21 degrees in Rome.");
  assert.deepEqual(asked, [{ city: "Rome \"centro\"", days: 2 }]);
});

test("openai: runTools with a stream does the same", async () => {
  const runner = client.chat.completions.runTools({ model: MODEL, stream: true, messages: user("weather in Rome?"), tools: [
    { type: "function", function: { ...weather, parse: JSON.parse, function: () => "21 degrees" } }] });
  assert.equal(await runner.finalContent(), "It is 21 degrees in Rome.");
});

test("openai: two calls come as two, whole and streamed", async () => {
  const whole = await ask("Rome and Oslo?", { tools });
  const streamed = await client.chat.completions.stream({ model: MODEL, messages: user("Rome and Oslo?"), tools })
    .finalChatCompletion();
  for (const { choices: [choice] } of [whole, streamed]) {
    assert.equal(choice.finish_reason, "tool_calls");
    assert.deepEqual(choice.message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]),
      [["get_weather", { city: "Rome" }], ["get_weather", { city: "Oslo", days: 1 }]]);
    assert.equal(new Set(choice.message.tool_calls.map((call) => call.id)).size, 2);
  }
  assert.equal(whole.choices[0].message.content, null);
  const calls = whole.choices[0].message.tool_calls;
  const last = await ask("", { tools, messages: [...user("Rome and Oslo?"), whole.choices[0].message,
    { role: "tool", tool_call_id: calls[0].id, content: "21 degrees" },
    { role: "tool", tool_call_id: calls[1].id, content: "4 degrees" }] });
  assert.equal(last.choices[0].message.content, "Rome is warmer than Oslo.");
});

test("openai: the second step of a conversation with calls reuses the first", async () => {
  const first = await ask("weather in Rome?", { tools });
  const second = await ask("", { tools, messages: [...user("weather in Rome?"), first.choices[0].message,
    { role: "tool", tool_call_id: first.choices[0].message.tool_calls[0].id, content: "21 degrees" }] });
  assert.equal(second.choices[0].message.content, "It is 21 degrees in Rome.");
  assert.ok(second.usage.prompt_tokens > first.usage.prompt_tokens);
  assert.ok(second.usage.prompt_tokens_details.cached_tokens <= second.usage.prompt_tokens);
});

test("openai: tool_choice none, required and by name are kept", async () => {
  const none = await ask("say hello", { tools, tool_choice: "none" });
  assert.equal(none.choices[0].message.content, HELLO);
  for (const tool_choice of ["required", { type: "function", function: { name: "get_weather" } }]) {
    const { choices: [choice] } = await ask("weather in Rome?", { tools, tool_choice, thinking: { type: "disabled" },
      max_tokens: 400 });
    assert.equal(choice.message.tool_calls?.[0].function.name, "get_weather");
  }
  await assert.rejects(ask("x", { tool_choice: "required" }), OpenAI.BadRequestError);
});

test("openai: a call that does not hold together is shown as text", async () => {
  const { choices: [choice] } = await ask("a broken call", { tools });
  assert.equal(choice.finish_reason, "stop");
  assert.match(choice.message.content, /^Look: <｜DSML｜tool_calls>/);
  assert.equal(choice.message.tool_calls, undefined);
});

test("openai: a schema is kept, with parse", async () => {
  const answer = await client.chat.completions.parse({ model: MODEL, messages: user("as JSON"),
    response_format: { type: "json_schema", json_schema: { name: "star", schema: star, strict: true } } });
  const value = JSON.parse(answer.choices[0].message.content);
  assert.deepEqual(value, { name: "Maia", stars: 7, bright: true });
});

test("openai: a schema is kept when the model has other plans", async () => {
  const { choices: [{ message }] } = await ask("say hello", { max_tokens: 2000, response_format: { type: "json_schema",
    json_schema: { name: "star", strict: true, schema: { type: "object", properties: { ok: { type: "boolean" } },
      required: ["ok"], additionalProperties: false } } } });
  assert.equal(typeof JSON.parse(message.content).ok, "boolean");
});

test("openai: stops, limits, several choices and log-probabilities", async () => {
  const stopped = await ask("stop at the moon", { stop: ["Moon"] });
  assert.equal(stopped.choices[0].message.content, "Sun, ");
  assert.equal(stopped.choices[0].message.reasoning_content, "Moon in reasoning.");
  assert.equal(stopped.choices[0].finish_reason, "stop");
  const cut = await ask("count slowly", { max_tokens: 5, thinking: { type: "disabled" } });
  assert.equal(cut.choices[0].finish_reason, "length");
  assert.equal(cut.usage.completion_tokens, 5);
  const two = await ask("say hello", { n: 2 });
  assert.deepEqual(two.choices.map((choice) => [choice.index, choice.message.content]), [[0, HELLO], [1, HELLO]]);
  const logged = await ask("say hello", { logprobs: true, top_logprobs: 3 });
  const { content } = logged.choices[0].logprobs;
  assert.equal(Buffer.from(content.flatMap((token) => token.bytes)).toString(), HELLO);
  assert.ok(content.every((token) => token.top_logprobs.length === 3 && token.logprob <= 0));
});

test("openai: wrong requests are typed errors that say what is wrong", async () => {
  await assert.rejects(ask("x", { temperature: 7 }), (error) => error instanceof OpenAI.BadRequestError &&
    error.type === "invalid_request_error" && /temperature/.test(error.message));
  await assert.rejects(ask("x", { messages: [] }), OpenAI.BadRequestError);
  await assert.rejects(client.post("/nowhere", { body: {} }), OpenAI.NotFoundError);
  await assert.rejects(ask("x ".repeat(20000)), (error) => error instanceof OpenAI.BadRequestError &&
    error.code === "context_length_exceeded" && error.param === "messages" && /\d+/.test(error.message));
});

test("openai: keys and names of models are checked where that is wanted", async () => {
  await assert.rejects(small({ apiKey: "wrong" }).models.list(), (error) =>
    error instanceof OpenAI.AuthenticationError && error.code === "invalid_api_key");
  await assert.rejects(ask("say hello", { model: "gpt-4o" }, small()), (error) =>
    error instanceof OpenAI.NotFoundError && error.code === "model_not_found");
  assert.equal((await ask("say hello", {}, small())).choices[0].message.content, HELLO);
  assert.equal((await ask("say hello", { model: "gpt-4o" })).model, MODEL);
});

test("openai: abort in the middle of a stream frees the place at once", async () => {
  const stream = await ask("count slowly", { stream: true, thinking: { type: "disabled" } });
  let n = 0;
  for await (const chunk of stream) if (chunk.choices[0]?.delta.content && ++n === 5) break;       // the SDK aborts
  assert.ok(await busyWith(OPEN_URL, 0, 1000) < 500);
  const controller = new AbortController();
  const other = client.chat.completions.create({ model: MODEL, messages: user("count slowly"),
    thinking: { type: "disabled" } }, { signal: controller.signal });
  await busyWith(OPEN_URL, 1);
  controller.abort();
  await assert.rejects(other, OpenAI.APIUserAbortError);
  assert.ok(await busyWith(OPEN_URL, 0, 1000) < 500);
});

test("openai: abort while the prompt is computed frees the place as well", async () => {
  const controller = new AbortController();
  const answer = client.chat.completions.create({ model: MODEL, stream: true,
    messages: user("word ".repeat(1200) + "read slowly") }, { signal: controller.signal });
  const reading = answer.then(collect);
  await busyWith(OPEN_URL, 1);
  await sleep(100);
  controller.abort();
  await reading.catch((error) => assert.ok(error instanceof OpenAI.APIUserAbortError, String(error)));
  assert.ok(await busyWith(OPEN_URL, 0, 2000) < 1500);
});

test("openai: a full queue is a RateLimitError with a time to wait, and retries get through", async () => {
  const running = [await ask("count slowly", { stream: true, thinking: { type: "disabled" } }, small())];
  await busyWith(SMALL_URL, 1);
  running.push(await ask("count slowly", { stream: true, thinking: { type: "disabled" } }, small()));
  await busyWith(SMALL_URL, 2);
  const refused = await ask("say hello", {}, small()).then(() => null, (error) => error);
  assert.ok(refused instanceof OpenAI.RateLimitError, String(refused));
  const wait = Number(refused.headers.get("retry-after"));
  assert.ok(wait >= 1 && wait <= 60, `Retry-After: ${wait}`);
  const patient = ask("say hello", {}, small({ maxRetries: 5 }));
  await sleep(200);
  for (const stream of running) stream.controller.abort();
  assert.equal((await patient).choices[0].message.content, HELLO);
  await busyWith(SMALL_URL, 0);
});

test("openai: responses answer, with reasoning as an item of its own", async () => {
  const response = await client.responses.create({ model: MODEL, instructions: "be kind", input: "say hello",
    include: ["reasoning.encrypted_content"] });
  assert.equal(response.output_text, HELLO);
  assert.equal(response.status, "completed");
  assert.deepEqual(response.output.map((item) => item.type), ["reasoning", "message"]);
  assert.equal(response.output[0].content[0].text, "Greetings are due.");
  assert.ok(response.output[0].encrypted_content.length > 10);
  assert.equal(response.usage.input_tokens + response.usage.output_tokens, response.usage.total_tokens);
  const next = await client.responses.create({ model: MODEL, input: [{ role: "user", content: "say hello" },
    ...response.output, { role: "user", content: "and again" }] });
  assert.equal(next.output_text, "Hello again.");
});

test("openai: a stream of a response ends in the response itself", async () => {
  const events = await collect(await client.responses.create({ model: MODEL, input: "say hello", stream: true }));
  assert.equal(events[0].type, "response.created");
  assert.deepEqual(events.map((event) => event.sequence_number), events.map((_, i) => i));
  assert.equal(events.at(-1).type, "response.completed");
  const deltas = events.filter((event) => event.type === "response.output_text.delta");
  assert.equal(deltas.map((event) => event.delta).join(""), HELLO);
  const final = await client.responses.stream({ model: MODEL, input: "say hello" }).finalResponse();
  assert.equal(final.output_text, HELLO);
  const cut = await client.responses.create({ model: MODEL, input: "count slowly", max_output_tokens: 16,
    reasoning: { effort: "none" } });
  assert.equal(cut.status, "incomplete");
  assert.equal(cut.incomplete_details.reason, "max_output_tokens");
});

test("openai: functions of a response make the round trip", async () => {
  const functions = [{ type: "function", ...weather, strict: false }];
  const first = await client.responses.create({ model: MODEL, input: "weather in Rome?", tools: functions, store: false });
  const call = first.output.find((item) => item.type === "function_call");
  assert.deepEqual(JSON.parse(call.arguments), { city: "Rome \"centro\"", days: 2 });
  const second = await client.responses.create({ model: MODEL, tools: functions, store: false, input: [
    { role: "user", content: "weather in Rome?" }, ...first.output,
    { type: "function_call_output", call_id: call.call_id, output: "21 degrees" }] });
  assert.equal(second.output_text, "It is 21 degrees in Rome.");
  const events = await collect(await client.responses.create({ model: MODEL, input: "weather in Rome?", tools: functions,
    stream: true }));
  const pieces = events.filter((event) => event.type === "response.function_call_arguments.delta");
  assert.deepEqual(JSON.parse(pieces.map((event) => event.delta).join("")), { city: "Rome \"centro\"", days: 2 });
});

test("openai: a response can have a format", async () => {
  const response = await client.responses.create({ model: MODEL, input: "as JSON",
    text: { format: { type: "json_schema", name: "star", schema: star, strict: true } } });
  assert.deepEqual(JSON.parse(response.output_text), { name: "Maia", stars: 7, bright: true });
});

test("openai: what needs a store is refused with a reason", async () => {
  await assert.rejects(client.responses.create({ model: MODEL, input: "x", previous_response_id: "resp_1" }), (error) =>
    error instanceof OpenAI.BadRequestError && /input/.test(error.message));
});

test("openai: raw completions go on with a text", async () => {
  const answer = await client.completions.create({ model: MODEL, prompt: "say hello", max_tokens: 50 });
  assert.equal(answer.object, "text_completion");
  assert.ok(answer.choices[0].text.length > 0);
  const chunks = await collect(await client.completions.create({ model: MODEL, prompt: "say hello", max_tokens: 50,
    stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.text || "").join(""), answer.choices[0].text);
});
