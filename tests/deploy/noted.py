"""The note that the tests of notes start from."""

from __future__ import annotations

from baton.deploy.running import RunningCluster

CLUSTER = RunningCluster("127.0.0.1:9", ("decode-0",), "127.0.0.1:9", "/tmp/baton-ray-nowhere", id="a" * 32)
