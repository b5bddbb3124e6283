"""Writes Grafana's board of a cluster: `python -m baton.deploy.grafana_board [--check]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from baton.deploy.grafana_panels import ROWS, Panel
from baton.metrics import gateway_table as gateway
from baton.metrics import router_table as router

BOARD = Path(__file__).resolve().parent / "observability" / "grafana" / "boards" / "baton.json"
COLUMNS, PANEL_WIDTH, PANEL_HEIGHT, STAT_WIDTH, STAT_HEIGHT = 24, 8, 8, 4, 4
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def board() -> dict[str, Any]:
    """The board as Grafana loads it."""
    panels = list[dict[str, Any]]()
    top = 0
    for title, row in ROWS.items():
        panels.append(_row(len(panels) + 1, title, top))
        top += 1
        left = 0
        for panel in row:
            width, height = (STAT_WIDTH, STAT_HEIGHT) if panel.stat else (PANEL_WIDTH, PANEL_HEIGHT)
            panels.append(_panel(len(panels) + 1, panel, {"x": left, "y": top, "w": width, "h": height}))
            left = (left + width) % COLUMNS
            if left == 0:
                top += height
    return {
        "uid": "baton",
        "title": "Baton",
        "description": "One cluster: requests, pools, handoffs, predictions.",
        "tags": ["baton", "llm"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


def _row(number: int, title: str, top: int) -> dict[str, Any]:
    place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    options: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if not panel.stat:
        defaults["custom"] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 8, "showPoints": "never"}
        options = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}}
        options["tooltip"] = {"mode": "multi", "sort": "desc"}
    return {
        "id": number,
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(panel.queries)
        ],
    }


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return [
        source,
        _variable("model", "Model", gateway.FIRST_TOKEN.name + "_count", "model_name"),
        _variable("gateway", "Gateway", gateway.STREAMS.name, "process"),
        _variable("role", "Role", router.SERVING.name, "role"),
    ]


def _variable(name: str, label: str, metric: str, key: str) -> dict[str, Any]:
    """A choice among the values of a label."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": f"label_values({metric}, {key})", "refId": name},
        "refresh": 2,  # When the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def main(arguments: list[str]) -> int:
    """Write the board, or with --check report whether the file differs."""
    text = json.dumps(board(), indent=1, ensure_ascii=False) + "\n"
    if "--check" in arguments:
        return int(BOARD.read_text() != text)
    BOARD.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
