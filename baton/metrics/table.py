"""Every metric of Baton. Pure."""

from __future__ import annotations

from baton.metrics.gateway_table import GATEWAY_METRICS
from baton.metrics.router_table import ROUTER_METRICS

METRICS = (*GATEWAY_METRICS, *ROUTER_METRICS)
