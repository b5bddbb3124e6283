"""Container limits are read from the cgroup files that the kernel writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.deploy.container_limits import MemoryLimit, cpu_quota, memory_limit, oom_kills

MIB = 1 << 20
V1_UNLIMITED = "9223372036854771712\n"


class Kernel:
    """A folder with the /proc/self and /sys/fs/cgroup of a process."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroup = folder / "proc", folder / "cgroup"
        self.proc.mkdir()
        self.cgroup.mkdir()

    def v2(self, group: str, mounted: str = "/") -> None:
        self._write(f"0::{group}\n", f"30 23 0:26 {mounted} {self.cgroup} rw,nosuid - cgroup2 cgroup2 rw\n")

    def v1(self, group: str, mounted: str = "/") -> None:
        mounts = [
            f"{31 + index} 23 0:{27 + index} {mounted} {self.cgroup / name} rw - cgroup cgroup rw,{name}"
            for index, name in enumerate(("memory", "cpu,cpuacct"))
        ]
        groups = [f"12:memory:{group}", f"4:cpu,cpuacct:{group}", "0::/"]
        self._write("\n".join(groups) + "\n", "\n".join(mounts) + "\n")

    def _write(self, groups: str, mounts: str) -> None:
        (self.proc / "cgroup").write_text(groups)
        (self.proc / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts)

    def put(self, group: str, **files: str) -> None:
        folder = self.cgroup / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_without_cgroups_nothing_limits(kernel: Kernel) -> None:
    assert memory_limit(kernel.proc) is None
    assert cpu_quota(kernel.proc) is None
    assert oom_kills(kernel.proc) == 0


def test_version_2_with_a_limit(kernel: Kernel) -> None:
    kernel.v2("/")
    stat = f"anon 1\ninactive_file {100 * MIB}\nactive_file 5\n"
    kernel.put("", memory__max=f"{1600 * MIB}\n", memory__current=f"{300 * MIB}\n", memory__stat=stat)
    kernel.put("", cpu__max="150000 100000\n", memory__events="low 0\noom 3\noom_kill 2\n")
    assert memory_limit(kernel.proc) == MemoryLimit(1600 * MIB, 1400 * MIB)
    assert cpu_quota(kernel.proc) == 1.5
    assert oom_kills(kernel.proc) == 2


def test_version_2_without_a_limit(kernel: Kernel) -> None:
    kernel.v2("/user.slice")
    kernel.put("user.slice", memory__max="max\n", memory__current="5\n", cpu__max="max 100000\n")
    assert memory_limit(kernel.proc) is None
    assert cpu_quota(kernel.proc) is None


def test_version_1_with_a_limit(kernel: Kernel) -> None:
    kernel.v1("/docker/abc")
    stat = f"cache 7\ninactive_file 1\ntotal_inactive_file {50 * MIB}\n"
    kernel.put(
        "memory/docker/abc",
        memory__limit_in_bytes=f"{1600 * MIB}\n",
        memory__usage_in_bytes=f"{150 * MIB}\n",
        memory__stat=stat,
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
    )
    kernel.put("cpu,cpuacct/docker/abc", cpu__cfs_quota_us="50000\n", cpu__cfs_period_us="100000\n")
    assert memory_limit(kernel.proc) == MemoryLimit(1600 * MIB, 1500 * MIB)
    assert cpu_quota(kernel.proc) == 0.5
    assert oom_kills(kernel.proc) == 4


def test_version_1_without_a_limit(kernel: Kernel) -> None:
    kernel.v1("/")
    kernel.put("memory", memory__limit_in_bytes=V1_UNLIMITED, memory__usage_in_bytes="5\n")
    kernel.put("cpu,cpuacct", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert memory_limit(kernel.proc) is None
    assert cpu_quota(kernel.proc) is None


def test_the_nested_group_with_the_least_memory_left_counts(kernel: Kernel) -> None:
    kernel.v2("/machine/pod/container")
    kernel.put("machine", memory__max=f"{8000 * MIB}\n", memory__current=f"{7500 * MIB}\n", cpu__max="400000 100000\n")
    kernel.put("machine/pod", memory__max="max\n", memory__current=f"{900 * MIB}\n", cpu__max="100000 100000\n")
    kernel.put(
        "machine/pod/container",
        memory__max=f"{2000 * MIB}\n",
        memory__current=f"{800 * MIB}\n",
        cpu__max="200000 100000\n",
    )
    assert memory_limit(kernel.proc) == MemoryLimit(8000 * MIB, 500 * MIB)
    assert cpu_quota(kernel.proc) == 1.0


@pytest.mark.parametrize("mounted", ["/docker/abc", "/"])
def test_a_container_that_sees_its_own_group_as_the_root(kernel: Kernel, mounted: str) -> None:
    kernel.v1("/docker/abc", mounted)
    kernel.put("memory", memory__limit_in_bytes=f"{64 * MIB}\n", memory__usage_in_bytes=f"{4 * MIB}\n")
    assert memory_limit(kernel.proc) == MemoryLimit(64 * MIB, 60 * MIB)


def test_more_used_than_allowed_leaves_nothing(kernel: Kernel) -> None:
    kernel.v2("/")
    kernel.put("", memory__max=f"{10 * MIB}\n", memory__current=f"{12 * MIB}\n")
    assert memory_limit(kernel.proc) == MemoryLimit(10 * MIB, 0)


def test_what_the_kernel_killed_elsewhere_on_the_machine_is_not_counted(kernel: Kernel) -> None:
    (kernel.proc.parent / "vmstat").write_text("nr_free_pages 5\noom_kill 7\n")
    assert oom_kills(kernel.proc) == 7
    kernel.v2("/user.slice")
    kernel.put("user.slice", memory__events="oom 3\noom_kill 2\n")
    assert oom_kills(kernel.proc) == 2
