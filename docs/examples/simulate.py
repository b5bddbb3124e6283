"""Find out how four H100s should be split for a trace, in virtual time. No GPU and no cluster is needed.

    python docs/examples/simulate.py                      # made-up conversations
    python docs/examples/simulate.py conversation.jsonl   # a Mooncake JSONL or Azure CSV trace

`baton simulate` and `baton plan` do the same from the command line, with many more options.
"""

import sys
from pathlib import Path

from baton.simulator.setup import Pools, Setup
from baton.simulator.simulation import Slo
from baton.simulator.trace import Synthetic, read_trace

if len(sys.argv) > 1:
    trace = read_trace(Path(sys.argv[1]))[:150]
else:
    trace = Synthetic(requests=150, rate_s=16.0, prompt_median=2000).generate(seed=0)

setup = Setup("llama-3.1-8b", "h100", slo=Slo(ttft_s=1.0, tpot_s=0.03))
for pools in (Pools(prefill=1, decode=3), Pools(prefill=2, decode=2), Pools(prefill=3, decode=1), Pools(mixed=4)):
    result = setup.simulate(pools, trace)
    figures = result.figures()
    print(
        f"{pools!s:<22} {result.attainment:4.0%} in time, {result.goodput:5.2f} requests/s, "
        f"TTFT p90 {figures['ttft_s_p90']:.2f} s, TPOT p90 {1000 * figures['tpot_s_p90']:.1f} ms"
    )
