"""Every transport by the name that `engine.transport` takes. Loads a transport's library only where it is opened."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Protocol, cast

from baton.kv_transfer.transport import Transport
from baton.protocol.errors import ConfigError
from baton.protocol.worker import PageLayout

if TYPE_CHECKING:
    import torch


class OpenTransport(Protocol):
    """What the table names: a class, or a function, that opens one worker's end."""

    def __call__(self, pages: torch.Tensor, layout: PageLayout, agent: str, device_id: int) -> Transport:
        """A transport for page storage `pages` of this layout, known to peers as `agent`.

        `device_id` is the ordinal of the pages' GPU in this process, 0 in host memory. Raises `ConfigError` when it
        cannot be opened.
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
    """What opens the transport of that name; raises `ConfigError` listing the known ones."""
    check_transport(name)
    return cast(OpenTransport, resolve_name(TRANSPORTS[name]))
