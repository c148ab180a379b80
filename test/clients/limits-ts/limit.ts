export async function limit(ask = {}) {
  const url = process.env.MAINSTAY_LOCAL + "/v1/limits/check"; // Mainstay gives it to the app
  const reply = await fetch(url, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(ask) });
  return reply.json(); // {allowed, remaining, retryAfter, status, headers, body, receipt, …}
}
