"""Kill the worker that computes an answer: the stream pauses, then continues with the next token.

    baton up --prefill 1 --decode 2 --dtype float32
    python docs/examples/resume.py
    baton down

Run it on the workers' machine, because it kills one of their processes; Ray starts that one again.
In float32 the tokens equal those of a run in which nothing dies.
"""

import os
import signal
import time

import baton


def busy_worker(admin: baton.Admin) -> tuple[str, int]:
    """Name and process id of the decode worker that reports a running sequence."""
    while True:
        for pool in admin.cluster().pools:
            for worker in pool.workers:
                if pool.role == "decode" and worker.running:
                    return worker.name, worker.pid


sampling = baton.SamplingParams(max_tokens=600, ignore_eos=True, temperature=0.8, seed=5)
with baton.Client() as client, baton.Admin() as admin:
    stream = client.stream("write : the old fox", sampling)
    tokens = [next(stream)]
    name, pid = busy_worker(admin)
    os.kill(pid, signal.SIGKILL)
    print(f"killed {name}")

    pause_s = 0.0
    received_s = time.monotonic()
    for token in stream:
        pause_s = max(pause_s, time.monotonic() - received_s)
        received_s = time.monotonic()
        tokens.append(token)
    undisturbed = client.generate("write : the old fox", sampling)

print(f"continued on {stream.answer.decode_worker} after a pause of {pause_s:.1f} s")
print("every index once:", [token.index for token in tokens] == list(range(600)))
print("same tokens as undisturbed:", [token.id for token in tokens] == undisturbed.token_ids)
