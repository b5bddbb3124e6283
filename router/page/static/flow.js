// Requests as dots that move from the queue to a prefill worker, and with their pages to a decode worker.
// Every move is one that happened, at its own time, shown a moment later: snapshots come once a second.

const DELAY_MS = 1300;
const MOVE_MS = 380; // The shortest time in which a dot is shown to move
const FADE_MS = 500;
const KEPT_MS = 4000;
const WAKE_MS = 2600; // The way of a handoff stays visible for so long, fading
const MANY = 100; // Workers from which positions are not measured each second, and every second frame is drawn
const still = matchMedia("(prefers-reduced-motion: reduce)");

/** How far the arc between two places leaves the straight line. */
const bend = (from, to) => Math.min(36, Math.hypot(to.x - from.x, to.y - from.y) / 6);

const ease = (t) => (t < 0.5 ? 4 * t * t * t : 1 - (-2 * t + 2) ** 3 / 2);

/** CRC-32 of a text, by which the router chooses the requests that are shown, too. */
function crc32(text) {
  let value = -1;
  for (const byte of new TextEncoder().encode(text)) {
    value ^= byte;
    for (let bit = 0; bit < 8; bit++) value = (value >>> 1) ^ (value & 1 ? 0xedb88320 : 0);
  }
  return ~value >>> 0;
}

const hash = (text) => (Math.imul(crc32(text), 2654435761) >>> 0) / 4294967296;

export class Flow {
  constructor(stage, canvas) {
    this.stage = stage;
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.tracks = new Map(); // request id → { steps: [{ phase, worker, at }], ended, failed, seed }
    this.boxes = new Map(); // worker → its box on the stage
    this.colours = {};
    this.every = 1;
    this.running = false;
    new ResizeObserver(() => this.measure()).observe(stage);
    document.addEventListener("visibilitychange", () => this.wake());
    this.recolour();
  }

  /** Reads the colours of the theme. */
  recolour() {
    for (const phase of ["queue", "prefill", "handoff", "decode", "bad"]) {
      const probe = document.createElement("i");
      probe.className = `probe ${phase}`;
      this.stage.append(probe);
      this.colours[phase] = getComputedStyle(probe).color;
      probe.remove();
    }
  }

  /** Finds where workers are. */
  measure() {
    const origin = this.stage.getBoundingClientRect();
    const scale = devicePixelRatio || 1;
    this.width = origin.width;
    this.height = origin.height;
    if (this.canvas.width !== Math.round(origin.width * scale) || this.canvas.height !== Math.round(origin.height * scale)) {
      this.canvas.width = Math.round(origin.width * scale);
      this.canvas.height = Math.round(origin.height * scale);
    }
    this.context.setTransform(scale, 0, 0, scale, 0, 0);
    this.boxes.clear();
    for (const element of this.stage.querySelectorAll("[data-worker], [data-queue]")) {
      const box = (element.querySelector(".dots") ?? element).getBoundingClientRect();
      this.boxes.set(element.dataset.worker ?? "", {
        x: box.left - origin.left,
        y: box.top - origin.top,
        width: box.width,
        height: box.height,
      });
    }
  }

  /** Takes in the tracks of a snapshot that has just arrived; one of `every` requests is shown. */
  add(tracks, every) {
    const now = performance.now();
    if (every > this.every) for (const id of this.tracks.keys()) if (crc32(id) % every) this.tracks.delete(id);
    this.every = every;
    for (const [id, state, steps, endedAgo] of tracks) {
      this.tracks.set(id, {
        steps: steps.map(([phase, worker, ago]) => ({ phase, worker, at: now - ago })),
        ended: endedAgo === null ? Infinity : now - endedAgo,
        failed: state === "failed",
        seed: this.tracks.get(id)?.seed ?? hash(id),
      });
    }
    if (!this.boxes.size || this.boxes.size < MANY) this.measure();
    this.wake();
  }

  /** Forgets the live requests that are not in a whole snapshot. */
  reset() {
    this.tracks.clear();
  }

  wake() {
    if (this.running || document.hidden) return;
    this.running = true;
    if (still.matches) {
      this.draw(performance.now() - DELAY_MS);
      this.running = false;
    } else requestAnimationFrame(() => this.frame());
  }

  frame() {
    this.odd = !this.odd;
    if (this.odd || this.boxes.size < MANY) this.draw(performance.now() - DELAY_MS);
    if (this.tracks.size && !document.hidden && !still.matches) requestAnimationFrame(() => this.frame());
    else this.running = false;
  }

  /** A request's own place within a box. */
  place(box, seed) {
    const inset = Math.min(5, box.width / 2);
    const rows = Math.max(1, Math.floor(box.height / 9));
    return {
      x: box.x + inset + ((seed * 7919) % 1) * Math.max(0, box.width - 2 * inset),
      y: box.y + (rows === 1 ? box.height / 2 : 4.5 + Math.floor(seed * rows) * 9),
    };
  }

  at(step, seed) {
    const box = this.boxes.get(step.phase === "queue" ? "" : step.worker);
    return box && this.place(box, seed);
  }

