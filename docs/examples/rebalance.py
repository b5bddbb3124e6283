"""Move a decode worker to the prefill pool and back from a script, while a request is served.

    baton up --prefill 1 --decode 2
    python docs/examples/rebalance.py
    baton down

`baton rebalance --prefill 2 --decode 1` does the same by hand.
"""

import baton


def move(admin: baton.Admin, prefill: int, decode: int) -> None:
    """Resize the pools and wait until every worker has its role."""
    operation = admin.rebalance(prefill, decode)
    *_, operation = admin.watch(operation.operation_id)
    print(f"{prefill} prefill, {decode} decode: {operation.state} after {operation.elapsed_s:.1f} s")


with baton.Client() as client, baton.Admin() as admin:
    stream = client.stream("write : the old fox", max_tokens=300, ignore_eos=True)
    tokens = [next(stream)]
    sizes = {pool.role: len(pool.workers) for pool in admin.cluster().pools}
    move(admin, sizes["prefill"] + 1, sizes["decode"] - 1)
    move(admin, sizes["prefill"], sizes["decode"])
    tokens += stream

print(f"the request got {len(tokens)} tokens and was migrated {stream.answer.migrations} times")
