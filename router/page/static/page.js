// The page: one state, which the router's snapshots change, and the parts that show it.

import { follow } from "./api.js";
import { askToken, controls, operations, workerSheet } from "./control.js";
import { byId, h, setText } from "./dom.js";
import { explainer } from "./explain.js";
import { Flow } from "./flow.js";
import { count, many, ms, percent, rate, seconds } from "./format.js";
import { plots } from "./plots.js";
import { pools } from "./pools.js";
import { gateways, refusals, requests } from "./requests.js";
import { State } from "./state.js";

const state = new State();
const refused = (id) => [...state.requests, ...state.refusals].find((one) => one.id === id)?.message;
const explain = explainer(refused);
const sheet = workerSheet(state);
const flow = new Flow(byId("stage"), byId("flow"));
const show = {
  pools: pools(byId("lanes"), sheet.open),
  plots: plots(byId("plots")),
  requests: requests(byId("requests"), explain),
  refusals: refusals(byId("refusals")),
  gateways: gateways(byId("gateways")),
  operations: operations(byId("operations")),
  controls: controls(byId("controls")),
};

const TILES = [
  ["Tokens per second", () => [rate(state.latest[0]), many(state.gateways.reduce((sum, one) => sum + one.streams, 0), "open stream")]],
  ["Requests per second", () => [rate(state.latest[1]), `${count(state.cluster.finished_requests)} finished`]],
  ["Running", () => [count(state.cluster.live_requests - state.cluster.queued_requests), `${state.workers.size} workers`]],
  ["Queued", () => [count(state.cluster.queued_requests), state.cluster.queued_requests ? `oldest ${seconds(state.cluster.oldest_queued_s)}` : "no request waits"]],
  ["KV in use", () => [percent(state.sum("pages_in_use"), state.sum("pages_total")), `${percent(state.sum("pages_cached"), state.sum("pages_total"))} prefix cache`]],
  ["First token, p50", () => [ms(state.latest[5]), `p99 ${ms(state.latest[6])}`]],
  ["Per token, p50", () => [ms(state.latest[7]), `p99 ${ms(state.latest[8])}`]],
  ["Failed", () => [count(state.cluster.failed_requests), `${state.cluster.refused_requests} refused, ${state.cluster.cancelled_requests} cancelled`]],
];
const tiles = TILES.map(([title, values]) => {
  const [value, note] = [h("dd", { class: "value" }), h("dd", { class: "note" })];
  byId("tiles").append(h("div", { class: "tile" }, h("dt", {}, title), value, note));
  return () => values().forEach((text, index) => setText([value, note][index], text));
});

const queue = h("div", { class: "queue-box", "data-queue": "" });
const queued = h("span", { class: "big" });
const oldest = h("span", { class: "sub" });
byId("lane-front").append(h("h3", {}, h("span", { class: "role" }, "queue")), h("p", { class: "what" }, "waits for a worker"), queued, oldest, queue);

function render() {
  const { cluster } = state;
  setText(byId("model"), cluster.model);
  document.title = `Baton · ${cluster.model}`;
  tiles.forEach((update) => update());
  setText(queued, count(cluster.queued_requests));
  setText(oldest, cluster.queued_requests ? `oldest ${seconds(cluster.oldest_queued_s)}` : "");
  show.pools(state);
  show.plots(state.points);
  show.requests(state.requests);
  show.refusals(state.refusals);
  show.gateways(state.gateways);
  show.operations(state.operations);
  show.controls(state);
  sheet.show();
}

const link = byId("link");
follow(
  (snapshot) => {
    const began = performance.now();
    state.apply(snapshot);
    render();
    if (snapshot.whole) flow.reset();
    if (state.workers.size !== flow.workers || snapshot.whole) flow.measure();
    flow.workers = state.workers.size;
    flow.add(snapshot.tracks, snapshot.every);
    setText(byId("relay-foot"), `Up ${seconds(state.cluster.uptime_s)}. Each dot is a request, shown about a second late${snapshot.every > 1 ? `; one of ${snapshot.every} is shown` : ""}.`);
    document.body.dataset.renderMs = (performance.now() - began).toFixed(1);
  },
  (condition, text) => {
    link.dataset.state = condition;
    setText(link, text);
    if (condition === "token" || condition === "forbidden") askToken(text);
  },
);

byId("find").addEventListener("submit", (event) => {
  event.preventDefault();
  explain(byId("find-id").value.trim());
});
byId("token-button").addEventListener("click", () => askToken());
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}

const themes = ["system", "light", "dark"];
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
  localStorage.setItem("baton-theme", theme);
  flow.recolour();
}
byId("theme").addEventListener("click", () => {
  setTheme(themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => flow.recolour());
const kept = localStorage.getItem("baton-theme");
setTheme(themes.includes(kept) ? kept : "system");
