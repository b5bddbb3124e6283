"""The policies of other systems, each written from its published formula, to be compared with on equal terms.

All of them send a request to workers the moment it arrives (the queues are the workers'), as those systems do, and hand
every request over from a prefill to a decode worker. Where there are no two pools, workers that decode serve whole
requests. Sources: docs/policies.md.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.errors import Overloaded
from cluster.routing import RoutingDecision
from cluster.worker import RoleName
from router.policy.cluster_state import ClusterState, WorkerView
from router.policy.placement import Place, PlacementInput, Refuse


@dataclass(eq=False)
class ImmediatePlacement:
    """What the peers share: place the first in line now. A policy chooses among views, given in the order of names."""

    seed: int = 0
    name: str = ""
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def decide(self, queue: Sequence[PlacementInput], state: ClusterState, now: float) -> list[Place | Refuse]:
        if not queue:
            return []
        item = queue[0]
        prefill, decode = state.pool(RoleName.PREFILL), state.pool(RoleName.DECODE)
        if prefill and decode:
            refusal = self.refuse(item, prefill, decode, state, now)
            if refusal is not None:
                return [Refuse(item.request_id, refusal)]
            target = self.choose_decode(item, decode, state, now)
            source = self.choose_prefill(item, prefill, target, state, now)
            return [Place(item.request_id, RoutingDecision(source.name, target.name, False, f"chosen by {self.name}"))]
        views = state.pool(RoleName.MIXED, RoleName.DECODE)
        if not views:
            return []
        view = self.choose_prefill(item, views, None, state, now)
        return [Place(item.request_id, RoutingDecision(view.name, None, True, f"chosen by {self.name}"))]

    def find_decode(self, item: PlacementInput, state: ClusterState, avoid: str | None, now: float) -> str | None:
        """After a refused reservation: whoever has room, by the policy's own choice."""
        pages = -(-item.num_tokens // max((view.info.page_size for view in state.workers.values()), default=1)) + 1
        views = [view for view in state.pool(RoleName.DECODE) if view.name != avoid and view.pages_available >= pages]
        return self.choose_decode(item, views, state, now).name if views else None

    def refuse(
        self,
        item: PlacementInput,
        prefill: list[WorkerView],
        decode: list[WorkerView],
        state: ClusterState,
        now: float,
    ) -> Overloaded | None:
        return None

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], target: WorkerView | None, state: ClusterState, now: float
    ) -> WorkerView:
        raise NotImplementedError

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        raise NotImplementedError


def in_flight(view: WorkerView) -> int:
    """Requests a worker has been given and has not finished."""
    return view.sequences


@dataclass(eq=False)
class RoundRobin(ImmediatePlacement):
    name: str = "round_robin"
    _next: dict[str, int] = field(default_factory=dict)

    def _turn(self, pool: str, views: list[WorkerView]) -> WorkerView:
        index = self._next.get(pool, 0)
        self._next[pool] = index + 1
        return views[index % len(views)]

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], target: WorkerView | None, state: ClusterState, now: float
    ) -> WorkerView:
        return self._turn("prefill", views)

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        return self._turn("decode", views)


@dataclass(eq=False)
class Random(ImmediatePlacement):
    name: str = "random"

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], target: WorkerView | None, state: ClusterState, now: float
    ) -> WorkerView:
        return self.rng.choice(views)

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        return self.rng.choice(views)


@dataclass(eq=False)
class LeastLoaded(ImmediatePlacement):
    """Join the shortest queue: the fewest requests in flight."""

    name: str = "least_loaded"

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], target: WorkerView | None, state: ClusterState, now: float
    ) -> WorkerView:
        return min(views, key=lambda view: (in_flight(view), view.name))

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        return min(views, key=lambda view: (in_flight(view), view.name))


