// OpenAI's own client for Node. Prints claim -> "ok" or what went wrong, as tests/clients/claims.py does.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const { URL: baseURL, KEY, LIMITED, CLIENTS } = process.env;
const { default: OpenAI } = createRequire(`${CLIENTS}/node/`)("openai");
const model = "helpdesk";
const ANSWER = "Lyon opens at 9 a.m. on weekdays. [1]";
const object = (properties) => ({ type: "object", properties, required: Object.keys(properties), additionalProperties: false });
const schema = object({ opens: { type: "string" } });
const tools = [{ type: "function", function: { name: "weather", parameters: object({ city: { type: "string" } }) } }];
const user = (content) => [{ role: "user", content }];
const asking = (apiKey = KEY) => new OpenAI({ baseURL, apiKey, maxRetries: 0 }).chat.completions;
const ask = (content, more = {}) => asking().create({ model, messages: user(content), ...more });

const claims = {
  async plain() {
    const reply = await ask("When does Lyon open?", { temperature: 0 });
    assert.equal(reply.choices[0].message.content, ANSWER);
    assert.equal(reply.usage.total_tokens, 45);
    assert.equal(reply.citations[0].document, "a.md");
    assert.ok(reply._request_id);
  },
  async streamed_with_usage() {
    let text = "", usage;
    for await (const chunk of await ask("When?", { stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, ANSWER);
    assert.equal(usage.completion_tokens, 3);
  },
  async stream_helper() {
    assert.equal(await asking().stream({ model, messages: user("When?") }).finalContent(), ANSWER);
  },
  async wrong_model() {
    await assert.rejects(asking().create({ model: "nobody", messages: user("?") }), (error) =>
      error instanceof OpenAI.NotFoundError && error.code === "model_not_found" && Boolean(error.requestID));
  },
  async rate_limit() {
    const limited = () => asking(LIMITED).create({ model, messages: user("When?") });
    const { response } = await limited().withResponse();
    assert.equal(response.headers.get("x-ratelimit-limit-requests"), "1");
    await assert.rejects(limited(), (error) =>
      error instanceof OpenAI.RateLimitError && Number(error.headers.get("retry-after")) > 0);
  },
  async schema() {
    const wanted = { type: "json_schema", json_schema: { name: "opening", schema, strict: true } };
    const reply = await asking().parse({ model, messages: user("When?"), response_format: wanted });
    assert.deepEqual(JSON.parse(reply.choices[0].message.content), { opens: "9 a.m." });
  },
  async many_turns() {
    const messages = [...user("One?"), { role: "assistant", content: "1" }, ...user("How many turns?")];
    const reply = await asking().create({ model, messages });
    assert.equal(reply.choices[0].message.content, "3 turns");
  },
  async tools() {
    const messages = user("Does it rain in Lyon?");
    const { message } = (await asking().create({ model, messages, tools })).choices[0];
    assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { city: "Lyon" });
    messages.push(message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: "rain" });
    const reply = await asking().create({ model, messages, tools });
    assert.equal(reply.choices[0].message.content, "It does: rain");
  },
  async streamed_tools() {
    const { message } = (await asking().stream({ model, messages: user("Rain?"), tools }).finalChatCompletion()).choices[0];
    assert.equal(message.tool_calls[0].function.name, "weather");
  },
  async abort() {
    const stream = await ask("Slowly", { stream: true });
    for await (const _ of stream) break;
    stream.controller.abort();
  },
};

const found = {};
for (const [name, claim] of Object.entries(claims)) {
  try {
    await claim();
    found[name] = "ok";
  } catch (error) {
    found[name] = String(error.stack).slice(0, 2000);
  }
}
console.log(JSON.stringify(found));
process.exit(0);
