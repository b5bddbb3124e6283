"""The Ray actor that holds one process of a worker of several ranks, of any rank but the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from baton.config.ray_names import FIRST_WORDS
from baton.logs import set_up

if TYPE_CHECKING:
    from baton.worker.ranks.commands import RankPlan

END_S = 10.0


@ray.remote(num_cpus=0, max_restarts=0)
class RankActor:
    """One rank. It is not detached: Ray ends it with the process that started it, the worker's first rank.

    Ray restarts that one, which then starts new ranks, so this actor is never restarted.
    """

    def __init__(self, plan: RankPlan) -> None:
        name, logging = f"{plan.worker.name}/{plan.rank}", plan.worker.logging
        set_up(name, logging.level, FIRST_WORDS.format(name), logging.format)
        self._plan = plan

    def follow(self) -> None:
        """Obey the worker's first rank; the process ends with it."""
        from baton.worker.ranks.follower import follow

        follow(self._plan)


class RankProcess:
    """The process of one rank, for the one that started it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._follow = actor.follow.remote()

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._ends_within(0)

    def kill(self) -> None:
        """End the process, and return when it has ended; Ray takes 5 s to end a stopped one."""
        ray.kill(self._actor)
        self._ends_within(END_S)

    def _ends_within(self, wait_s: float) -> bool:
        return bool(ray.wait([self._follow], timeout=wait_s)[0])


def rank_starter(options: dict[str, Any]) -> Callable[[RankPlan], RankProcess]:
    """Starts ranks with these options of their actors: in the bundle that they name, or else on this process's node."""

    def start(plan: RankPlan) -> RankProcess:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return RankProcess(RankActor.options(**{"scheduling_strategy": here, **options}).remote(plan))  # type: ignore[attr-defined]

    return start