@dataclass(eq=False)
class PowerOfTwo(ImmediatePlacement):
    """TetriInfer: least loaded prefill; of two random decode workers whose memory fits the one with fewer long answers.

    Its length classifier is replaced by our predictor, cut at `heavy_tokens`.
    """

    name: str = "power_of_two"
    heavy_tokens: int = 512

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], target: WorkerView | None, state: ClusterState, now: float
    ) -> WorkerView:
        return min(views, key=lambda view: (view.uncomputed_tokens, view.name))

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        tokens = item.num_tokens + item.output.median
        fitting = [view for view in views if view.pages_available * view.info.page_size >= tokens] or views
        pair = fitting if len(fitting) < 3 else self.rng.sample(fitting, 2)
        return min(pair, key=lambda view: (self._heavy_ratio(view), in_flight(view), view.name))

    def _heavy_ratio(self, view: WorkerView) -> float:
        heavy = sum(one.output.median > self.heavy_tokens for one in view.running.values())
        return heavy / max(len(view.running) - heavy, 1)


@dataclass(eq=False)
class CacheAware(ImmediatePlacement):
    """sglang's gateway: the longest match above a share of the prompt, unless loads differ too much; decode power of two."""

    name: str = "cache_aware"
    match_share: float = 0.3
    imbalance_requests: int = 64
    imbalance_ratio: float = 1.5

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], target: WorkerView | None, state: ClusterState, now: float
    ) -> WorkerView:
        loads = [in_flight(view) for view in views]
        least = min(views, key=lambda view: (in_flight(view), view.name))
        if max(loads) - min(loads) > self.imbalance_requests and max(loads) > self.imbalance_ratio * min(loads):
            return least
        cached = state.cached_tokens(item.page_keys, item.num_tokens)
        best = max(views, key=lambda view: (cached[view.row], -in_flight(view), view.name))
        return best if cached[best.row] > self.match_share * item.num_tokens else least

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        pair = views if len(views) < 3 else self.rng.sample(views, 2)
        return min(pair, key=lambda view: (in_flight(view), view.name))


@dataclass(eq=False)
class KvRouter(ImmediatePlacement):
    """Dynamo's KV router: blocks to prefill (less the overlap) plus blocks being decoded, the least wins.

    With a temperature above 0 a softmax over the normalised negative costs is drawn from.
    """

    name: str = "kv_router"
    overlap_credit: float = 1.0
    prefill_scale: float = 1.0
    temperature: float = 0.0

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], target: WorkerView | None, state: ClusterState, now: float
    ) -> WorkerView:
        cached = state.cached_tokens(item.page_keys, item.num_tokens)
        return self._pick(views, [self._cost(item, view, int(cached[view.row])) for view in views])

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        # The decode leg of disaggregated serving: no credit for overlap, prompts are not counted.
        blocks = [sum(one.tokens for one in view.running.values()) / view.info.page_size for view in views]
        return self._pick(views, blocks)

    def _cost(self, item: PlacementInput, view: WorkerView, cached: int) -> float:
        size = view.info.page_size
        prefill = (view.uncomputed_tokens + item.num_tokens) / size
        adjusted = max(prefill - self.overlap_credit * cached / size, 0.0)
        decode = sum(one.tokens for one in view.running.values()) / size
        return self.prefill_scale * adjusted + decode + item.num_tokens / size

    def _pick(self, views: list[WorkerView], costs: list[float]) -> WorkerView:
        if self.temperature <= 0.0:
            return min(zip(costs, views, strict=True), key=lambda pair: (pair[0], pair[1].name))[1]
        low, high = min(costs), max(costs)
        scale = (high - low) or 1.0
        weights = [math.exp(-(cost - low) / scale / self.temperature) for cost in costs]
        return self.rng.choices(views, weights)[0]


