// The pools: a card per worker, or a dense grid of cells where there are many.

import { h, keyed, setText } from "./dom.js";
import { many, ms, percent, seconds } from "./format.js";

const MANY = 24; // Workers in a pool from which they become cells
const SENTENCES = { prefill: "computes prompts", decode: "writes answers", mixed: "computes prompts and writes answers" };

const share = (part, whole) => (whole ? Math.min(1, part / whole) : 0);

/** What a worker does, as a sentence for tooltips and screen readers. */
export function describe(worker) {
  const kv = `KV ${percent(worker.pages_in_use, worker.pages_total)} in use`;
  const silent = worker.silent_s ? `, silent for ${worker.silent_s} s` : "";
  return `${worker.name}, ${worker.state}, ${kv}, ${worker.running} running, ${worker.waiting} waiting${silent}`;
}

function condition(worker) {
  return worker.silent_s ? "silent" : worker.state;
}

function setBar(element, worker) {
  const set = (name, value) => element.style.setProperty(name, value.toFixed(4));
  set("--used", share(worker.pages_in_use, worker.pages_total));
  set("--cached", share(worker.pages_cached, worker.pages_total));
  set("--peak", share(worker.peak_pages, worker.pages_total));
}

function makeCard(worker, open) {
  const parts = {};
  const part = (name, tag = "span", attributes = {}) => (parts[name] = h(tag, { class: name, ...attributes }));
  const card = h(
    "button",
    { type: "button", class: "card", onclick: () => open(worker.name) },
    h("span", { class: "line" }, part("name"), part("chip")),
    h("span", { class: "dots" }),
    h("span", { class: "kv", "aria-hidden": "true" }, h("i", { class: "in-use" }), h("i", { class: "in-cache" }), h("i", { class: "peak" })),
    h("span", { class: "line small" }, part("kv-text"), part("load"), part("speed")),
  );
  card.parts = parts;
  return card;
}

function updateCard(card, worker) {
  const { parts } = card;
  card.dataset.worker = worker.name;
  card.dataset.state = condition(worker);
  setText(parts.name, worker.name);
  setText(parts.chip, worker.silent_s ? `silent ${worker.silent_s} s` : worker.state);
  setText(parts["kv-text"], `KV ${percent(worker.pages_in_use, worker.pages_total)}`);
  const prefills = worker.role === "prefill";
  const running = prefills && !worker.running ? [] : [`${worker.running} running`];
  const waiting = prefills || worker.waiting ? [`${worker.waiting} waiting`] : [];
  setText(parts.load, [...running, ...waiting].join(", "));
  setText(parts.speed, prefills ? `busy ${seconds(worker.busy_s)}` : worker.tpot_ms ? `${ms(worker.tpot_ms)}/token` : "idle");
  setBar(card, worker);
}

function makeCell(worker, open) {
  return h("button", { type: "button", class: "cell", onclick: () => open(worker.name) });
}

function updateCell(cell, worker) {
  cell.dataset.worker = worker.name;
  cell.dataset.state = condition(worker);
  const text = describe(worker);
  if (cell.title !== text) {
    cell.title = text;
    cell.setAttribute("aria-label", text);
  }
  setBar(cell, worker);
}

/** One stop for the Tab key in a grid of many cells; the arrow keys move within it. */
function rove(grid) {
  grid.addEventListener("keydown", (event) => {
    const cells = [...grid.children];
    const at = cells.indexOf(document.activeElement);
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
    const next = step && cells[at + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  grid.addEventListener("focusin", (event) => {
    for (const cell of grid.querySelectorAll('[tabindex="0"]')) cell.tabIndex = -1;
    event.target.tabIndex = 0;
  });
}

function makeLane(role, open) {
  const title = h("h3", {}, h("span", { class: "role" }, role), h("span", { class: "sub" }));
  const lane = h("div", { class: "lane pool", "data-role": role }, title, h("p", { class: "what" }, SENTENCES[role]));
  lane.sub = title.lastChild;
  lane.open = open;
  return lane;
}

function updateLane(lane, workers) {
  const dense = workers.length > MANY;
  if (!lane.body || lane.dense !== dense) {
    lane.body?.remove();
    lane.dense = dense;
    lane.body = h("div", { class: dense ? "cells" : "cards" });
    if (dense) rove(lane.body);
    lane.append(lane.body);
  }
  const used = workers.reduce((sum, worker) => sum + worker.pages_in_use, 0);
  const total = workers.reduce((sum, worker) => sum + worker.pages_total, 0);
  setText(lane.sub, `${many(workers.length, "worker")}, KV ${percent(used, total)}`);
  const [make, update] = dense ? [makeCell, updateCell] : [makeCard, updateCard];
  keyed(lane.body, workers, (worker) => worker.name, (worker) => make(worker, lane.open), update);
  if (dense) {
    const cells = [...lane.body.children];
    if (!cells.some((cell) => cell.tabIndex === 0 && cell.hasAttribute("tabindex"))) {
      cells.forEach((cell, index) => (cell.tabIndex = index ? -1 : 0));
    }
  }
}

/** Shows the pools in `parent`; `open` is called with the name of a worker that was chosen. */
export function pools(parent, open) {
  return (state) => {
    const shown = state.pools();
    parent.dataset.pools = shown.length;
    keyed(parent, shown, ([role]) => role, ([role]) => makeLane(role, open), (lane, [, workers]) => updateLane(lane, workers));
    let empty = parent.parentElement.querySelector(".no-workers");
    if (!shown.length && !empty) {
      empty = h("p", { class: "no-workers empty" }, "No worker is registered. Workers appear here once they have loaded the model.");
      parent.parentElement.append(empty);
    } else if (shown.length) empty?.remove();
  };
}
