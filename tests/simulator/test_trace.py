"""Reading recorded traces and making up others."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.protocol.errors import ConfigError
from baton.simulator.trace import MAX_REQUEST_TOKENS, Synthetic, TraceRequest, read_trace

AZURE_HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def _mooncake(**values: object) -> str:
    row = {"timestamp": 3000, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1], **values}
    return json.dumps({key: value for key, value in row.items() if value is not None}) + "\n"


def test_a_mooncake_trace_is_read_in_order_of_arrival(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(_mooncake(timestamp=4500, hash_ids=None) + "\n" + _mooncake())
    assert read_trace(path) == [TraceRequest(0.0, 1000, 5, (0, 1)), TraceRequest(1.5, 1000, 5)]


def test_an_azure_trace_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(AZURE_HEAD + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9305900,396,0\n")
    assert read_trace(path) == [TraceRequest(0.0, 374, 44), TraceRequest(4.25, 396, 1)]


def test_summer_time_leaves_no_hole_in_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    path = tmp_path / "trace.csv"
    path.write_text(AZURE_HEAD + "2024-03-31 01:59:59,1,1\n2024-03-31 03:00:00,1,1\n")
    assert read_trace(path)[1].arrival_s == 3601.0


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ("{", "no JSON"),
        ("[]", "not a JSON object"),
        ('{"timestamp": 1}', "input_length"),
        (_mooncake(input_length=0), "0 prompt tokens"),
        (_mooncake(output_length=MAX_REQUEST_TOKENS + 1), "output tokens"),
        (_mooncake(timestamp="soon"), "soon"),
        (_mooncake(timestamp=float("nan")), "not finite"),
        (_mooncake(input_length=float("inf")), "infinity"),
        (_mooncake(hash_ids=[-3]), "negative"),
        (_mooncake(hash_ids=7), "int"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, wrong: str, word: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(_mooncake() + "\n" + wrong.strip() + "\n" + _mooncake())
    with pytest.raises(ConfigError) as error:
        read_trace(path)
    assert "line 3:" in error.value.message
    assert word in error.value.message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "TIMESTAMP"),
        ("a,b\n1,2\n", "TIMESTAMP"),
        (AZURE_HEAD, "no request"),
        (AZURE_HEAD + "2023-11-16 18:15:46,1,1\nyesterday,1,1\n", "line 3: Invalid isoformat"),
        (AZURE_HEAD + "2023-11-16 18:15:46,1\n", "line 2: a column is missing"),
        (AZURE_HEAD + "2023-11-16 18:15:46,many,1\n", "line 2: invalid literal"),
    ],
)
def test_a_wrong_table_is_told(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=word):
        read_trace(path)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "none.csv", tmp_path / "binary.csv"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_trace(path)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
_ROWS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("timestamp", "input_length", "output_length", "hash_ids"), _VALUES)
)
_LINES = st.lists(_ROWS | _VALUES, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
_TABLES = st.lists(st.lists(st.text(max_size=12), min_size=2, max_size=4).map(",".join), max_size=4).map(
    lambda rows: (AZURE_HEAD + "\n".join(rows)).encode(errors="replace")
)


@settings(deadline=1000, max_examples=200)
@given(content=st.binary(max_size=200) | _LINES | _TABLES, name=st.sampled_from(["t.jsonl", "t.csv"]))
def test_whatever_a_file_holds_it_is_a_trace_or_one_error(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            requests = read_trace(path)
        except ConfigError as error:
            assert len(error.message) < 2000
            return
        assert requests[0].arrival_s == 0.0
        assert all(1 <= one.prompt_tokens <= MAX_REQUEST_TOKENS for one in requests)


def test_a_prompt_is_its_blocks_and_then_its_own() -> None:
    one, other = TraceRequest(0, 10, 1, (5, 6), 4), TraceRequest(0, 6, 1, (5, 9), 4)
    assert one.prompt(1) == (7, 7, 7, 7, 8, 8, 8, 8, -3, -3)
    assert other.prompt(2) == (7, 7, 7, 7, 11, 11)


def test_made_up_requests_depend_on_the_seed_alone() -> None:
    workload = Synthetic(200, tenants=3)
    assert workload.generate(4) == workload.generate(4)
    assert workload.generate(4) != workload.generate(5)
    assert {one.tenant for one in workload.generate(4)} == {"tenant-0", "tenant-1", "tenant-2"}


@pytest.mark.parametrize("requests", [50, 2000])
def test_made_up_requests_come_at_their_rate(requests: int) -> None:
    trace = Synthetic(requests, rate_s=10.0).generate(0)
    assert len(trace) == requests
    assert requests / trace[-1].arrival_s == pytest.approx(10.0, rel=0.3)
    assert [one.arrival_s for one in trace] == sorted(one.arrival_s for one in trace)


def test_made_up_conversations_share_their_beginnings() -> None:
    trace = Synthetic(600, rate_s=4.0).generate(0)
    seen: set[tuple[int, ...]] = set()
    again = 0
    for one in trace:
        again += any(one.blocks[:length] in seen for length in range(9, len(one.blocks)))
        seen |= {one.blocks[:length] for length in range(1, len(one.blocks) + 1)}
        assert len(one.blocks) == -(-one.prompt_tokens // one.block_tokens)
    assert again > 200  # later turns repeat all of what was before, beyond the 8 blocks of a system prompt
