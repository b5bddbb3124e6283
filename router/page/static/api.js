// Talks to the router: its JSON API, and its stream of snapshots. The token stays in this tab.

const KEY = "baton-token";

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

const headers = () => (token.get() ? { authorization: `Bearer ${token.get()}` } : {});

/** An answer of the API that is an error; `status` is HTTP's. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function checked(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new ApiError(response.status, body.error?.message ?? `The router answered ${response.status}.`);
}

/** Reads JSON from a path. */
export async function read(path) {
  return (await checked(await fetch(path, { headers: headers(), cache: "no-store" }))).json();
}

/** Sends JSON to a path, and returns the answer's. */
export async function act(path, body = {}) {
  const sent = { method: "POST", headers: { ...headers(), "content-type": "application/json" }, body: JSON.stringify(body) };
  return (await checked(await fetch(path, sent))).json();
}

/** Calls `onSnapshot` with each snapshot and `onState` with the connection's state, for ever. */
export async function follow(onSnapshot, onState) {
  let failures = 0;
  for (;;) {
    try {
      await listen((snapshot) => {
        failures = 0;
        onState("live", "live");
        onSnapshot(snapshot);
      });
      onState("lost", "the router has ended the stream; connecting again");
    } catch (error) {
      if (error instanceof ApiError && (error.status === 401 || error.status === 403)) {
        onState(error.status === 401 ? "token" : "forbidden", error.message);
        await changed();
        continue;
      }
      onState("lost", error instanceof ApiError ? error.message : "no connection to the router; trying again");
    }
    await new Promise((resolve) => setTimeout(resolve, Math.min(10000, 500 * 2 ** failures++)));
  }
}

/** Resolves when the token has changed. */
const changed = () => new Promise((resolve) => addEventListener("token", resolve, { once: true }));

/** EventSource cannot send a token, so this reads the stream by itself. */
async function listen(onSnapshot) {
  const gone = new AbortController();
  const abort = () => gone.abort();
  addEventListener("token", abort, { once: true });
  try {
    const response = await checked(await fetch("api/events", { headers: headers(), signal: gone.signal }));
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (text + value).split("\n\n");
      text = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) onSnapshot(JSON.parse(part.slice(6)));
    }
  } finally {
    removeEventListener("token", abort);
  }
}
