"""Stream an answer token by token, then say where it was computed and how long that took.

    baton up
    python docs/examples/stream.py
    baton down

Set $BATON_ADDRESS to the host:port of a cluster on another machine.
"""

import baton

with baton.Client() as client:
    stream = client.stream("write : the old fox", max_tokens=40, temperature=0.8, seed=1)
    for token in stream:
        print(token.text, end="", flush=True)
    answer = stream.answer

print(f"\n\nroute    {answer.prefill_worker} → {answer.decode_worker}")
print(f"tokens   {answer.prompt_tokens} prompt, {answer.output_tokens} output, ended by {answer.finish_reason}")
print(f"latency  TTFT {1000 * answer.ttft_s:.1f} ms, TPOT {1000 * (answer.tpot_s or 0):.1f} ms")
