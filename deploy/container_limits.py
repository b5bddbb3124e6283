"""Limits of the container or systemd unit that this process runs in: cgroups, version 1 and 2, nested or not.

A process is in one group of each hierarchy. The limits of that group and of all its ancestors apply together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED_BYTES = 1 << 60  # Version 1 writes "no limit" as a number above this.


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """The limit with the least memory left under it."""

    limit_bytes: int
    free_bytes: int


def memory_limit(proc: Path = Path("/proc/self")) -> MemoryLimit | None:
    """The memory limit that binds this process, or None."""
    limits = [limit for group in _groups(proc, "memory") if (limit := _memory_of(group))]
    return min(limits, key=lambda limit: limit.free_bytes, default=None)


def cpu_quota(proc: Path = Path("/proc/self")) -> float | None:
    """CPU time that this process may use, in cores (a fraction is possible); None without a quota."""
    return min((quota for group in _groups(proc, "cpu") if (quota := _quota_of(group))), default=None)


def oom_kills(proc: Path = Path("/proc/self")) -> int:
    """Number of out-of-memory kills so far: in this process's groups, or on the whole machine where they count none."""
    files = (group / name for group in _groups(proc, "memory") for name in ("memory.events", "memory.oom_control"))
    counts = [count for file in files if (count := _table(file).get("oom_kill")) is not None]
    return sum(counts) if counts else _table(proc.parent / "vmstat").get("oom_kill", 0)


def _groups(proc: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group of a controller and of its ancestors, the innermost first."""
    place = _place(proc, controller)
    if place is None:
        return
    mount, below = place
    group = mount / below.lstrip("/")
    # A container without a cgroup namespace sees its group's path on the host, while the group is mounted as the root.
    group = group if group.is_dir() else mount
    while True:
        yield group
        if group == mount:
            return
        group = group.parent


def _place(proc: Path, controller: str) -> tuple[Path, str] | None:
    """(mount point of the controller's hierarchy, this process's group in it); version 1 takes precedence."""
    mounts = _mounts(proc)
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in sorted(lines, key=lambda line: line.startswith("0::")):
        _, controllers, path = line.split(":", 2)
        kind = controller if controller in controllers.split(",") else "" if not controllers else None
        if kind is not None and kind in mounts:
            mount, root = mounts[kind]
            return mount, path.removeprefix(root) if root != "/" else path
    return None


def _mounts(proc: Path) -> dict[str, tuple[Path, str]]:
    """(mount point, group that is mounted there) by controller of version 1; the key "" is version 2."""
    found: dict[str, tuple[Path, str]] = {}
    try:
        lines = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _, options = after.split(maxsplit=2)
        if kind == "cgroup2":
            found[""] = (Path(mount), root)
        elif kind == "cgroup":
            found |= {option: (Path(mount), root) for option in options.split(",")}
    return found


def _memory_of(group: Path) -> MemoryLimit | None:
    for limit_file, usage_file, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, usage = _number(group / limit_file), _number(group / usage_file)
        if limit is not None and usage is not None and limit < _UNLIMITED_BYTES:
            # The kernel reclaims inactive file pages before it kills anything.
            used = max(usage - _table(group / "memory.stat").get(cached, 0), 0)
            return MemoryLimit(limit, max(limit - used, 0))
    return None


def _quota_of(group: Path) -> float | None:
    try:
        quota, period = map(float, (group / "cpu.max").read_text().split())
    except (OSError, ValueError):  # Version 1, or "max".
        quota, period = _number(group / "cpu.cfs_quota_us") or -1, _number(group / "cpu.cfs_period_us") or 0
    return quota / period if quota > 0 and period > 0 else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _table(path: Path) -> dict[str, int]:
    """The "name number" lines of a file; empty when the file cannot be read."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}
