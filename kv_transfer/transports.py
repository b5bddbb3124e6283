"""The table of transports by the value of `engine.transport`. A transport's library is loaded when it is opened."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Protocol, cast

from baton.kv_transfer.transport import Transport
from baton.protocol.errors import ConfigError
from baton.protocol.worker import PageLayout

if TYPE_CHECKING:
    import torch


class OpenTransport(Protocol):
    """The type of a table entry: a class or function that opens the transport of one rank of a worker."""

    def __call__(
        self,
        pages: torch.Tensor,
        layout: PageLayout,
        agent: str,
        device_id: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> Transport:
        """A transport for page storage `pages` of one rank; `agent` is the worker's name for peers.

        `layout` is the worker's, with all KV heads; `pages` has those that `heads_of` gives the rank. `device_id` is
        the ordinal of the pages' GPU in this process, 0 for host memory. Raises `ConfigError` when the transport cannot
        be opened.
        """
        ...


TRANSPORTS = {
    "nixl": "baton.kv_transfer.nixl:NixlTransport",
}


def check_transport(name: str) -> None:
    """Raise `ConfigError` listing the known transports unless `name` is one."""
    if name not in TRANSPORTS:
        raise ConfigError(f"There is no transport {name!r}: set engine.transport to one of {', '.join(TRANSPORTS)}.")


def find_transport(name: str) -> OpenTransport:
    """The function that opens the transport of this name; raises `ConfigError` listing the known transports."""
    check_transport(name)
    return cast(OpenTransport, resolve_name(TRANSPORTS[name]))
