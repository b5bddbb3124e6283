"""Schedules of faults: what goes wrong, and when, drawn from a seed. Data: a schedule prints, replays and shrinks."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from baton.protocol.worker import RoleName

SPAN_S = 2.0  # in which requests arrive, and faults begin
MAX_FAULTS = 8
PROMPT_TOKENS, OUTPUT_TOKENS = 24, 24  # the most of a request


class FaultKind(StrEnum):
    """What can go wrong, or be asked for in the middle of it."""

    KILL = "kill"
    STOP = "stop"
    CUT = "cut the cable between"
    RANK = "kill the rank"
    REST = "stop the rank"
    PAIR = "cut the cable between the ranks"
    LAG = "slow down the cable between the ranks"
    ROUTER = "restart the router"
    PAUSE = "stop the router"
    BREAK = "break the router's connection to"
    PART = "cut off from the router:"
    GATEWAY = "kill the gateway"
    HALT = "stop the gateway"
    SLOW = "slow down the gateway"
    TOKENS = "cut the link between"
    BOTH = "restart the router and kill"
    MOVE = "break the client's connection of"
    FAIL = "break connections between workers"
    CORRUPT = "corrupt pages on their way"
    LOSE = "lose the notices of handoffs"
    DUPLICATE = "deliver messages twice"
    CANCEL = "cancel"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    REBALANCE = "rebalance"
    MIGRATE = "migrate"


SUBJECTS = {  # what a fault is about: so many of the workers, of the gateways, of the requests at most
    FaultKind.KILL: (1, 0, 0),
    FaultKind.STOP: (1, 0, 0),
    FaultKind.CUT: (2, 0, 0),
    FaultKind.RANK: (1, 0, 0),
    FaultKind.REST: (1, 0, 0),
    FaultKind.PAIR: (2, 0, 0),
    FaultKind.LAG: (2, 0, 0),
    FaultKind.DRAIN: (1, 0, 0),
    FaultKind.UNDRAIN: (1, 0, 0),
    FaultKind.GATEWAY: (0, 1, 0),
    FaultKind.HALT: (0, 1, 0),
    FaultKind.SLOW: (0, 1, 0),
    FaultKind.BOTH: (0, 1, 0),
    FaultKind.TOKENS: (1, 1, 0),
    FaultKind.CANCEL: (0, 0, 8),
    FaultKind.MOVE: (0, 0, 8),
    FaultKind.MIGRATE: (0, 0, 1),
}
OF_RANKS = frozenset({FaultKind.RANK, FaultKind.REST, FaultKind.PAIR, FaultKind.LAG})  # of each worker one
OF_ANY = frozenset({FaultKind.BREAK, FaultKind.PART})  # they are about a worker or a gateway
LASTS_S = {  # how long a fault lasts: between these
    FaultKind.KILL: (0.05, 3.0),
    FaultKind.STOP: (0.1, 4.0),  # a worker is given up after 2 s
    FaultKind.CUT: (0.1, 3.0),
    FaultKind.RANK: (0.05, 3.0),
    FaultKind.REST: (0.1, 4.0),
    FaultKind.PAIR: (0.1, 3.0),
    FaultKind.LAG: (0.2, 2.0),
    FaultKind.ROUTER: (0.0, 1.0),
    FaultKind.PAUSE: (0.1, 3.0),
    FaultKind.PART: (0.05, 6.0),  # a gateway is given up after 4 s
    FaultKind.GATEWAY: (0.05, 3.0),
    FaultKind.HALT: (0.1, 6.0),
    FaultKind.SLOW: (0.2, 2.0),
    FaultKind.TOKENS: (0.1, 4.0),  # a pair is given up after 2 s
    FaultKind.BOTH: (0.0, 1.0),
    FaultKind.FAIL: (0.2, 1.0),
    FaultKind.CORRUPT: (0.2, 1.0),
    FaultKind.LOSE: (0.2, 1.0),
    FaultKind.DUPLICATE: (0.2, 2.0),
}
UNDOES = {  # what the end of a fault is
    FaultKind.KILL: "another process comes up",
    FaultKind.STOP: "it continues",
    FaultKind.CUT: "it is whole",
    FaultKind.RANK: "another worker comes up",
    FaultKind.REST: "it continues",
    FaultKind.PAIR: "it is whole",
    FaultKind.ROUTER: "it is back",
    FaultKind.PAUSE: "it continues",
    FaultKind.PART: "it connects again",
    FaultKind.GATEWAY: "another process comes up",
    FaultKind.HALT: "it continues",
    FaultKind.TOKENS: "it is whole",
    FaultKind.BOTH: "both are back",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. `subjects` are workers, ranks (as in decode-0/1), gateways or requests."""

    number: int  # in its schedule
    at_s: float
    kind: FaultKind
    subjects: tuple[str, ...] = ()
    for_s: float = 0.0

    @property
    def process(self) -> str:
        """The first worker or gateway that it is about."""
        return self.subjects[0].partition("/")[0] if self.subjects else ""

    @property
    def rank(self) -> int:
        """The rank of that worker."""
        return int(self.subjects[0].partition("/")[2])

    def __str__(self) -> str:
        named = " ".join([self.kind, " and ".join(self.subjects)]).rstrip()
        ends = f", after {self.for_s:.3f} s {UNDOES.get(self.kind, 'it is over')}" if self.kind in LASTS_S else ""
        return f"{self.number:3d}  at {self.at_s:.3f} s: {named}{ends}"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when it arrives."""

    at_s: float
    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """A cluster, its requests and its faults. The same schedule always plays out the same."""

    seed: int
    workers: tuple[tuple[str, RoleName], ...]
    ranks: Mapping[RoleName, int]  # of each worker that starts with this role
    kv_heads: int
    gateways: int
    arrivals: tuple[Arrival, ...]
    faults: tuple[Fault, ...]
    num_pages: int
    host_pages: int
    ends: bool  # the model has an end-of-sequence token

    def __str__(self) -> str:
        several = {role: f" × {count}" for role, count in self.ranks.items() if count > 1}
        names = ", ".join(name + several.get(role, "") for name, role in self.workers)
        gateways = f"{self.gateways} gateway{'s' if self.gateways > 1 else ''}"
        pages = f"{self.num_pages} pages each of {self.kv_heads} KV head{'s' if self.kv_heads > 1 else ''}"
        head = f"seed {self.seed}: {names}, {gateways}; {pages}, {len(self.arrivals)} requests"
        return "\n".join([head, *map(str, self.faults)])

    def keeping(self, numbers: Collection[int]) -> Schedule:
        """The same without the faults of other numbers."""
        return replace(self, faults=tuple(fault for fault in self.faults if fault.number in numbers))


def draw(seed: int) -> Schedule:
    """The schedule of a seed: 3 to 8 workers, each pool's of one or two ranks, up to 3 gateways, a dozen requests, up
    to `MAX_FAULTS` faults."""
    rng = random.Random(seed)
    counts = {RoleName.PREFILL: rng.randint(1, 3), RoleName.DECODE: rng.randint(1, 3), RoleName.MIXED: 0}
    counts[RoleName.MIXED] = rng.choice([0, 0, 1, 2]) if sum(counts.values()) > 2 else 1
    workers = tuple((f"{role.value}-{index}", role) for role, count in counts.items() for index in range(count))
    ranks = {role: rng.randint(1, 2) for role in counts}
    shared = [rng.randrange(96) for _ in range(16)]
    arrivals = tuple(_arrival(rng, index, shared) for index in range(rng.randint(8, 18)))
    names = [name for name, _ in workers]
    gateways = rng.choice([1, 2, 2, 3])
    named = names, [f"gateway-{number}" for number in range(gateways)], [one.request_id for one in arrivals]
    of_worker = {name: ranks[role] for name, role in workers}
    drawn = [_fault(rng, named, of_worker) for _ in range(rng.randint(1, MAX_FAULTS))]
    faults = sorted(drawn, key=lambda one: one.at_s)
    return Schedule(
        seed=seed,
        workers=workers,
        ranks=ranks,
        kv_heads=rng.randint(1, 2),
        gateways=gateways,
        arrivals=tuple(sorted(arrivals, key=lambda one: one.at_s)),
        faults=tuple(replace(fault, number=number) for number, fault in enumerate(faults)),
        num_pages=rng.choice([16, 24, 40, 120]),
        host_pages=rng.choice([0, 0, 8]),
        ends=rng.random() < 0.5,
    )


def _arrival(rng: random.Random, index: int, shared: list[int]) -> Arrival:
    """Many prompts have a common beginning."""
    prompt = shared[: rng.choice([0, 0, 4, 9, 16])]
    prompt = prompt + [rng.randrange(96) for _ in range(rng.randint(1, PROMPT_TOKENS - len(prompt)))]
    return Arrival(rng.uniform(0.0, SPAN_S), f"r{index}", tuple(prompt), rng.randint(1, OUTPUT_TOKENS))


def _fault(rng: random.Random, named: tuple[list[str], list[str], list[str]], ranks: Mapping[str, int]) -> Fault:
    """A fault of the workers (with so many ranks), the gateways and the requests of these names."""
    workers, gateways, _ = named
    kind = rng.choice(list(FaultKind))
    counts = SUBJECTS.get(kind, (0, 0, 0))
    subjects = [one for names, most in zip(named, counts, strict=True) for one in rng.sample(names, _count(rng, most))]
    if kind in OF_RANKS:
        subjects = [f"{name}/{rng.randrange(ranks[name])}" for name in subjects]
    if kind in OF_ANY:
        subjects = [rng.choice(rng.choice([workers, gateways]))]
    if kind is FaultKind.REBALANCE:
        subjects = [str(rng.randint(0, len(workers)))]  # prefill workers
    for_s = rng.uniform(*LASTS_S[kind]) if kind in LASTS_S else 0.0
    return Fault(0, rng.uniform(0.1, SPAN_S), kind, tuple(subjects), for_s)


def _count(rng: random.Random, most: int) -> int:
    return rng.randint(1, most) if most > 2 else most


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """Drop faults, the latest first, while the schedule still fails."""
    dropped = True
    while dropped:
        dropped = False
        for fault in reversed(schedule.faults):
            numbers = {one.number for one in schedule.faults} - {fault.number}
            smaller = schedule.keeping(numbers)
            if fails(smaller):
                schedule, dropped = smaller, True
    return schedule