@dataclass(eq=False)
class Conductor(ImmediatePlacement):
    """Mooncake's Algorithm 1: the prefill worker of least estimated TTFT, and early rejection on predicted load.

    Its copying of hot prefixes between workers is left out, because our workers recompute instead; the estimate counts
    what each worker has itself.
    """

    name: str = "conductor"

    def _ttft(self, item: PlacementInput, view: WorkerView, cached: int, now: float) -> float:
        costs = view.latency.costs
        queue_s = max(view.busy_until_s - now, 0.0)
        return queue_s + costs.prefill_s(item.num_tokens - cached, cached, view.info.chunk_tokens)

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], target: WorkerView | None, state: ClusterState, now: float
    ) -> WorkerView:
        cached = state.cached_tokens(item.page_keys, item.num_tokens)
        return min(views, key=lambda view: (self._ttft(item, view, int(cached[view.row]), now), view.name))

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        return min(views, key=lambda view: (step_with(view, item), view.name))

    def refuse(
        self,
        item: PlacementInput,
        prefill: list[WorkerView],
        decode: list[WorkerView],
        state: ClusterState,
        now: float,
    ) -> Overloaded | None:
        source = self.choose_prefill(item, prefill, None, state, now)
        cached = state.cached_tokens(item.page_keys, item.num_tokens)
        ttft = self._ttft(item, source, int(cached[source.row]), now)
        tpot = min(step_with(view, item) for view in decode)
        objectives = item.objectives
        if (objectives.ttft_s is not None and ttft > objectives.ttft_s) or (
            objectives.tpot_s is not None and tpot > objectives.tpot_s
        ):
            return Overloaded("Predicted to miss its objectives; try again later.", retry_after_s=ttft)
        return None


@dataclass(eq=False)
class LatencyHeadroom(ImmediatePlacement):
    """llm-d: pairs scored by predicted headroom under the objectives, 0.8 TTFT and 0.2 TPOT, the closest fit first.

    The decode worker is chosen first. Prefill goes elsewhere only when enough of the prompt is not cached there: else
    the decode worker serves the whole request.
    """

    name: str = "latency_headroom"
    ttft_weight: float = 0.8
    tpot_weight: float = 0.2
    remote_from_tokens: int = 256

    def decide(self, queue: Sequence[PlacementInput], state: ClusterState, now: float) -> list[Place | Refuse]:
        verdicts = super().decide(queue, state, now)
        if not verdicts or not isinstance(verdicts[0], Place) or verdicts[0].decision.decode is None:
            return verdicts
        item, decision = queue[0], verdicts[0].decision
        uncached = item.num_tokens - state.cached_on(decision.decode or "", item.page_keys, item.num_tokens)
        if uncached >= self.remote_from_tokens:
            return verdicts
        whole = RoutingDecision(decision.decode or "", None, True, f"{uncached} tokens are not cached there")
        return [Place(item.request_id, whole)]

    def choose_prefill(
        self, item: PlacementInput, views: list[WorkerView], target: WorkerView | None, state: ClusterState, now: float
    ) -> WorkerView:
        cached = state.cached_tokens(item.page_keys, item.num_tokens)
        headrooms = []
        for view in views:
            new = item.num_tokens - int(cached[view.row])
            costs = view.latency.costs
            ttft = max(view.busy_until_s - now, 0.0) + costs.prefill_s(
                new, item.num_tokens - new, view.info.chunk_tokens
            )
            headrooms.append(((item.objectives.ttft_s or 1.0) - ttft, 0.0))
        return self._closest_fit(views, headrooms)

    def choose_decode(
        self, item: PlacementInput, views: list[WorkerView], state: ClusterState, now: float
    ) -> WorkerView:
        objective = item.objectives.tpot_s or 0.1
        return self._closest_fit(views, [(0.0, objective - step_with(view, item)) for view in views])

    def _closest_fit(self, views: list[WorkerView], headrooms: list[tuple[float, float]]) -> WorkerView:
        """The least positive headroom; when all are negative the idle ones, then the least violation."""

        def normalised(index: int) -> list[float]:
            values = [headroom[index] for headroom in headrooms]
            span = (max(values) - min(values)) or 1.0
            return [(value - min(values)) / span for value in values]

        scores = [
            self.ttft_weight * ttft + self.tpot_weight * tpot
            for ttft, tpot in zip(normalised(0), normalised(1), strict=True)
        ]
        options = list(zip(views, headrooms, scores, strict=True))
        positive = [option for option in options if min(option[1]) >= 0.0]
        if positive:
            return min(positive, key=lambda option: (option[2], option[0].name))[0]
        return min(options, key=lambda option: (in_flight(option[0]) > 0, -option[2], option[0].name))[0]


def step_with(view: WorkerView, item: PlacementInput) -> float:
    """Predicted decode step of a worker with the request beside its others, in seconds."""
    context = sum(one.tokens for one in view.running.values()) + item.num_tokens
    return view.latency.costs.seconds(0, 0, len(view.running) + 1, context)
