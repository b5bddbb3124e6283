"""A placement policy of your own, compared with the default one in the simulator. No cluster is needed.

    python docs/examples/policy.py

To serve with it, add the class to the table in router/policy/policies.py: then `baton up --policy NAME` accepts it.
"""

from dataclasses import dataclass

from baton.router.policy.baselines.balancing import RoundRobin
from baton.router.policy.baselines.immediate import ImmediatePlacement
from baton.router.policy.cluster_state import ClusterState, WorkerView
from baton.router.policy.placement import Placement, PlacementInput
from baton.router.policy.predicted_latency import PredictedLatency
from baton.simulator.setup import Pools, Setup
from baton.simulator.simulation import Simulation
from baton.simulator.trace import Synthetic


@dataclass(eq=False)
class LeastWork(ImmediatePlacement):
    """Prefill where the fewest prompt tokens are left to compute; decode where the most pages are free."""

    name: str = "least_work"

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        cached = state.cached_tokens(item.page_keys, item.num_tokens)
        return min(views, key=lambda view: (view.pending_prefill_tokens - cached[view.row], view.name))

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        return min(views, key=lambda view: (-view.pages_available, view.name))


cluster = Setup("llama-3.1-8b", "h100").cluster(Pools(prefill=2, decode=2))
trace = Synthetic(requests=400, rate_s=8.0, prompt_median=2000).generate(seed=0)
policies: list[Placement] = [RoundRobin(), LeastWork(), PredictedLatency()]
for policy in policies:
    result = Simulation(cluster, policy, trace).run()
    ttft_s = result.figures()["ttft_s_p90"]
    print(f"{policy.name:<18} {result.attainment:4.0%} in time, TTFT p90 {ttft_s:.2f} s")
