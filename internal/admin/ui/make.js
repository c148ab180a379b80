// Making and changing elements. Text goes in as text: nothing from the API is
// ever read as HTML.

// el makes an element: el("p", {class: "quiet"}, "text", child).
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  set(made, attributes);
  made.append(...children.filter((c) => c !== null && c !== undefined));
  return made;
}

const svgSpace = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(svgSpace, name);
  set(made, attributes);
  made.append(...children);
  return made;
}

// set changes attributes; null takes one away. What is the same is not touched.
export function set(node, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) node.removeAttribute(key);
    else if (node.getAttribute(key) !== String(value)) node.setAttribute(key, value);
  }
}

// text changes what a node says, if it says something else.
export function text(node, say) {
  if (node.textContent !== say) node.textContent = say;
}

// replace gives a node new children only when key has changed, so that nothing
// moves under a reader's eyes, or cursor, without reason.
export function replace(node, key, make) {
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  node.replaceChildren(...make());
}

// Numbers as people read them.

export function count(n) {
  if (n < 10000) return String(Math.round(n));
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (n >= size) return trim(n / size) + unit;
  }
  return String(n);
}

export function rate(perSecond) {
  if (perSecond === 0) return "0";
  if (perSecond < 0.1) return "<0.1";
  return perSecond < 10 ? perSecond.toFixed(1) : count(perSecond);
}

// milliseconds gives a value and its unit.
export function milliseconds(ms) {
  if (ms === 0) return ["–", ""];
  if (ms < 1) return [ms.toFixed(2), "ms"];
  if (ms < 10) return [ms.toFixed(1), "ms"];
  if (ms < 1000) return [ms.toFixed(0), "ms"];
  return [trim(ms / 1000), "s"];
}

export function share(part) {
  if (part === 0) return "0";
  if (part < 0.0001) return "<0.01";
  const percent = part * 100;
  return percent < 1 ? percent.toFixed(2) : trim(percent);
}

export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function clock(when) {
  return new Date(when).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
}

function trim(n) {
  return n >= 100 ? n.toFixed(0) : n.toFixed(1).replace(/\.0$/, "");
}
