"""What a server serves, by path and method. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from baton.http.response import MethodNotAllowed, RouteNotFound

Handler = TypeVar("Handler")


@dataclass(frozen=True, slots=True)
class Routes(Generic[Handler]):
    """Each path's methods, such as "GET, POST", and handler.

    A path that ends with a slash, except the root, stands for all that begin so.
    """

    by_path: Mapping[str, tuple[str, Handler]]

    def find(self, method: str, path: str) -> Handler:
        """The handler; raises `RouteNotFound` and `MethodNotAllowed`. HEAD is answered as GET."""
        found = self.by_path.get(path) or next(
            (route for start, route in self.by_path.items() if start[1:].endswith("/") and path.startswith(start)), None
        )
        if found is None:
            raise RouteNotFound(method, path)
        if ("GET" if method == "HEAD" else method) not in found[0].split(", "):
            raise MethodNotAllowed(method, path, found[0])
        return found[1]
