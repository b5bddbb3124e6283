// The plots of the last minutes, in SVG: lines over a common time axis, a point a second.

import { h, setText } from "./dom.js";
import { ms, rate, seconds } from "./format.js";

const WIDTH = 300;
const HEIGHT = 84;
const SHORTEST = 60; // Seconds on the time axis, at least; it grows with the history, to five minutes
const perSecond = (value) => (value === null ? "–" : rate(value));
const PLOTS = [
  { title: "Tokens per second", lines: [{ column: 0, style: "decode", name: "", fill: true }], text: perSecond },
  {
    title: "Requests per second",
    lines: [
      { column: 1, style: "good", name: "", fill: true },
      { column: 2, style: "bad", name: "failed" },
    ],
    text: perSecond,
  },
  {
    title: "Time to first token, p50",
    lines: [
      { column: 6, style: "prefill faint", name: "p99" },
      { column: 5, style: "prefill", name: "p50", fill: true },
    ],
    text: ms,
  },
  {
    title: "Time per output token, p50",
    lines: [
      { column: 8, style: "handoff faint", name: "p99" },
      { column: 7, style: "handoff", name: "p50", fill: true },
    ],
    text: ms,
  },
  { title: "Queue", lines: [{ column: 3, style: "queue", name: "", fill: true }], text: (value) => `${value ?? "–"}` },
];

/** The next "round" number: 1, 2 or 5 times a power of ten. */
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((limit) => limit >= value * 0.999);
}

/** One path per stretch without gaps; `down` closes each to the ground. */
function path(points, column, top, down, span) {
  const x = (index) => WIDTH - (points.length - 1 - index) * (WIDTH / (span - 1));
  const y = (value) => HEIGHT - Math.min(1, value / top) * HEIGHT;
  let text = "";
  let start = -1;
  for (let index = 0; index <= points.length; index++) {
    const value = index < points.length ? points[index][column] : null;
    if (value !== null) {
      text += `${start < 0 ? "M" : "L"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
      if (start < 0) start = index;
    } else if (start >= 0) {
      if (down) text += `L${x(index - 1).toFixed(1)} ${HEIGHT}L${x(start).toFixed(1)} ${HEIGHT}Z`;
      start = -1;
    }
  }
  return text;
}

class Plot {
  constructor(plot) {
    this.plot = plot;
    this.value = h("span", { class: "value" });
    this.note = h("span", { class: "extra" });
    this.top = h("span", { class: "top-label" });
    this.at = h("span", { class: "at" });
    this.cursor = h("svg:line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden" });
    this.paths = plot.lines.map((line) => [
      line.fill ? h("svg:path", { class: `area ${line.style}` }) : null,
      h("svg:path", { class: `line ${line.style}` }),
    ]);
    this.svg = h(
      "svg:svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" },
      h("svg:line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT / 2, y2: HEIGHT / 2 }),
      this.paths.flat(),
      this.cursor,
    );
    const chart = h("div", { class: "chart" }, this.svg, this.top);
    chart.addEventListener("pointermove", (event) => this.hover(event));
    chart.addEventListener("pointerleave", () => this.show(null));
    this.element = h(
      "figure",
      { class: "panel plot" },
      h("figcaption", {}, h("span", { class: "title" }, plot.title), h("span", { class: "line" }, this.value, this.note)),
      chart,
      h("div", { class: "axis" }, this.at, h("span", {}, "now")),
    );
    this.points = [];
    this.span = SHORTEST;
    this.index = null;
  }

  hover(event) {
    const box = this.svg.getBoundingClientRect();
    const back = Math.round(((box.right - event.clientX) / box.width) * (this.span - 1));
    this.show(back >= 0 && back < this.points.length ? back : null);
  }

  /** Shows the values of the point so many seconds ago; null: of the latest. */
  show(back) {
    this.index = back;
    this.cursor.setAttribute("visibility", back === null ? "hidden" : "visible");
    const x = WIDTH - (back ?? 0) * (WIDTH / (this.span - 1));
    this.cursor.setAttribute("x1", x);
    this.cursor.setAttribute("x2", x);
    const point = this.points[this.points.length - 1 - (back ?? 0)];
    const shown = (line) => line && this.plot.text(point ? point[line.column] : null);
    const main = this.plot.lines.find((line) => line.fill);
    const other = this.plot.lines.find((line) => !line.fill);
    setText(this.value, shown(main));
    setText(this.note, other && (point?.[other.column] || other.name === "p99") ? `${other.name} ${shown(other)}` : "");
    setText(this.at, back === null ? seconds(this.span) : `${back} s ago`);
  }

  update(points) {
    this.points = points;
    this.span = Math.max(SHORTEST, points.length);
    const highest = Math.max(0, ...this.plot.lines.flatMap((line) => points.map((point) => point[line.column] ?? 0)));
    const top = ceiling(highest);
    setText(this.top, this.plot.text(top));
    this.plot.lines.forEach((line, index) => {
      const [area, stroke] = this.paths[index];
      if (line.name === "failed") stroke.setAttribute("visibility", points.some((point) => point[line.column]) ? "visible" : "hidden");
      area?.setAttribute("d", path(points, line.column, top, true, this.span));
      stroke.setAttribute("d", path(points, line.column, top, false, this.span));
    });
    this.show(this.index);
    this.svg.setAttribute("aria-label", `${this.plot.title} over ${seconds(this.span)}: now ${this.value.textContent}`);
  }
}

/** Fills `parent` with the plots, and returns a function that shows points. */
export function plots(parent) {
  const made = PLOTS.map((plot) => new Plot(plot));
  parent.append(...made.map((plot) => plot.element));
  return (points) => made.forEach((plot) => plot.update(points));
}
