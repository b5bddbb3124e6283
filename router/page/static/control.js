// What an operator can do: pools, policy, planner. Every act is shown as a plan first, and confirmed.

import { act, ApiError, read, token } from "./api.js";
import { byId, h, keyed, setText } from "./dom.js";
import { bytes, count, many, ms, percent, seconds } from "./format.js";

const dialog = byId("ask");

/** Asks before an act. `yes` is what the confirming button does; an error of it is shown, and the dialog stays. */
function ask(title, content, button, yes) {
  byId("ask-title").textContent = title;
  byId("ask-body").replaceChildren(...content);
  byId("ask-error").textContent = "";
  const confirm = byId("ask-yes");
  confirm.textContent = button ?? "";
  confirm.hidden = button === null;
  confirm.disabled = false;
  dialog.querySelector("form").onsubmit = async (event) => {
    event.preventDefault();
    confirm.disabled = true;
    try {
      await yes();
      dialog.close();
    } catch (error) {
      byId("ask-error").textContent = error.message;
      confirm.disabled = false;
    }
  };
  if (!dialog.open) dialog.showModal();
}

/** Asks for a token; it is kept in this tab alone. */
export function askToken(message = "") {
  const input = h("input", { type: "password", id: "token", name: "token", autocomplete: "off", required: !token.get() });
  const content = [
    message ? h("p", {}, message) : null,
    h("label", { for: "token" }, "Token"),
    input,
    h("p", { class: "muted" }, "The role watch may look, the role admin may act. The token stays in this tab; an empty one is forgotten."),
  ];
  ask("Token of an operator", content.filter(Boolean), "Use", async () => {
    token.set(input.value.trim());
    dispatchEvent(new Event("token"));
  });
  input.focus();
}

function failed(title, error) {
  if (error instanceof ApiError && error.status === 401) askToken(error.message);
  else ask(title, [h("p", { class: "error" }, error.message)], null, async () => {});
}

/** Plans an operation, shows its steps, and starts it once confirmed. */
export async function plan(request) {
  let planned;
  try {
    planned = await act("api/operations", { ...request, dry_run: true });
  } catch (error) {
    failed("This cannot be done", error);
    return;
  }
  const steps = planned.steps.map((step) => h("li", {}, h("strong", {}, step.worker), " ", step.action, step.detail ? h("small", {}, step.detail) : null));
  const content = steps.length
    ? [h("p", {}, `${steps.length > 1 ? `${steps.length} steps, one at a time` : "One step"}. Requests go on without interruption.`), h("ol", { class: "steps" }, steps)]
    : [h("p", {}, planned.message || "There is nothing to do.")];
  ask(`Plan: ${planned.title}`, content, steps.length ? "Start" : null, () => act("api/operations", request));
}

function confirmed(title, sentence, button, yes) {
  ask(title, [h("p", {}, sentence)], button, yes);
}

/** Fills the panel of controls, and returns a function that shows the cluster's policy and planner in it. */
export function controls(parent) {
  const policy = h("select", { id: "policy" });
  const switchTo = h("button", { type: "button" }, "Switch");
  const prefill = h("input", { type: "number", id: "rebalance-prefill", min: 1, value: 1, inputmode: "numeric" });
  const decode = h("input", { type: "number", id: "rebalance-decode", min: 1, value: 1, inputmode: "numeric" });
  const auto = h("button", { type: "button", role: "switch", "aria-checked": "false", class: "switch", id: "auto" });
  const advice = h("p", { class: "muted", id: "advice" });
  const form = h(
    "form",
    { class: "row", id: "rebalance" },
    h("span", { class: "label" }, "Pools"),
    h("label", {}, "prefill ", prefill),
    h("label", {}, "decode ", decode),
    h("button", { type: "submit" }, "Rebalance"),
  );
  parent.append(
    form,
    h("div", { class: "row" }, h("span", { class: "label", id: "auto-label" }, "Automatic"), auto),
    advice,
    h("div", { class: "row" }, h("label", { class: "label", for: "policy" }, "Policy"), policy, switchTo),
  );
  auto.setAttribute("aria-labelledby", "auto-label");
  let touched = false;
  form.addEventListener("input", () => (touched = true));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    touched = false;
    plan({ rebalance: { prefill: Number(prefill.value), decode: Number(decode.value) } });
  });
  auto.addEventListener("click", () => {
    const on = auto.getAttribute("aria-checked") !== "true";
    const sentence = on
      ? "The planner moves workers between the pools by itself when its forecast and prediction agree."
      : "The planner only advises; workers stay where they are.";
    confirmed(`Turn automatic moves ${on ? "on" : "off"}?`, sentence, on ? "Turn on" : "Turn off", () => act("api/auto", { on }));
  });
  switchTo.addEventListener("click", () => {
    const name = policy.value;
    confirmed(`Switch to ${name}?`, "New and waiting requests are placed by it. Running requests stay where they are.", "Switch", () => act("api/policy", { name }));
  });
  policy.addEventListener("change", () => (policy.touched = true));
  const load = () => read("api/policy").then(({ known }) => policy.replaceChildren(...known.map((name) => h("option", { value: name }, name))), () => {});
  return (state) => {
    const { planner, settings } = state.cluster;
    if (!policy.options.length && !policy.asked) {
      policy.asked = true;
      load().then(() => (policy.asked = false));
    }
    if (policy.options.length && !policy.touched && policy.value !== settings.policy) policy.value = settings.policy;
    if (policy.value === settings.policy) policy.touched = false;
    switchTo.disabled = policy.value === settings.policy;
    auto.setAttribute("aria-checked", String(planner.auto));
    setText(auto, planner.auto ? "on" : "off");
    const wants = planner.prefill || planner.decode;
    setText(advice, wants ? `The planner advises ${planner.prefill} prefill + ${planner.decode} decode: ${planner.why}` : "The planner has no advice yet.");
    if (!touched) {
      const sizes = Object.fromEntries(state.pools().map(([role, workers]) => [role, workers.length]));
      prefill.value = planner.prefill || sizes.prefill || 1;
      decode.value = planner.decode || sizes.decode || 1;
    }
  };
}

