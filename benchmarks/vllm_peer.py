"""vLLM's side of `benchmarks.engine`, run by the Python of vLLM's own environment: `PYTHON -I vllm_peer.py JOB FD`.

It imports vLLM and the standard library only. JOB is a JSON file (see `benchmarks/vllm_side.py`). Once the engine is
loaded and warm, it writes a line of JSON to the descriptor FD, and then one line for each line from standard input.
vLLM's prefix cache is off, so that every run computes everything.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def load(job: dict[str, Any]) -> Any:
    """vLLM's engine with the limits of the other side."""
    from vllm import LLM

    return LLM(
        model=job["checkpoint"],
        skip_tokenizer_init=True,
        dtype=job["dtype"],
        max_model_len=job["context_tokens"],
        max_num_seqs=job["batch"],
        max_num_batched_tokens=job["chunk_tokens"],
        enable_prefix_caching=False,
        seed=0,
    )


def generate(engine: Any, job: dict[str, Any], prompts: list[list[int]]) -> dict[str, Any]:
    """Answer every prompt; returns the seconds and the tokens."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=job["new_tokens"], ignore_eos=True, detokenize=False)
    started = time.perf_counter()
    outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": [list(output.outputs[0].token_ids) for output in outputs]}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    with os.fdopen(int(sys.argv[2]), "w") as results:
        engine = load(job)
        generate(engine, job, job["prompts"][: job["batch"]])  # Warm-up.

        def write(result: dict[str, Any]) -> None:
            results.write(json.dumps(result) + "\n")
            results.flush()

        write({"ready": True})
        for _ in sys.stdin:
            write(generate(engine, job, job["prompts"]))


if __name__ == "__main__":
    main()
