// The card of one plane.

import { Chart } from "./chart.js";
import { count, el, milliseconds, rate, replace, set, share, text } from "./make.js";

const kinds = {
  edge: { title: "Edge", what: "HTTP requests", unit: "req/s", wait: "held" },
  pooler: { title: "Pooler", what: "PostgreSQL queries", unit: "queries/s", wait: "queued" },
  claude: { title: "Claude", what: "Claude API calls", unit: "calls/s", wait: "queued" },
};

const ms = (v) => milliseconds(v).join(" ").trim();

export class PlaneCard {
  constructor(name) {
    this.kind = kinds[name] || { title: name, what: "", unit: "/s", wait: "queued" };
    this.name = name;
    this.badge = el("span", { class: "badge" });
    this.way = el("p", { class: "quiet way" });
    this.off = el("p", { class: "off" });
    this.figures = {};
    const row = el("dl", { class: "figures" });
    for (const [key, label] of [["rate", this.kind.unit], ["p50", "p50"], ["p95", "p95"], ["p99", "p99"], ["errors", "errors"]]) {
      const value = el("dd");
      this.figures[key] = el("div", { class: "figure" }, el("dt", {}, label), value);
      row.append(this.figures[key]);
    }
    this.rate = new Chart({ title: this.kind.unit, value: (p) => p.rate, show: rate, errors: true });
    this.latency = new Chart({ title: "p95", value: (p) => p.p95_ms, show: ms });
    this.facts = el("dl", { class: "facts" });
    this.rows = {};
    const charts = el("div", { class: "charts" }, this.rate.node, this.latency.node);
    this.node = el("article", { class: "plane", "aria-label": this.kind.title },
      el("div", {}, el("div", { class: "plane-head" }, el("h2", {}, this.kind.title), this.badge), this.way),
      this.off, row, charts, this.facts);
    this.parts = [row, charts, this.facts];
  }

  // show takes the plane's part of the status, and all levels.
  show(plane, levels) {
    const on = plane.state === "on";
    for (const part of this.parts) part.hidden = !on;
    this.off.hidden = on;
    text(this.off, on ? "" : plane.note || "This plane is off.");
    this.route(plane, on);
    if (!on) {
      this.tone("", "off");
      return;
    }
    const f = plane.figures;
    this.number("rate", rate(f.rate), "");
    this.latencies(f);
    this.number("errors", share(f.error_rate), "%", f.errors ? "bad" : null);
    if (f.error_rate >= 0.01) this.tone("bad", "failing");
    else if (f.errors) this.tone("warn", "some errors");
    else this.tone("good", f.count ? "serving" : "idle");
    this.codes(f);
    if (this.name === "edge") this.edge(f, levels);
    if (this.name === "pooler") this.pooler(f, levels, plane.stats);
    if (this.name === "claude") this.claude(f, levels);
  }

  draw(points, step, seconds, switches) {
    this.rate.draw(points, step, seconds, switches);
    const streams = points.some((p) => p.first_byte_p95_ms) && !points.some((p) => p.p95_ms);
    this.latency.change(streams ? { title: "p95 to first byte", value: (p) => p.first_byte_p95_ms } : { title: "p95", value: (p) => p.p95_ms });
    this.latency.draw(points, step, seconds, switches);
  }

  // latencies: where all answers are streams, whose length is no latency, the
  // first byte is what people wait for.
  latencies(f) {
    const streams = !f.p95_ms && f.first_byte_p95_ms > 0;
    for (const q of ["p50", "p95", "p99"]) {
      text(this.figures[q].firstChild, streams ? `${q} to start` : q);
      this.figures[q].hidden = streams && q === "p99";
      this.number(q, ...milliseconds(f[streams ? `first_byte_${q}_ms` : `${q}_ms`] || 0));
    }
  }

  tone(tone, say) {
    set(this.badge, { "data-tone": tone || null });
    text(this.badge, say);
  }

  route(plane, on) {
    const way = on ? `${plane.listen || "?"}|${plane.upstream || "nothing yet"}` : "";
    replace(this.way, way || "off", () => (on
      ? [el("span", { class: "mono" }, plane.listen || "?"), el("span", { class: "arrow" }, "→"), el("span", { class: "mono" }, plane.upstream || "nothing yet")]
      : [this.kind.what]));
    set(this.way, { title: on ? `${plane.listen} leads to ${plane.upstream}${plane.note ? ` (${plane.note})` : ""}` : null });
  }

  number(key, value, unit, tone = null) {
    const figure = this.figures[key];
    set(figure, { "data-tone": tone });
    replace(figure.lastChild, `${value} ${unit}`, () => (unit ? [value, el("small", {}, unit)] : [value]));
  }