function makeOperation(operation) {
  const parts = { state: h("span", { class: "chip" }), bar: h("progress", { max: 1, value: 0 }), text: h("p", { class: "muted" }), steps: h("ol", { class: "steps" }) };
  parts.cancel = h("button", { type: "button", class: "quiet", onclick: () => cancel(operation) }, "Cancel");
  const element = h("article", { class: "operation" }, h("span", { class: "line" }, h("strong", {}, operation.title), parts.state), parts.bar, parts.text, parts.steps, parts.cancel);
  parts.bar.setAttribute("aria-label", operation.title);
  element.parts = parts;
  return element;
}

function cancel(operation) {
  confirmed(`Cancel ${operation.title}?`, "Its remaining steps are cancelled; what was done stays.", "Cancel it", () =>
    act(`api/operations/${encodeURIComponent(operation.operation_id)}/cancel`),
  );
}

function updateOperation(element, operation) {
  const { parts } = element;
  const done = operation.steps.filter((step) => ["done", "failed", "cancelled"].includes(step.state)).length;
  const running = operation.state === "running";
  element.dataset.state = operation.state;
  setText(parts.state, operation.state);
  parts.bar.value = operation.steps.length ? done / operation.steps.length : 1;
  parts.bar.hidden = parts.cancel.hidden = parts.steps.hidden = !running;
  const took = `${many(operation.steps.length, "step")} in ${seconds(operation.elapsed_s)}`;
  setText(parts.text, running ? `${done} of ${operation.steps.length} steps` : operation.message ? `${took}: ${operation.message}` : took);
  if (!running) return;
  keyed(
    parts.steps,
    operation.steps,
    (step) => `${step.worker} ${step.action}`,
    () => h("li"),
    (item, step) => setText(item, `${step.worker} ${step.action}: ${step.state}${step.detail ? `, ${step.detail}` : ""}`),
  );
}

/** Shows running and recent operations. */
export function operations(parent) {
  const list = h("div", { class: "operations" });
  const empty = h("p", { class: "empty" }, "None so far.");
  parent.append(list, empty);
  return (known) => {
    const shown = known.filter((one) => one.state !== "planned").slice(0, 5);
    empty.hidden = shown.length > 0;
    keyed(list, shown, (one) => one.operation_id, makeOperation, updateOperation);
  };
}

/** Opens the sheet with a worker, and returns a function that keeps it fresh. */
export function workerSheet(state) {
  const sheet = byId("sheet");
  const content = byId("sheet-body");
  let name = null;
  function show() {
    const worker = state.workers.get(name);
    if (!sheet.open || sheet.dataset.shows !== "worker") return;
    if (!worker) {
      content.replaceChildren(h("p", { class: "error" }, "It has left the cluster."));
      return;
    }
    const share = (pages) => `${count(pages)} of ${count(worker.pages_total)} pages, ${percent(pages, worker.pages_total)}`;
    const pairs = [
      ["State", worker.silent_s ? `silent for ${worker.silent_s} s` : worker.state],
      ["Pool", worker.role],
      ["Host", [worker.host, worker.device].filter(Boolean).join(", ") || "–"],
      ["Processes", worker.rank_pids.join(", ")],
      ["KV in use", share(worker.pages_in_use)],
      ["Prefix cache", share(worker.pages_cached)],
      ["Predicted peak", share(worker.peak_pages)],
      ["Sequences", `${worker.running} running, ${worker.waiting} waiting, ${worker.swapped} swapped out`],
      ["Prompt left", `${many(worker.prompt_tokens, "token")}, predicted ${seconds(worker.busy_s)}`],
      ["Context", many(worker.context_tokens, "token")],
      ["Predicted TPOT", worker.tpot_ms ? ms(worker.tpot_ms) : "–"],
    ];
    const texts = content.querySelectorAll("dd");
    if (content.firstElementChild?.dataset.worker === name && texts.length === pairs.length) {
      pairs.forEach(([, value], index) => setText(texts[index], value));
    } else {
      content.replaceChildren(
        h("dl", { class: "facts", "data-worker": name }, pairs.flatMap(([title, value]) => [h("dt", {}, title), h("dd", {}, value)])),
        h("div", { class: "buttons" }, h("button", { type: "button", class: "strong", id: "drain" })),
      );
    }
    const button = byId("drain");
    const kind = worker.state === "serving" ? "drain" : "undrain";
    setText(button, kind === "drain" ? "Drain…" : "Undrain…");
    button.onclick = () => plan({ [kind]: { workers: [name] } });
  }
  return {
    show,
    open(chosen) {
      name = chosen;
      byId("sheet-title").textContent = chosen;
      sheet.dataset.shows = "worker";
      content.replaceChildren();
      if (!sheet.open) sheet.showModal();
      show();
    },
  };
}
