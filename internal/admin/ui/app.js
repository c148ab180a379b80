// The copies of the app, past deploys, and events.

import { clock, el, milliseconds, rate, replace, set, share, span, text } from "./make.js";
import { level } from "./plane.js";

const tones = { healthy: "good", draining: "good", starting: "warn", stopping: "warn", unhealthy: "bad", down: "bad" };
const roles = { live: "live", next: "coming up" };

// what the old color is for: it stands by until it is taken down.
const role = (name, c) => roles[name] || (c.state === "draining" || c.state === "stopping" ? "going down" : "standing by");

const ms = (v) => milliseconds(v).join(" ").trim();

export function showCopies(status) {
  const app = status.app || {};
  const note = document.getElementById("app-note");
  const notes = [
    app.maintenance ? "maintenance: nobody is served" : "",
    app.frozen ? `deploy #${app.frozen.number} is frozen: mainstay promote or mainstay rollback decides` : "",
    app.deploying ? `${app.deploying.phase || "deploying"}: ${app.deploying.text || app.deploying.step}` : "",
  ];
  text(note, notes.filter(Boolean).join(" · "));
  const copies = ["live", "next", "old"].filter((r) => app[r]).map((r) => [r, app[r]]);
  const now = Date.parse(status.now);
  const edge = (status.planes || []).find((p) => p.name === "edge");
  const rows = copies.map(([name, c]) => {
    const f = edge && edge.figures && edge.figures.colors ? edge.figures.colors[c.color] : null;
    const inFlight = level(status.levels || [], "mainstay_edge_color_in_flight", { color: c.color });
    return {
      name, c, f, inFlight: inFlight === null ? "–" : String(inFlight),
      up: span((now - Date.parse(c.began)) / 1000),
    };
  });
  const node = document.getElementById("copies");
  replace(node, JSON.stringify(rows), () => [rows.length ? copyTable(rows) : el("p", { class: "empty" }, "No copy of the app is running.")]);
}

function copyTable(rows) {
  const head = ["color", "copy", "version", "state", "share", "req/s", "p95", "errors", "in flight", "address", "pid", "up", "restarts"];
  const numbers = new Set(["share", "req/s", "p95", "errors", "in flight", "pid", "restarts"]);
  const cell = (name, ...content) => el("td", { class: numbers.has(name) ? "num" : null, "data-label": name }, el("div", {}, ...content));
  return el("table", {},
    el("thead", {}, el("tr", {}, ...head.map((h) => el("th", { scope: "col", class: numbers.has(h) ? "num" : null }, h)))),
    el("tbody", {}, ...rows.map(({ name, c, f, inFlight, up }) => el("tr", {},
      cell("color", el("span", { class: "color", "data-color": c.color }, c.color)),
      cell("copy", c.id || "–", " ", el("span", { class: "badge", "data-tone": name === "live" ? "good" : null }, role(name, c))),
      cell("version", c.version || "–"),
      cell("state", el("span", { class: "badge", "data-tone": tones[c.state] || null, title: c.reason || null }, c.state || "?"), c.reason ? el("div", { class: "quiet why" }, c.reason.slice(0, 160)) : null),
      cell("share", `${c.share || 0} %`),
      cell("req/s", f ? rate(f.rate) : "0"),
      cell("p95", f ? ms(f.p95_ms) : "–"),
      cell("errors", f ? `${share(f.error_rate)} %` : "–"),
      cell("in flight", inFlight),
      cell("address", el("span", { class: "mono" }, c.address || "–")),
      cell("pid", c.pid ? String(c.pid) : "–"),
      cell("up", up),
      cell("restarts", c.last_exit ? el("abbr", { title: `last end: ${c.last_exit}` }, String(c.restarts || 0)) : String(c.restarts || 0))))));
}

