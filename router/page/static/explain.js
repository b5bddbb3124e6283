// One request: a waterfall of its phases, what was predicted beside what happened, and the other candidates.

import { read } from "./api.js";
import { byId, h } from "./dom.js";
import { bytes, count, ms, seconds } from "./format.js";

const REFRESH_MS = 1000;
const NAMES = { queue: "Queue", prefill: "Prefill", handoff: "Handoff", decode: "Decode" };

function bar(phase, total) {
  const element = h("span", { class: `span ${phase.name}${phase.running ? " running" : ""}` });
  element.style.left = `${(100 * phase.start_s) / total}%`;
  element.style.width = `${Math.max(0.4, (100 * phase.seconds) / total)}%`;
  return element;
}

/** Seconds from arrival to the first token as predicted when the request left the queue; of its first attempt alone. */
function predictedTtft(explanation) {
  const chosen = explanation.candidates[0];
  return chosen && explanation.attempts < 2 ? explanation.queue_s + chosen.ttft_s : undefined;
}

function waterfall(explanation) {
  const end = Math.max(...explanation.phases.map((phase) => phase.start_s + phase.seconds));
  const predicted = predictedTtft(explanation);
  const total = Math.max(end, predicted ?? 0, 1e-4) * 1.001;
  const rows = explanation.phases.map((phase) =>
    h(
      "li",
      {},
      h("span", { class: "phase" }, NAMES[phase.name] ?? phase.name, h("small", {}, phase.worker || "router")),
      h("span", { class: "track", "aria-hidden": "true" }, bar(phase, total)),
      h("span", { class: "number" }, phase.running ? `${ms(1000 * phase.seconds)} so far` : ms(1000 * phase.seconds)),
    ),
  );
  const list = h("ol", { class: "waterfall" }, rows);
  if (predicted !== undefined) {
    const mark = h("i", { class: "predicted", title: `predicted first token after ${ms(1000 * predicted)}` });
    list.style.setProperty("--predicted", Math.min(1, predicted / total).toFixed(4));
    list.append(mark);
  }
  const caption = predicted === undefined ? null : h("p", { class: "caption" }, h("i"), `first token as predicted at the end of the queue, ${ms(1000 * predicted)} after arrival`);
  return h("div", {}, list, caption);
}

/** Two bars on one scale: predicted and observed. */
function compare(title, predicted, observed, text) {
  if (predicted === undefined && observed === undefined) return null;
  const top = Math.max(predicted ?? 0, observed ?? 0) || 1;
  const line = (name, value) => {
    const filled = h("span", { class: `span ${name}` });
    filled.style.width = `${(100 * (value ?? 0)) / top}%`;
    return h("div", { class: "pair" }, h("span", {}, name), h("span", { class: "track" }, filled), h("span", { class: "number" }, value === undefined ? "–" : text(value)));
  };
  return h("div", { class: "compare" }, h("h4", {}, title), line("predicted", predicted), line("observed", observed));
}

function candidates(explanation) {
  if (!explanation.candidates.length) return h("p", { class: "muted" }, "The policy compared no candidates by predicted latency.");
  const head = ["candidate", "predicted TTFT", "waiting", "tokens to compute", "predicted TPOT"];
  const rows = explanation.candidates.map((one, index) =>
    h(
      "tr",
      { class: index ? "" : "chosen" },
      h("th", { scope: "row" }, one.worker, one.local ? " (whole request)" : "", index ? null : h("span", { class: "chip" }, "chosen")),
      ...[ms(1000 * one.ttft_s), ms(1000 * one.wait_s), count(one.uncached_tokens), ms(1000 * one.tpot_s)].map((text) => h("td", { class: "number" }, text)),
    ),
  );
  const titles = head.map((text, index) => h("th", { scope: "col", class: index ? "number" : "" }, text));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Candidates" }, h("table", {}, h("thead", {}, h("tr", {}, titles)), h("tbody", {}, rows)));
}

function facts(explanation) {
  const ended = explanation.state !== "running";
  const route = [...new Set([explanation.prefill_worker, explanation.decode_worker].filter(Boolean))].join(" → ");
  const pairs = [
    ["State", explanation.state],
    ["Route", route || "–"],
    ["Policy", explanation.policy],
    ["Why", explanation.why],
    ended && ["Tokens", `${count(explanation.prompt_tokens)} in, ${count(explanation.output_tokens ?? 0)} out`],
    ended && explanation.handoff_bytes > 0 && ["Handed over", bytes(explanation.handoff_bytes)],
    explanation.attempts > 1 && ["Attempts", explanation.attempts],
    explanation.migrations > 0 && ["Migrations", explanation.migrations],
  ];
  return h("dl", { class: "facts" }, pairs.filter(Boolean).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function body(explanation) {
  const chosen = explanation.candidates[0];
  const total = explanation.phases.length ? Math.max(...explanation.phases.map((one) => one.start_s + one.seconds)) : 0;
  const long = (value) => `${value.toFixed(0)} tokens`;
  return [
    h("p", { class: "muted" }, explanation.phases.length ? `${seconds(total)} from arrival to ${explanation.state === "running" ? "now" : "end"}, as the router saw it` : "No times are known."),
    explanation.phases.length ? waterfall(explanation) : null,
    h(
      "div",
      { class: "compares" },
      compare("Time to first token", predictedTtft(explanation), explanation.ttft_s, (value) => ms(1000 * value)),
      compare("Time per output token", chosen?.tpot_s, explanation.tpot_s, (value) => ms(1000 * value)),
      compare("Output length", explanation.output_tokens_p50, explanation.output_tokens, long),
    ),
    facts(explanation),
    h("h3", {}, "Candidates"),
    candidates(explanation),
  ].filter(Boolean);
}

/** Opens the sheet with a request, and keeps it fresh while the request runs and the sheet is open.
 *  `refusal` returns the message of a request that was refused before it was placed. */
export function explainer(refusal) {
  const sheet = byId("sheet");
  const content = byId("sheet-body");
  let shown = 0;
  return async function explain(id) {
    const turn = ++shown;
    byId("sheet-title").textContent = id;
    sheet.dataset.shows = "request";
    if (!sheet.open) sheet.showModal();
    for (;;) {
      let explanation;
      try {
        explanation = await read(`api/explain?id=${encodeURIComponent(id)}`);
      } catch (error) {
        const text = (error.status === 404 && refusal(id)) || error.message;
        if (turn === shown) content.replaceChildren(h("p", { class: "error" }, text));
        return;
      }
      if (turn !== shown || !sheet.open || sheet.dataset.shows !== "request") return;
      content.replaceChildren(...body(explanation));
      if (explanation.state !== "running") return;
      await new Promise((resolve) => setTimeout(resolve, REFRESH_MS));
      if (turn !== shown || !sheet.open || sheet.dataset.shows !== "request") return;
    }
  };
}
