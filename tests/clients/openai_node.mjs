// The npm package openai, by hand: npm install openai && node openai_node.mjs URL MODEL
import OpenAI from "openai";
import assert from "node:assert";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const fixed = { model, messages: [{ role: "user", content: "the quick brown fox" }], max_tokens: 12, temperature: 0 };

const whole = await client.chat.completions.create(fixed);
let text = "";
let usage = null;
for await (const chunk of await client.chat.completions.create({
  ...fixed,
  stream: true,
  stream_options: { include_usage: true },
})) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.deepEqual(usage.total_tokens, whole.usage.total_tokens);
const plain = await client.completions.create({ model, prompt: ["a", "b"], n: 2, max_tokens: 3 });
assert.deepEqual(plain.choices.map((c) => c.index), [0, 1, 2, 3]);
await assert.rejects(client.completions.create({ model, prompt: "a", suffix: "b" }), { status: 400, param: "suffix" });
console.log("openai for node: ok, chat, stream with usage, completions of two prompts, a refused field");