export function showDeploys(deploys, now) {
  const shown = deploys.slice(0, 12).map((d) => ({ ...d, ago: ago(d.began, now) }));
  replace(document.getElementById("deploys"), JSON.stringify(shown), () => (shown.length
    ? [el("ul", { class: "list" }, ...shown.map(deployItem))]
    : [el("p", { class: "empty" }, "None yet. ", el("code", {}, "mainstay deploy -- COMMAND"), " starts the next color beside the live one.")]));
}

function deployItem(d) {
  const words = { settled: ["good", "settled"], rolled_back: ["bad", "rolled back"], frozen: ["warn", "frozen"], failed: ["bad", "failed"] };
  const [tone, word] = words[d.phase] || [null, d.phase || "?"];
  return el("li", {},
    el("time", { datetime: d.began, title: new Date(d.began).toLocaleString() }, d.ago),
    el("div", {},
      el("p", { class: "title" },
        el("span", { class: "color", "data-color": d.color }, d.target || d.color),
        d.version ? el("span", {}, d.version) : null,
        el("span", { class: "badge", "data-tone": tone }, d.kind === "rollback" ? "rollback" : word),
        el("span", { class: "quiet" }, `#${d.number}, took ${ms(d.took_ms)}${d.who ? `, by ${d.who}` : ""}`)),
      d.why ? el("p", { class: "quiet text" }, d.why) : null,
      d.error ? el("p", { class: "text", "data-tone": "bad" }, d.error) : null,
      ...(d.evidence || []).map((line) => el("p", { class: "quiet text" }, line))));
}

export function showEvents(events) {
  const shown = events.slice(0, 60);
  replace(document.getElementById("events"), shown.length ? String(shown[0].number) : "none", () => (shown.length
    ? [el("ul", { class: "list", tabindex: "0", "aria-label": "Latest events" }, ...shown.map(eventItem))]
    : [el("p", { class: "empty" }, "Nothing has happened yet.")]));
}

function eventItem(e) {
  const tone = { ERROR: "bad", WARN: "warn" }[e.level] || null;
  const more = Object.entries(e.attrs || {}).map(([k, v]) => `${k}: ${v}`).join("\n");
  return el("li", {},
    el("time", { datetime: e.time, title: new Date(e.time).toLocaleString() }, clock(e.time)),
    el("div", { title: more || null },
      el("p", { class: "text", "data-tone": tone }, e.text || e.name.replaceAll("_", " ")),
      el("p", { class: "quiet" }, `${e.part} · ${e.name}${e.color ? ` · ${e.color}` : ""}`)));
}

function ago(when, now) {
  const seconds = (now - Date.parse(when)) / 1000;
  return seconds < 60 ? "now" : `${span(seconds).replace(/ \d+ (min|h)$/, "")}`;
}

export function showHead(status) {
  text(document.getElementById("service"), status.service || "Mainstay");
  const up = span((Date.parse(status.now) - Date.parse(status.began)) / 1000);
  text(document.getElementById("about"), [status.environment, `Mainstay ${status.version}`, `up ${up}`].filter(Boolean).join("  ·  "));
  document.title = `${status.service} · Mainstay`;
  text(document.getElementById("foot"), `Figures are of the last ${Math.ceil(status.window_s)} s, charts of the last five minutes. Errors are those that Mainstay or an upstream is to blame for.`);
  const planes = (status.planes || []).filter((p) => p.state === "on" && p.figures);
  const failing = planes.filter((p) => p.figures.error_rate >= 0.01).map((p) => p.name);
  if (!status.ready) showState("bad", "not ready");
  else if (failing.length) showState("warn", `serving, with errors in ${failing.join(" and ")}`);
  else if (status.app && status.app.deploying) showState("good", "serving, deploying");
  else showState("good", "serving");
  const banner = document.getElementById("banner");
  const warnings = status.warnings || [];
  banner.hidden = status.ready && !warnings.length;
  set(banner, { "data-tone": status.ready ? "warn" : null });
  text(banner, status.ready ? warnings.join(" · ") : `Requests cannot be served: ${status.reason}`);
}

export function showState(tone, say) {
  const state = document.getElementById("state");
  set(state, { "data-tone": tone });
  text(state, say);
}
