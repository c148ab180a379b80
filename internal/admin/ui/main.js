// The life of the page: ask the API, show what it says, and say so plainly when
// there is no answer.

import { clock, set, text } from "./make.js";
import { showLimits } from "./limits.js";
import { PlaneCard } from "./plane.js";
import { showCopies, showDeploys, showEvents, showHead, showState } from "./app.js";

const beat = 1000; // between two questions
const patience = 4000; // for one answer
const chart = { window: "5m", seconds: 300, step: "5s" };

const page = {
  cards: new Map(),
  contact: null, // when the last answer came
  failures: 0,
  inside: false,
  switches: [],
  turn: 0,
};

class Locked extends Error {}

async function ask(path) {
  const reply = await fetch(path, { signal: AbortSignal.timeout(patience), headers: { Accept: "application/json" } });
  if (reply.status === 401) throw new Locked();
  if (!reply.ok) throw new Error(`${path} answered ${reply.status}`);
  return reply.json();
}

async function look() {
  const slow = page.turn % 3 === 0; // the rest changes seldom
  page.turn++;
  const [status, series, deploys, events, limits] = await Promise.all([
    ask("/api/v1/status"),
    slow ? ask(`/api/v1/series?window=${chart.window}&step=${chart.step}`) : null,
    slow ? ask("/api/v1/deploys") : null,
    slow ? ask("/api/v1/events") : null,
    slow ? ask("/api/v1/limits?top=8") : null,
  ]);
  return { status, series, deploys, events, limits };
}

function show({ status, series, deploys, events, limits }) {
  document.getElementById("main").hidden = false;
  document.getElementById("door").hidden = true;
  document.body.classList.remove("stale");
  showHead(status);
  const planes = document.getElementById("planes");
  for (const plane of status.planes) {
    if (!page.cards.has(plane.name)) {
      const card = new PlaneCard(plane.name);
      page.cards.set(plane.name, card);
      planes.append(card.node);
    }
    page.cards.get(plane.name).show(plane, status.levels || []);
  }
  showCopies(status);
  if (events) {
    page.switches = events.events.filter((e) => e.name === "switched").map((e) => Date.parse(e.time));
    showEvents(events.events);
  }
  if (limits) showLimits(limits);
  if (deploys) showDeploys(deploys.deploys, Date.parse(status.now));
  if (series) {
    for (const [name, points] of Object.entries(series.planes)) {
      page.cards.get(name)?.draw(points, series.step_s, chart.seconds, page.switches);
    }
  }
}

// lost says that there is no answer, since when, and leaves the last figures to
// be read, dimmed.
function lost() {
  page.failures++;
  if (page.failures < 2) return; // one slow answer is no loss
  page.turn = 0;
  const since = page.contact ? ` since ${clock(page.contact)}` : "";
  showState("bad", "lost contact");
  document.body.classList.toggle("stale", page.inside);
  const banner = document.getElementById("banner");
  banner.hidden = false;
  set(banner, { "data-tone": null });
  text(banner, page.inside
    ? `Lost contact with Mainstay${since}. What you see is from then; trying again every second.`
    : "Mainstay does not answer. Trying again every second.");
}

function locked() {
  const was = page.inside;
  page.inside = false;
  page.failures = 0;
  document.body.classList.remove("stale");
  document.getElementById("main").hidden = true;
  document.getElementById("banner").hidden = true;
  document.getElementById("door").hidden = false;
  text(document.getElementById("about"), "");
  showState("wait", "signed out");
  let why = "Run this on the machine where Mainstay runs, and open the link it prints:";
  if (location.hash === "#link-used") why = "That link was used already, or is older than a minute. Make a new one:";
  else if (was) why = "Your session has ended, or Mainstay was restarted. Make a new link:";
  text(document.getElementById("door-why"), why);
}

async function turn() {
  if (document.hidden) return;
  try {
    const seen = await look();
    page.contact = Date.now();
    page.failures = 0;
    page.inside = true;
    show(seen);
  } catch (err) {
    if (err instanceof Locked) locked();
    else lost();
    if (!(err instanceof Locked) && !(err instanceof TypeError) && err.name !== "TimeoutError") console.error(err);
  }
}

async function live() {
  for (;;) {
    await turn();
    await new Promise((wake) => {
      // Behind the door there is nothing to watch: look now and then only.
      const timer = setTimeout(wake, page.inside || page.failures ? beat : 5 * beat);
      document.addEventListener("visibilitychange", () => {
        if (document.hidden) return;
        clearTimeout(timer);
        wake();
      }, { once: true });
    });
  }
}

live();
