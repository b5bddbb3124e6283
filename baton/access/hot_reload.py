"""Hot reload: a value read from files at start, and again after one of them has changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from baton.logs import log
from baton.protocol.errors import ConfigError

T = TypeVar("T")
Stamp = tuple[tuple[int, int, int], ...]


class HotReload(Generic[T]):
    """Checks the files' stamps at each call. An invalid new version is logged, and the old value stays in use.

    Its methods may be called from any thread; gRPC does so before every handshake.
    """

    def __init__(self, paths: Sequence[str], read: Callable[[], T]) -> None:
        """Read the files; a `ConfigError` of `read` is raised here, and logged after a reload."""
        self._paths, self._read = tuple(map(Path, paths)), read
        self._lock = threading.Lock()
        self._loaded_stamp = self._stamp()
        self._value = read()
        self._version = 1

    def current(self) -> tuple[int, T]:
        """The version, counted from 1, and the value."""
        with self._lock:
            stamp = self._stamp()
            if stamp != self._loaded_stamp:
                self._loaded_stamp = stamp
                self._reload()
            return self._version, self._value

    @property
    def value(self) -> T:
        """The value, reloaded if a file has changed."""
        return self.current()[1]

    def _reload(self) -> None:
        try:
            self._value = self._read()
        except ConfigError as error:
            log.warning(f"Reload failed, the earlier version stays in use: {error.message}")
            return
        self._version += 1

    def _stamp(self) -> Stamp:
        stamps = []
        for path in self._paths:
            try:
                found = path.stat()
                stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
            except OSError:
                stamps.append((0, 0, 0))
        return tuple(stamps)
