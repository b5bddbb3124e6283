"""Network cables that can be cut: processes in Linux network namespaces, joined by a bridge of this machine.

    this machine ── bridge ──┬── cable ── namespace "prefill-0"
                             └── cable ── namespace "decode-0"

A cut cable drops every packet, like a pulled plug: connections stay open on both sides and receive nothing. One
direction of one port can be cut, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import psutil

DEVICE = "eth0"  # inside a namespace
PREFIX = "bt"
NAMESPACES = Path("/run/netns")
_LIBC = ctypes.CDLL(None, use_errno=True)


class CannotCut(Exception):
    """This process cannot create network namespaces; the message says why."""


@dataclass(eq=False)
class Cables:
    """A context manager, one at a time in a process: it removes namespaces, cables and bridge at its end.

    Their names contain the process id, so that a later process removes those of a process that was killed.
    """

    bridge: str = field(default_factory=lambda: f"{PREFIX}{os.getpid():x}")
    subnet: str = field(init=False)  # from the range reserved for network measurements (RFC 2544)
    _plugged: dict[str, int] = field(default_factory=dict)  # name → number in the subnet

    def __post_init__(self) -> None:
        self.subnet = f"198.18.{int(self.bridge.removeprefix(PREFIX), 16) % 256}"

    @property
    def address(self) -> str:
        """This machine's address for processes behind cables."""
        return f"{self.subnet}.1"

    def address_of(self, name: str) -> str:
        return f"{self.subnet}.{self._plugged[name]}"

    def namespace(self, name: str) -> str:
        """Its name for `enter` and `ip netns exec`."""
        return f"{self.bridge}-{name}"

    def __enter__(self) -> Cables:
        why = why_not()
        if why:
            raise CannotCut(why)
        _remove_those_of_dead_processes()
        try:
            _ip(f"link add {self.bridge} type bridge")
            _ip(f"addr add {self.address}/24 dev {self.bridge}")
            _ip(f"link set {self.bridge} up")
        except CannotCut:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for name, number in self._plugged.items():
            _ip(f"link del {self.bridge}.{number}", check=False)
            _ip(f"netns del {self.namespace(name)}", check=False)
        _ip(f"link del {self.bridge}", check=False)

    def plug(self, name: str) -> str:
        """A new namespace behind a cable; returns its address."""
        number = self._plugged[name] = len(self._plugged) + 2
        space, cable = self.namespace(name), f"{self.bridge}.{number}"
        _ip(f"netns add {space}")
        _ip(f"link add {cable} type veth peer name {DEVICE} netns {space}")
        _ip(f"link set {cable} master {self.bridge} up")
        _ip(f"-n {space} link set lo up")
        _ip(f"-n {space} addr add {self.address_of(name)}/24 dev {DEVICE}")
        _ip(f"-n {space} link set {DEVICE} up")
        return self.address_of(name)

    def cut(self, name: str) -> None:
        """Drop everything in both directions."""
        _ip(f"link set {self.bridge}.{self._plugged[name]} nomaster")

    def cut_to(self, name: str, address: str, port: int | None = None) -> None:
        """Drop what is sent from there to an address (or one TCP port of it)."""
        what = f"ipproto tcp dport {port}" if port is not None else ""
        _ip(f"-n {self.namespace(name)} rule add pref 10 to {address} {what} blackhole")

    def cut_from(self, name: str, address: str, port: int | None = None) -> None:
        """Drop what arrives there from an address (or one TCP port of it)."""
        what = f"ipproto tcp sport {port}" if port is not None else ""
        _ip(f"-n {self.namespace(name)} rule add pref 10 from {address} {what} blackhole")

    def heal(self, name: str) -> None:
        """Undo every cut; TCP then delivers what is outstanding."""
        _ip(f"link set {self.bridge}.{self._plugged[name]} master {self.bridge}")
        while _ip(f"-n {self.namespace(name)} rule del pref 10", check=False):
            pass


def why_not() -> str:
    """Why this process cannot create cables, as a sentence; empty when it can."""
    if os.geteuid() != 0:
        return "Network namespaces need root."
    if shutil.which("ip") is None:
        return "The command `ip` (iproute2) is missing."
    probe = f"{PREFIX}{os.getpid():x}-p"
    try:
        _ip(f"netns add {probe}")
        _ip(f"link add {probe} type veth peer name {DEVICE} netns {probe}")
        _ip(f"-n {probe} rule add pref 10 to 198.18.0.1 ipproto tcp dport 1 blackhole")
        _ip(f"link add {probe}b type bridge")
    except CannotCut as error:
        return f"This kernel or container allows no network namespaces: {error}"
    finally:
        for thing in (f"link del {probe}b", f"link del {probe}", f"netns del {probe}"):
            _ip(thing, check=False)
    return ""


def _remove_those_of_dead_processes() -> None:
    spaces = [path.name for path in NAMESPACES.glob(f"{PREFIX}*")]
    links = [path.name for path in Path("/sys/class/net").glob(f"{PREFIX}*")]
    for kind, name in [("link", name) for name in links] + [("netns", name) for name in spaces]:
        owner = name.removeprefix(PREFIX).partition("-")[0].partition(".")[0]
        with contextlib.suppress(ValueError):
            if not psutil.pid_exists(int(owner, 16)):
                _ip(f"{kind} del {name}", check=False)


def enter(namespace: str) -> None:
    """Move this thread, and threads that it starts later, into a namespace."""
    with (NAMESPACES / namespace).open() as handle:
        if _LIBC.setns(handle.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")


def _ip(words: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise CannotCut(f"`ip {words}` failed: {done.stderr.strip()}")
    return done.returncode == 0
