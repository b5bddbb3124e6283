"""State the latency that requests need, and retry those that the router refuses.

    baton up
    python docs/examples/objectives.py
    baton down

The default policy refuses at once what it cannot serve in time, and says when there may be room.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import baton


def ask(client: baton.Client, prompt: str, ttft_s: float) -> tuple[baton.Answer, int]:
    """The answer, and how often the router refused before. Raises `Overloaded` if even an idle worker is too slow."""
    refusals = 0
    while True:
        try:
            return client.generate(prompt, max_tokens=8, objectives=baton.Objectives(ttft_s=ttft_s)), refusals
        except baton.Overloaded as refusal:
            if refusal.retry_after_s is None:
                raise
            refusals += 1
            time.sleep(refusal.retry_after_s)


prompts = ["".join(f"maple = {1000 * start + line}\n" for line in range(150)) for start in range(1, 25)]
with baton.Client() as client, ThreadPoolExecutor(len(prompts)) as threads:
    answers = list(threads.map(lambda prompt: ask(client, prompt, ttft_s=1.0), prompts))
    slowest_s = max(answer.ttft_s for answer, _ in answers)
    print(f"{len(answers)} served, {sum(refusals for _, refusals in answers)} refusals, TTFT at most {slowest_s:.2f} s")
    try:
        ask(client, prompts[0], ttft_s=0.00001)
    except baton.Overloaded as refusal:
        print(refusal)
