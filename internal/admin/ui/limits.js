// Who is near a rate limit, and what was granted.

import { el, replace, span, text } from "./make.js";

// tone tells how near: from four fifths on it is worth a look.
const tone = (s) => (s.remaining <= 0 ? "bad" : s.used >= 0.8 ? "warn" : null);

export function showLimits(limits) {
  const panel = document.getElementById("limits-panel");
  panel.hidden = !limits.on;
  if (!limits.on) return;
  const now = Date.parse(limits.now);
  const notes = [
    limits.down ? "Redis does not answer: limits go on as on_store_failure says" : "",
    limits.redis && !limits.down ? `shared by ${limits.nodes} ${limits.nodes === 1 ? "node" : "nodes"}, callers of ${limits.told}` : "",
    limits.shadow ? "shadow: nobody is refused" : "",
    limits.grants.length ? `granted to ${limits.grants.map((g) => g.key + (g.claude ? " (Claude)" : "")).slice(0, 5).join(", ")}${limits.grants.length > 5 ? " …" : ""}` : "",
  ];
  text(document.getElementById("limits-note"), notes.filter(Boolean).join(" · "));
  const rows = limits.top.map((s) => ({ ...s, ago: span((now - Date.parse(s.seen)) / 1000) }));
  replace(document.getElementById("limits"), JSON.stringify(rows), () => [rows.length
    ? table(rows)
    : el("p", { class: "empty" }, "Nobody has come yet.")]);
}

function table(rows) {
  const head = ["caller", "tier", "rule", "used", "left", "limit", "refused", "seen"];
  const numbers = new Set(["used", "left", "limit", "refused"]);
  const cell = (name, ...content) => el("td", { class: numbers.has(name) ? "num" : null, "data-label": name }, el("div", {}, ...content));
  return el("table", {},
    el("thead", {}, el("tr", {}, ...head.map((h) => el("th", { scope: "col", class: numbers.has(h) ? "num" : null }, h)))),
    el("tbody", {}, ...rows.map((s) => el("tr", {},
      cell("caller", el("span", { class: "mono" }, s.key.length > 60 ? `${s.key.slice(0, 60)}…` : s.key)),
      cell("tier", s.tier),
      cell("rule", s.rule),
      cell("used", el("span", { class: "badge", "data-tone": tone(s) }, `${Math.round(100 * s.used)} %`)),
      cell("left", String(s.remaining)),
      cell("limit", String(s.limit)),
      cell("refused", String(s.refused)),
      cell("seen", `${s.ago} ago`)))));
}
