// The list of recent requests, refusals and gateways.

import { h, keyed, setText } from "./dom.js";
import { count, ms, percent, rate, seconds } from "./format.js";

const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

function route(request) {
  if (!request.prefill && !request.decode) return "–";
  if (!request.decode || request.decode === request.prefill) return request.prefill;
  return request.prefill ? `${request.prefill} → ${request.decode}` : request.decode;
}

function makeRow(request, explain) {
  const cells = {};
  const cell = (name, attributes = {}) => (cells[name] = h("td", attributes));
  const id = h("button", { type: "button", class: "id", title: request.id, onclick: () => explain(request.id) }, request.id);
  const row = h(
    "tr",
    {},
    h("th", { scope: "row" }, id),
    cell("state"),
    cell("route"),
    cell("tokens", { class: "number wide" }),
    cell("ttft", { class: "number wide" }),
    cell("tpot", { class: "number wide" }),
    cell("time", { class: "number" }),
  );
  row.cells_ = cells;
  return row;
}

function updateRow(row, request) {
  const cells = row.cells_;
  const failed = request.ended && request.message !== "";
  row.dataset.state = failed ? "failed" : request.ended ? "ended" : request.state;
  setText(cells.state, request.ended ? (failed ? request.state : "done") : request.state);
  cells.state.title = request.message;
  setText(cells.route, route(request));
  setText(cells.tokens, `${count(request.prompt_tokens)} → ${count(request.output_tokens)}`);
  setText(cells.ttft, ms(request.ttft_ms));
  setText(cells.tpot, ms(request.tpot_ms));
  setText(cells.time, seconds(request.seconds));
}

/** Shows recent requests in a table's body; `explain` is called with the id of the chosen one. */
export function requests(body, explain) {
  return (list) => {
    keyed(body, list, (one) => one.id, (one) => makeRow(one, explain), updateRow);
    let empty = body.querySelector(".empty");
    if (!list.length && !empty) body.append(h("tr", { class: "empty" }, h("td", { colspan: 7 }, "No request so far.")));
    else if (list.length) empty?.remove();
  };
}

/** Shows recent refusals and their causes. */
export function refusals(parent) {
  const list = h("ul", { class: "refusals" });
  const empty = h("p", { class: "empty" }, "No request was refused.");
  parent.append(list, empty);
  const make = (one) =>
    h(
      "li",
      {},
      h("span", { class: "line" }, h("strong", {}, one.cause), h("time", {}, clock.format(new Date(1000 * one.at)))),
      h("span", { class: "message" }, one.message),
      h("span", { class: "mono" }, one.id),
    );
  return (refused) => {
    empty.hidden = refused.length > 0;
    keyed(list, refused.slice(0, 4), (one) => `${one.at} ${one.id}`, make, () => {});
  };
}

/** Shows the gateways with their streams. */
export function gateways(parent) {
  const body = h("tbody");
  const head = ["gateway", "streams", "tokens/s", "requests/s", "CPU"];
  const numbers = head.map((text, index) => h("th", { scope: "col", class: index ? "number" : "" }, text));
  const table = h("table", {}, h("thead", {}, h("tr", {}, numbers)), body);
  const empty = h("p", { class: "empty" }, "No gateway is registered: clients cannot connect.");
  parent.append(table, empty);
  const make = (one) =>
    h("tr", { title: one.public_address }, h("th", { scope: "row" }, one.name), ...head.slice(1).map(() => h("td", { class: "number" })));
  const update = (row, one) => {
    const texts = [count(one.streams), rate(one.tokens_per_s), rate(one.requests_per_s), percent(one.cpu_share, 1)];
    texts.forEach((text, index) => setText(row.children[index + 1], text));
  };
  return (list) => {
    table.hidden = !list.length;
    empty.hidden = list.length > 0;
    keyed(body, list, (one) => one.name, make, update);
  };
}