  // fact writes one line below the charts; an empty list of children hides it.
  fact(label, key, make) {
    let row = this.rows[label];
    if (!row) {
      row = this.rows[label] = el("div", { class: "fact" }, el("dt", {}, label), el("dd"));
      this.facts.append(row);
    }
    row.hidden = key === "";
    replace(row.lastChild, key, make || (() => [key]));
  }

  codes(f) {
    const top = Object.entries(f.codes || {}).sort((a, b) => b[1] - a[1]).slice(0, 4);
    this.fact("how they ended", top.length ? JSON.stringify(top) : "nothing in the last minute", top.length ? () => [
      el("span", { class: "codes" }, ...top.map(([code, n]) => el("span", { class: "badge", "data-tone": code === "ok" ? "good" : null }, `${code} ${count(n)}`))),
    ] : undefined);
  }

  edge(f, levels) {
    const inFlight = level(levels, "mainstay_edge_requests_in_flight");
    this.fact("in flight", inFlight === null ? "" : count(inFlight));
    const colors = Object.entries(f.colors || {}).filter(([c]) => c !== "unknown").sort();
    this.fact("by color", colors.length ? colors.map(([c, v]) => `${c} ${rate(v.rate)}/s`).join(", ") : "");
    this.fact("streams and tunnels", f.lasting ? `${count(f.lasting)} ended` : "");
    this.waits(f);
  }

  pooler(f, levels, stats) {
    const down = ((stats && stats.databases) || []).filter((d) => d.outage);
    if (down.length) this.tone("bad", "database down");
    this.fact("no connection to", down.map((d) => `${d.database}: ${d.outage}`).join("\n"));
    const pool = poolOf(levels);
    this.fact("connections", pool ? JSON.stringify(pool) : "", () => [
      el("span", {}, `${pool.busy} busy, ${pool.idle} idle${pool.max ? ` of ${pool.max}` : ""}`),
    ]);
    if (pool) this.bar(pool);
    if (pool) this.fact("clients", pool.clients === null ? "" : count(pool.clients));
    if (pool) this.fact("waiting now", pool.waiting === null ? "" : count(pool.waiting));
    this.waits(f);
  }

  bar(pool) {
    if (!this.pool) {
      this.pool = el("div", { class: "bar", role: "img" }, el("span", { class: "busy" }), el("span", { class: "open" }));
      this.facts.prepend(this.pool);
    }
    const of = Math.max(pool.max || pool.busy + pool.idle, 1);
    const [busy, open] = this.pool.children;
    busy.style.width = `${100 * pool.busy / of}%`;
    open.style.width = `${100 * pool.idle / of}%`;
    set(this.pool, { "data-tone": pool.waiting ? "bad" : null, "aria-label": `${pool.busy} of ${of} connections busy, ${pool.waiting || 0} waiting` });
  }

  claude(f, levels) {
    const retries = f.retries ? `, ${count(f.retries)} retries` : ", no retries";
    this.fact("calls and attempts", `${count(f.count)} calls, ${count(f.attempts)} attempts${retries}`);
    const causes = Object.entries(f.causes || {}).sort((a, b) => b[1] - a[1]).slice(0, 3);
    this.fact("why attempts failed", causes.map(([c, n]) => `${c} ${count(n)}`).join(", "));
    this.fact("first byte p50, p95", f.first_byte_p95_ms && f.p95_ms ? `${ms(f.first_byte_p50_ms)}, ${ms(f.first_byte_p95_ms)}` : "");
    const t = f.tokens;
    this.fact("tokens", t ? `${count(t.input + t.cache_read + t.cache_write)} in (${count(t.cache_read)} from cache), ${count(t.output)} out` : "");
    const waiting = level(levels, "mainstay_claude_waiting");
    this.fact("waiting to retry", waiting ? count(waiting) : "");
    this.waits(f);
  }

  waits(f) {
    this.fact(this.kind.wait, f.waited ? `${count(f.waited)}, p95 ${ms(f.wait_p95_ms)}` : "");
  }
}

// level adds up the levels of one name, or is null if there is none.
export function level(levels, name, labels = {}) {
  const found = levels.filter((l) => l.name === name && Object.entries(labels).every(([k, v]) => (l.labels || {})[k] === v));
  return found.length ? found.reduce((sum, l) => sum + l.value, 0) : null;
}

// poolOf reads the pool out of the levels: server connections by state.
function poolOf(levels) {
  const busy = level(levels, "mainstay_pooler_servers", { state: "active" });
  if (busy === null) return null;
  return {
    busy, idle: level(levels, "mainstay_pooler_servers", { state: "idle" }) || 0,
    max: level(levels, "mainstay_pooler_servers_max"),
    clients: level(levels, "mainstay_pooler_clients"),
    waiting: level(levels, "mainstay_pooler_waiting"),
  };
}
