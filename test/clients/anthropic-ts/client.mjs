// Calls the Claude API at BASE_URL with the official TypeScript SDK, as an app does,
// and prints what came of it as one JSON value. The SDK's own retries are off, so
// that every failure that reaches the app is seen.
//
//   node client.mjs crowd 500           500 calls, 16 at a time, half of them streams
//   node client.mjs each json stream …  one call after the other; json:claude-x names the model
//   node client.mjs hurried 10 stream 2000   ten at once, of a client that waits 2 s and then
//                                       tries again, twice, as it does by default
//   node client.mjs tour                tools, thinking, token counts, models, batches
import Anthropic from '@anthropic-ai/sdk';

const client = new Anthropic({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0, timeout: 60_000 });

const ask = (text, model = 'claude-sonnet-5') => ({ model, max_tokens: 256, messages: [{ role: 'user', content: text }] });

async function call(kind, text, model) {
  const message = kind === 'stream' ? await client.messages.stream(ask(text, model)).finalMessage() : await client.messages.create(ask(text, model));
  if (message.stop_reason !== 'end_turn' || !message.content[0]?.text || !(message.usage.output_tokens > 0)) {
    throw new Error('not a whole message: ' + JSON.stringify(message));
  }
}

async function attempt(kind, text, model) {
  try {
    await call(kind, text, model);
    return { kind, ok: true };
  } catch (e) {
    return { kind, ok: false, status: e.status ?? 0, type: e.type ?? e.error?.error?.type ?? '', message: String(e.message ?? e).slice(0, 200) };
  }
}

async function crowd(n) {
  const failures = [];
  let next = 0;
  const worker = async () => {
    while (next < n) {
      const i = next++;
      const result = await attempt(i % 2 ? 'json' : 'stream', 'call ' + i);
      if (!result.ok) failures.push(result);
    }
  };
  await Promise.all(Array.from({ length: 16 }, worker));
  return { calls: n, failed: failures.length, failures: failures.slice(0, 5) };
}

async function each(kinds) {
  const results = [];
  for (const word of kinds) {
    const [kind, model] = word.split(':');
    results.push(await attempt(kind, 'hello', model));
  }
  return results;
}

async function hurried(n, kind, timeout) {
  const impatient = client.withOptions({ timeout, maxRetries: 2 });
  const one = async (i) => {
    const params = ask('hurried ' + i);
    const message = kind === 'stream' ? await impatient.messages.stream(params).finalMessage() : await impatient.messages.create(params);
    if (message.stop_reason !== 'end_turn' || !message.content[0]?.text) throw new Error('not a whole message: ' + JSON.stringify(message));
  };
  const results = await Promise.allSettled(Array.from({ length: n }, (_, i) => one(i)));
  const failures = results.filter((r) => r.status === 'rejected').map((r) => String(r.reason));
  return { calls: n, failed: failures.length, failures: failures.slice(0, 5) };
}

async function tour() {
  const tools = [{ name: 'weather', input_schema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] } }];
  const streamed = await client.messages
    .stream({ ...ask('use a tool'), max_tokens: 4096, tools, thinking: { type: 'enabled', budget_tokens: 1024 } })
    .finalMessage();
  const tokens = await client.messages.countTokens({ model: 'claude-sonnet-5', messages: ask('hi').messages });
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  const batch = await client.messages.batches.create({ requests: [{ custom_id: 'one', params: ask('hi') }] });
  const results = [];
  for await (const r of await client.messages.batches.results(batch.id)) results.push(r.custom_id + ' ' + r.result.type);
  let refused = '';
  try {
    await client.messages.create({ ...ask('hi'), max_tokens: 0 });
  } catch (e) {
    refused = e.constructor.name + ' ' + e.status + ' ' + e.requestID?.slice(0, 4);
  }
  return {
    blocks: streamed.content.map((b) => b.type),
    city: streamed.content.at(-1).input?.city,
    counted: tokens.input_tokens > 0,
    models: models.length,
    results,
    refused,
  };
}

const [mode, ...args] = process.argv.slice(2);
const modes = { crowd: () => crowd(Number(args[0])), each: () => each(args), hurried: () => hurried(Number(args[0]), args[1], Number(args[2])), tour };
console.log(JSON.stringify(await modes[mode]()));