  draw(time) {
    const { context } = this;
    context.clearRect(0, 0, this.width, this.height);
    if (!still.matches) for (const track of this.tracks.values()) this.wakeOf(track, time);
    for (const [id, track] of this.tracks) {
      if (time - track.ended > FADE_MS || (track.ended === Infinity && time - track.steps.at(-1).at > 600000)) {
        if (time - track.ended > KEPT_MS) this.tracks.delete(id);
        continue;
      }
      this.drawTrack(track, time);
    }
  }

  drawTrack(track, time) {
    const index = track.steps.findLastIndex((step) => step.at <= time);
    if (index < 0) return;
    const step = track.steps[index];
    const next = track.steps[index + 1];
    const from = index ? this.at(track.steps[index - 1], track.seed) : null;
    const to = this.at(step, track.seed) ?? from;
    if (!to) return;
    let progress = 1;
    if (from && !still.matches) {
      const span = step.phase === "handoff" ? (next?.at ?? time + 1) - step.at : 0;
      progress = Math.min(1, (time - step.at) / Math.max(MOVE_MS, Math.min(span, 5000)));
    }
    const moving = progress < 1 && from && (from.x !== to.x || from.y !== to.y);
    const fade = track.ended < time ? 1 - (time - track.ended) / FADE_MS : 1;
    const ended = track.ended < time;
    const colour = this.colours[ended && track.failed ? "bad" : moving && step.phase === "decode" ? "handoff" : step.phase];
    if (moving) this.trail(from, to, progress, colour);
    if (moving && step.phase === "handoff") {
      this.baton(this.along(from, to, ease(progress)), this.along(from, to, ease(progress) + 0.01));
      return;
    }
    const point = moving ? this.along(from, to, ease(progress)) : to;
    this.dot(point, colour, ended ? fade : 1, ended ? 3.5 + 6 * (1 - fade) : moving ? 4.5 : 3.5, ended);
  }

  /** The way that a handoff has taken, from pool to pool. */
  wakeOf(track, time) {
    const index = track.steps.findIndex((step) => step.phase === "handoff");
    if (index < 1) return;
    const age = (time - track.steps[index].at - MOVE_MS) / WAKE_MS;
    const from = this.at(track.steps[index - 1], track.seed);
    const to = this.at(track.steps[index], track.seed);
    if (age < 0 || age > 1 || !from || !to) return;
    const { context } = this;
    const gradient = context.createLinearGradient(from.x, from.y, to.x, to.y);
    gradient.addColorStop(0, this.colours.prefill);
    gradient.addColorStop(0.5, this.colours.handoff);
    gradient.addColorStop(1, this.colours.decode);
    context.strokeStyle = gradient;
    context.lineWidth = 1.5;
    context.globalAlpha = 0.55 * (1 - age) ** 2;
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.quadraticCurveTo((from.x + to.x) / 2, (from.y + to.y) / 2 - 2 * bend(from, to), to.x, to.y);
    context.stroke();
    context.globalAlpha = 1;
  }

  /** A point on the arc between two places. */
  along(from, to, t) {
    const lift = 4 * t * (1 - t) * bend(from, to);
    return { x: from.x + (to.x - from.x) * t, y: from.y + (to.y - from.y) * t - lift };
  }

  trail(from, to, progress, colour) {
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = 2;
    context.lineCap = "round";
    const end = ease(progress);
    const steps = 10;
    for (let index = 0; index < steps; index++) {
      const a = Math.max(0, end - (0.22 * (steps - index)) / steps);
      const b = Math.max(0, end - (0.22 * (steps - index - 1)) / steps);
      const [one, other] = [this.along(from, to, a), this.along(from, to, b)];
      context.globalAlpha = (0.6 * index) / steps;
      context.beginPath();
      context.moveTo(one.x, one.y);
      context.lineTo(other.x, other.y);
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  /** The pages on their way: a stick along the way, in the colours of both pools. */
  baton(point, ahead) {
    const { context } = this;
    const angle = Math.atan2(ahead.y - point.y, ahead.x - point.x);
    const [x, y] = [8 * Math.cos(angle), 8 * Math.sin(angle)];
    const gradient = context.createLinearGradient(point.x - x, point.y - y, point.x + x, point.y + y);
    gradient.addColorStop(0, this.colours.prefill);
    gradient.addColorStop(0.5, this.colours.handoff);
    gradient.addColorStop(1, this.colours.decode);
    context.strokeStyle = gradient;
    context.lineWidth = 5;
    context.lineCap = "round";
    context.beginPath();
    context.moveTo(point.x - x, point.y - y);
    context.lineTo(point.x + x, point.y + y);
    context.stroke();
  }

  dot(point, colour, alpha, radius, hollow) {
    const { context } = this;
    context.globalAlpha = Math.max(0, alpha);
    context.beginPath();
    context.arc(point.x, point.y, radius, 0, 2 * Math.PI);
    if (hollow) {
      context.strokeStyle = colour;
      context.lineWidth = 1.5;
      context.stroke();
    } else {
      context.fillStyle = colour;
      context.fill();
    }
    context.globalAlpha = 1;
  }
}
