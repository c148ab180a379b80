// A small chart of the last five minutes: an area, marks for errors and for
// switches of color, and a read-out under the pointer.

import { clock, el, set, svg, text } from "./make.js";

const height = 40;

export class Chart {
  // options: title, value(point), show(value) → text, errors: whether to mark them
  constructor(options) {
    this.options = options;
    this.points = [];
    this.title = el("span", {}, options.title);
    this.readout = el("span");
    this.area = svg("path", { class: "area" });
    this.stroke = svg("path", { class: "stroke" });
    this.errors = svg("path", { class: "errors" });
    this.marks = svg("path", { class: "mark-line" });
    this.cross = svg("path", { class: "cross" });
    this.picture = svg("svg", { viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", role: "img" },
      this.area, this.marks, this.stroke, this.errors, this.cross);
    this.node = el("div", { class: "chart" }, el("div", { class: "chart-head" }, this.title, this.readout), this.picture);
    this.picture.addEventListener("pointermove", (e) => this.point(e));
    this.picture.addEventListener("pointerleave", () => this.leave());
  }

  // change says what is drawn from now on.
  change(options) {
    Object.assign(this.options, options);
    text(this.title, this.options.title);
  }

  // draw shows points, oldest first, which span `seconds` when there are all.
  // switches are times in milliseconds.
  draw(points, step, seconds, switches) {
    this.points = points;
    this.end = points.length ? Date.parse(points[points.length - 1].t) + step * 1000 : Date.now();
    this.span = seconds * 1000;
    const values = points.map(this.options.value);
    this.peak = Math.max(...values, 0);
    const top = this.peak || 1;
    const at = points.map((p, i) => [this.x(Date.parse(p.t) + step * 500), height - 2 - (height - 6) * values[i] / top]);
    const line = at.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");
    set(this.stroke, { d: line });
    set(this.area, { d: at.length ? `${line}L${at[at.length - 1][0].toFixed(2)} ${height}L${at[0][0].toFixed(2)} ${height}Z` : "" });
    if (this.options.errors) {
      set(this.errors, { d: points.map((p, i) => (p.errors ? `M${at[i][0].toFixed(2)} ${height}v-5` : "")).join("") });
    }
    const first = this.end - this.span;
    set(this.marks, { d: switches.filter((t) => t > first && t <= this.end).map((t) => `M${this.x(t).toFixed(2)} 0V${height}`).join("") });
    const last = values.length ? this.options.show(values[values.length - 1]) : "nothing yet";
    set(this.picture, { "aria-label": `${this.options.title}, last five minutes: now ${last}, at most ${this.options.show(this.peak)}` });
    if (!this.hovered) this.leave();
  }

  x(time) {
    return 100 - 100 * (this.end - time) / this.span;
  }

  point(event) {
    if (!this.points.length) return;
    const box = this.picture.getBoundingClientRect();
    const time = this.end - this.span * (1 - (event.clientX - box.left) / box.width);
    const near = this.points.reduce((best, p) => (Math.abs(Date.parse(p.t) - time) < Math.abs(Date.parse(best.t) - time) ? p : best));
    this.hovered = true;
    const x = this.x(Date.parse(near.t));
    set(this.cross, { d: `M${x.toFixed(2)} 0V${height}` });
    const errors = this.options.errors && near.errors ? `, ${near.errors} failed` : "";
    text(this.readout, `${clock(near.t)}  ${this.options.show(this.options.value(near))}${errors}`);
  }

  leave() {
    this.hovered = false;
    set(this.cross, { d: "" });
    text(this.readout, this.peak ? `peak ${this.options.show(this.peak)}` : "");
  }
}
