// An app that asks limits/check before work that costs more than a request. Node 20
// cannot load TypeScript by itself; limit.ts is JavaScript, too, and is loaded as such.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";

const source = readFileSync(new URL("limit.ts", import.meta.url), "utf8");
const { limit } = await import("data:text/javascript," + encodeURIComponent(source));

const settle = (receipt, cost) => fetch(process.env.MAINSTAY_LOCAL + "/v1/limits/settle", {
  method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ receipt, cost }),
});

createServer(async (req, res) => {
  const user = req.headers["x-test-user"];
  if (req.url === "/export") {
    const r = await limit({ user, cost: 10, limits: [{ name: "exports", key: user, requests: 2, window: "1h" }] });
    if (!r.allowed) return res.writeHead(r.status, r.headers).end(r.body);
    await settle(r.receipt, 4);
    return res.end(`${r.remaining} left`);
  }
  res.end("ok");
}).listen(process.env.PORT, "127.0.0.1");
