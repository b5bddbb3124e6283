"""What Prometheus has to scrape, in the format of its HTTP service discovery. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

from baton.protocol.link_keys import ROUTER

DISCOVERY_PATH = "/sd"


def discovery_body(router_address: str, gateways: Mapping[str, str], tls: bool) -> bytes:
    """The router and the gateways, by name with their addresses; a gateway without an address is left out."""
    scheme = {"__scheme__": "https"} if tls else {}
    found = {ROUTER: router_address, **{name: address for name, address in sorted(gateways.items()) if address}}
    return json.dumps(
        [{"targets": [address], "labels": {"process": name, **scheme}} for name, address in found.items()]
    ).encode()
