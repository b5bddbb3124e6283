"""A setting has one default, however many types carry it from the configuration to where it is used."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from baton.config.access import AccessPlan
from baton.config.plan import RouterPlan, WorkerPlan
from baton.config.schema import BatonConfig
from baton.router.core.limits import RequestLimits, RouterLimits
from baton.router.driver import Driver
from baton.worker.core.state import WorkerState
from baton.worker.loop import WorkerLoop

CARRIERS: tuple[Any, ...] = (
    AccessPlan,
    RouterPlan,
    WorkerPlan,
    RouterLimits,
    RequestLimits,
    Driver,
    WorkerState,
    WorkerLoop,
)
# A plan's port 0 is "any", for routers that are started by themselves; a path that is not set is None further in;
# the rest begin as "auto" and are worked out.
OTHERS = {"admin_port", "state_file", "gpu_memory_fraction", "max_prompt_tokens"}


def test_no_setting_has_two_defaults() -> None:
    sections = [section.annotation for section in BatonConfig.model_fields.values()]
    configured = {
        key: field.default
        for section in sections
        if section is not None
        for key, field in section.model_fields.items()  # type: ignore[attr-defined]
    }
    carried = [
        (kind.__name__, field.name, field.default)
        for kind in CARRIERS
        for field in fields(kind)
        if field.name in configured.keys() - OTHERS and field.default is not MISSING
    ]
    assert len(carried) > 20
    assert [one for one in carried if one[2] != configured[one[1]]] == []
