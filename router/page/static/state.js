// The cluster as the snapshots describe it.

const MAX_POINTS = 300;

export class State {
  constructor() {
    this.columns = [];
    this.workers = new Map(); // name → { name, role, state, … }
    this.points = [];
    this.cluster = null;
    this.gateways = [];
    this.requests = [];
    this.operations = [];
    this.refusals = [];
  }

  /** Takes in a snapshot: whole, or the changes since the one before. */
  apply(snapshot) {
    if (snapshot.whole) {
      this.columns = snapshot.columns;
      this.workers.clear();
      this.points = [];
    }
    for (const [name, row] of Object.entries(snapshot.workers)) {
      const worker = { name };
      this.columns.forEach((column, index) => (worker[column] = row[index]));
      this.workers.set(name, worker);
    }
    for (const name of snapshot.gone ?? []) this.workers.delete(name);
    this.points.push(...snapshot.points);
    this.points.splice(0, this.points.length - MAX_POINTS);
    for (const name of ["cluster", "gateways", "requests", "operations", "refusals"]) {
      if (snapshot[name] !== undefined) this[name] = snapshot[name];
    }
  }

  /** The workers of each pool, in the order of their numbers: [["prefill", [worker, …]], …]. */
  pools() {
    const order = new Intl.Collator("en", { numeric: true });
    const workers = [...this.workers.values()].sort((a, b) => order.compare(a.name, b.name));
    return ["prefill", "mixed", "decode"]
      .map((role) => [role, workers.filter((worker) => worker.role === role)])
      .filter(([, members]) => members.length);
  }

  /** The sum of a column over all workers. */
  sum(column) {
    let sum = 0;
    for (const worker of this.workers.values()) sum += worker[column];
    return sum;
  }

  get latest() {
    return this.points.at(-1) ?? [0, 0, 0, 0, 0, null, null, null, null];
  }
}
