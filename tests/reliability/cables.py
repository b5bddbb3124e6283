"""Network cables that can be cut: processes in Linux network namespaces, joined by a bridge of this machine.

    this machine ── bridge ──┬── cable ── namespace "prefill-0"
                             └── cable ── namespace "decode-0"

A cut cable drops everything, as a pulled plug does: connections stay open on both sides and hear nothing. One
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
    """This machine lets nobody make namespaces; the sentence says why."""


@dataclass(eq=False)
class Cables:
    """Use it with `with`, one at a time in a process: namespaces, cables and bridge are gone afterwards.

    Their names tell the process, so that those of one that was killed are removed by the next.
    """

    bridge: str = field(default_factory=lambda: f"{PREFIX}{os.getpid():x}")
    subnet: str = field(init=False)  # of those set aside for measurements of networks (RFC 2544)
    _plugged: dict[str, int] = field(default_factory=dict)  # name → number in the subnet

    def __post_init__(self) -> None:
        self.subnet = f"198.18.{int(self.bridge.removeprefix(PREFIX), 16) % 256}"

    @property
    def address(self) -> str:
        """This machine, as those behind cables see it."""
        return f"{self.subnet}.1"

    def address_of(self, name: str) -> str:
        return f"{self.subnet}.{self._plugged[name]}"

    def namespace(self, name: str) -> str:
        """What `enter` and `ip netns exec` call it."""
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
        """Nothing comes or goes any more."""
        _ip(f"link set {self.bridge}.{self._plugged[name]} nomaster")

    def cut_to(self, name: str, address: str, port: int | None = None) -> None:
        """Nothing goes from there to an address (or one TCP port of it)."""
        what = f"ipproto tcp dport {port}" if port is not None else ""
        _ip(f"-n {self.namespace(name)} rule add pref 10 to {address} {what} blackhole")

    def cut_from(self, name: str, address: str, port: int | None = None) -> None:
        """Nothing comes there from an address (or one TCP port of it)."""
        what = f"ipproto tcp sport {port}" if port is not None else ""
        _ip(f"-n {self.namespace(name)} rule add pref 10 from {address} {what} blackhole")

    def heal(self, name: str) -> None:
        """Everything is as it was; what TCP still has to deliver comes then."""
        _ip(f"link set {self.bridge}.{self._plugged[name]} master {self.bridge}")
        while _ip(f"-n {self.namespace(name)} rule del pref 10", check=False):
            pass


def why_not() -> str:
    """Why this process cannot have cables, as a sentence; empty when it can."""
    if os.geteuid() != 0:
        return "Network namespaces need root."
    if shutil.which("ip") is None:
        return "The command `ip` (iproute2) is not there."
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
    """Have this thread, and those it will start, in a namespace."""
    with (NAMESPACES / namespace).open() as handle:
        if _LIBC.setns(handle.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")


def _ip(words: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise CannotCut(f"`ip {words}` failed: {done.stderr.strip()}")
    return done.returncode == 0
