"""Defaults of the configuration and of the parts that it configures, each written once and explained there."""

from __future__ import annotations

from typing import Final

CHECKSUM_EVERY = 16
WRITE_STALL_S = 10.0
TRANSPORT = "nixl"
POLICY = "predicted_latency"
MAX_QUEUED = 4096
LOST_AFTER_S = 2.0
NO_WORKERS_GRACE_S = 5.0
CLAIM_WITHIN_S = 30.0
STOP_GRACE_S = 5.0
WRITE_TIMEOUT_S = 30.0
MAX_MESSAGE_MIB = 64
LOG_LEVEL: Final = "info"
