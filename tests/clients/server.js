// What the client tests share: addresses of the scripted servers (tests/integration/clients.sh starts them) and small
// helpers. OPEN_URL takes everybody; SMALL_URL wants SMALL_KEY, knows its own model's name only, computes one request at
// a time and lets one more wait.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

export const { OPEN_URL, SMALL_URL, SMALL_KEY } = process.env;
export const MODEL = "scripted";

// Requests that a server computes or holds in its queue, as its status tells.
const busy = async (url) => {
  const response = await fetch(url + "/v1/status", { headers: { authorization: `Bearer ${SMALL_KEY}` } });
  const { requests } = await response.json();
  return requests.active + requests.queued;
};

export const busyWith = async (url, n, limit = 5000) => {
  const start = Date.now();
  let now;
  while ((now = await busy(url)) !== n) {
    assert.ok(Date.now() - start < limit, `after ${limit} ms there are ${now} requests, not ${n}`);
    await sleep(10);
  }
  return Date.now() - start;
};

export const weather = {
  name: "get_weather",
  description: "Weather of a city",
  parameters: {
    type: "object",
    properties: { city: { type: "string" }, days: { type: "integer" } },
    required: ["city"],
  },
};

export const star = {
  type: "object",
  properties: { name: { type: "string" }, stars: { type: "integer" }, bright: { type: "boolean" } },
  required: ["name", "stars", "bright"],
  additionalProperties: false,
};

export const collect = async (stream) => {
  const all = [];
  for await (const item of stream) all.push(item);
  return all;
};
