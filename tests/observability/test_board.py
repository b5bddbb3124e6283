"""The board is as generated, Grafana knows each of its fields, and its queries name metrics that exist."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from baton.deploy.grafana_board import BOARD, board
from baton.metrics.table import METRICS
from tests.observability.prometheus import OBSERVABILITY, needs_promtool, promtool
from tests.observability.promql import OURS, board_queries, filled, panels, undeclared

VARIABLES = {"model": ".*", "gateway": ".*", "role": ".*", "datasource": "prometheus"}


def test_the_file_is_what_the_generator_writes() -> None:
    assert json.loads(BOARD.read_text()) == board(), "run python -m baton.deploy.grafana_board"


def _lost(written: Any, read: Any, path: str = "") -> list[str]:
    """The fields of `written` that `read` does not have, or has otherwise."""
    if isinstance(written, dict) and isinstance(read, dict):
        return [
            lost for key in written for lost in _lost(written[key], read.get(key, "no such field"), f"{path}/{key}")
        ]
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        return [lost for index, item in enumerate(written) for lost in _lost(item, read[index], f"{path}/{index}")]
    return [] if written == read else [path]


def test_grafana_knows_every_field_and_would_find_one_that_it_does_not_know() -> None:
    register_default_plugins()

    def lost(given: dict[str, Any]) -> list[str]:
        return _lost(given, json.loads(JSONEncoder().encode(Dashboard.from_json(given))))

    assert lost(board()) == []
    wrong = board()
    wrong["panels"][1]["fieldConfig"]["defaults"]["units"] = "s"
    assert lost(wrong) == ["/panels/1/fieldConfig/defaults/units"]


def test_panels_have_names_of_their_own_and_places_without_overlap() -> None:
    found = list(panels(board()["panels"]))
    assert len({panel["id"] for panel in found}) == len(found)
    assert len({panel["title"] for panel in found}) == len(found)
    for one, other in combinations((panel["gridPos"] for panel in found), 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart_x or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert one["x"] + one["w"] <= 24


def test_every_query_has_its_data_source_and_known_variables() -> None:
    known = {variable["name"] for variable in board()["templating"]["list"]}
    assert known == set(VARIABLES)
    for panel in panels(board()["panels"]):
        for target in panel.get("targets", ()):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert len(board_queries(board(), VARIABLES)) > 60
    with pytest.raises(KeyError):
        filled("up{x='$unknown'}", VARIABLES)


def test_every_metric_of_board_variables_and_rules_is_declared() -> None:
    texts = [query.expression for query in board_queries(board(), VARIABLES)]
    texts += [variable["query"]["query"] for variable in board()["templating"]["list"] if variable["type"] == "query"]
    rules = yaml.safe_load((OBSERVABILITY / "prometheus" / "rules.yml").read_text())["groups"][0]["rules"]
    texts += [rule["expr"] for rule in rules]
    assert {text: missing for text in texts if (missing := undeclared(text))} == {}
    assert undeclared("rate(baton_no_such_total[1m])") == {"baton_no_such_total"}
    shown = {name for text in texts for name in OURS.findall(text)}
    hidden = [metric.name for metric in METRICS if not any(name.startswith(metric.name) for name in shown)]
    assert len(hidden) < len(METRICS) / 2


@needs_promtool
def test_prometheus_parses_every_query(tmp_path: Path) -> None:
    queries = board_queries(board(), VARIABLES)
    rules = [{"record": f"query:{index}", "expr": query.expression} for index, query in enumerate(queries)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", str(tmp_path / "queries.yml"))


def test_grafana_and_compose_name_files_that_are_there() -> None:
    services = yaml.safe_load((OBSERVABILITY / "compose.yaml").read_text())["services"]
    for service in services.values():
        image, _, version = service["image"].partition(":")
        assert image and version not in ("", "latest")
        folders = [volume.partition(":")[0] for volume in service["volumes"]]
        assert all((OBSERVABILITY / folder).is_dir() for folder in folders if folder.startswith("."))
    provisioning = OBSERVABILITY / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "boards.yaml").read_text())["providers"]
    assert f"./grafana/boards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    sources = yaml.safe_load((provisioning / "datasources" / "datasources.yaml").read_text())["datasources"]
    assert {source["type"] for source in sources} == {"prometheus", "tempo"}
