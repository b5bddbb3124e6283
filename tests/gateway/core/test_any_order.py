"""A gateway's streams over links that lose, repeat and overtake; clients, workers and the router come and go."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.gateway.core.clients import answer_of, request
from tests.gateway.core.small_cluster import SmallCluster
from tests.gateway.core.small_router import WORKERS

IDS = st.sampled_from(("a", "b", "c"))
KINDS = st.integers(0, 5)
STOPS = st.sampled_from(((), ("a.",), ("b", "ab"), ("aa", "..")))
TROUBLE = st.sampled_from(
    (
        *("the router's link breaks", "the router dies", "a worker's link breaks", "a worker dies"),
        *("a frame is lost", "a frame is repeated"),
    )
)
NAMES = st.sampled_from(WORKERS)


class Streams(RuleBasedStateMachine):
    """Each client checks indexes, tokens, text and end; see `SmallCluster`."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = SmallCluster()
        self.cluster.link_router(True)
        self.cluster.settle()

    @rule(worker=NAMES)
    def links_come_up(self, worker: str) -> None:
        self.cluster.link_router(True)
        self.cluster.connect(worker)

    @rule(trouble=TROUBLE, worker=NAMES, count=st.integers(0, 4))
    def trouble_comes(self, trouble: str, worker: str, count: int) -> None:
        match trouble:
            case "the router's link breaks":
                self.cluster.link_router(False, count)
            case "the router dies":
                self.cluster.kill_router()
            case "a worker's link breaks":
                self.cluster.disconnect(worker, count)
            case "a worker dies":
                self.cluster.lose_worker(worker)
            case "a frame is lost" | "a frame is repeated":
                self.cluster.spoil(worker, count, trouble == "a frame is repeated")

    @rule(id=IDS, kind=KINDS, most=st.integers(1, 8), stop=STOPS, least=st.integers(0, 3), data=st.data())
    def client_comes(
        self, id: str, kind: int, most: int, stop: tuple[str, ...], least: int, data: st.DataObject
    ) -> None:
        asked = request(id, kind, most, stop, min(least, most))
        if id in self.cluster.readers:
            asked = self.cluster.readers[id].asked
        elif id in self.cluster.router.kept:  # Of another content its tokens could not be told from the kept sequence's
            asked = self.cluster.router.kept[id][1]
        resume_from = data.draw(st.integers(0, answer_of(asked)[0]))
        self.cluster.open(asked, resume_from, data.draw(st.booleans()))

    @precondition(lambda self: self.cluster.readers)
    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        self.cluster.leave(data.draw(st.sampled_from(sorted(self.cluster.readers))))

    @precondition(lambda self: self.cluster.readers)
    @rule(kind=KINDS, link=st.booleans(), data=st.data())
    def client_leaves_and_uses_its_id_again(self, kind: int, link: bool, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.cluster.readers)))
        asked = self.cluster.readers[id].asked
        self.cluster.leave(id)
        if link:
            self.cluster.link_router(False, 2)
        if id not in self.cluster.router.kept:
            asked = data.draw(st.sampled_from((asked, request(id, kind))))
        self.cluster.open(asked)
        self.cluster.link_router(True)

    @rule(times=st.integers(1, 3))
    def router_works(self, times: int) -> None:
        for _ in range(times):
            if self.cluster.router_up:
                self.cluster.router.route()

    @rule(times=st.integers(1, 3))
    def router_message_arrives(self, times: int) -> None:
        for _ in range(times):
            self.cluster.from_router()

    @rule(worker=NAMES, place=st.integers(0, 3))
    def worker_frame_arrives(self, worker: str, place: int) -> None:
        self.cluster.from_worker(worker, place)

    @rule(times=st.integers(1, 3))
    def workers_step(self, times: int) -> None:
        for worker in WORKERS * times:
            self.cluster.step(worker)

    @rule(worker=NAMES)
    def sequence_moves(self, worker: str) -> None:
        self.cluster.router.migrate(worker)

    @rule(seconds=st.sampled_from((0.01, 0.1, 0.3, 1.0, 2.0, 12.0)))
    def time_passes(self, seconds: float) -> None:
        self.cluster.advance(seconds)

    @rule()
    def everything_arrives(self) -> None:
        self.cluster.settle()

    @invariant()
    def every_open_stream_has_its_reader(self) -> None:
        assert self.cluster.session.streams.keys() == self.cluster.readers.keys()

    def teardown(self) -> None:
        self.cluster.come_to_rest()
        session = self.cluster.session
        assert not self.cluster.readers and not session.streams, "a stream has not ended"
        assert not session._waits and not len(session.stopped) and not session.workers.num_gaps
        assert session.workers.invalid_tokens == 0


TestStreams = Streams.TestCase
TestStreams.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
