"""A real Prometheus on a free port, and its promtool."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from baton.deploy.local_ray import free_port
from tests.waiting import until

OBSERVABILITY = Path(__file__).resolve().parents[2] / "deploy" / "observability"
CONFIG = OBSERVABILITY / "prometheus" / "prometheus.yml"
RULES = OBSERVABILITY / "prometheus" / "rules.yml"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
needs_prometheus = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian's package).")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian's package prometheus).")
START_TIMEOUT_S = 30.0


def promtool(*arguments: str) -> str:
    """What promtool prints; raises `AssertionError` with it if it fails."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API; raises `ValueError` with its message for an error."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{path}?{query}: {json.load(error)['error']}") from None

    def query(self, expression: str) -> list[Any]:
        """The series of an expression now."""
        data = self.get("query", query=expression)
        return [] if data["resultType"] == "scalar" else list(data["result"])

    def until(self, expression: str, timeout_s: float = 60.0) -> list[Any]:
        """Look until an expression has series; raises `AssertionError` after `timeout_s`."""
        found: list[Any] = []

        def look() -> bool:
            found[:] = self.query(expression)
            return bool(found)

        until(look, timeout_s, f"{expression} has no data")
        return found


@contextmanager
def prometheus(folder: Path, discovery_url: str, scrape_interval: str = "1s") -> Iterator[Prometheus]:
    """A Prometheus with the configuration of `deploy/observability`, except for the router's URL and the interval."""
    assert PROMETHEUS is not None
    text = CONFIG.read_text().replace("http://127.0.0.1:8001/sd", discovery_url)
    text = text.replace("scrape_interval: 5s", f"scrape_interval: {scrape_interval}")
    text = text.replace("refresh_interval: 15s", "refresh_interval: 1s")
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(RULES, folder / "rules.yml")
    address = f"127.0.0.1:{free_port()}"
    command = [PROMETHEUS, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address={address}", "--enable-feature=exemplar-storage", "--log.level=warn"]
    log = folder / "prometheus.log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            _until_ready(f"http://{address}/-/ready", process, log)
            yield Prometheus(f"http://{address}")
        finally:
            process.kill()


def _until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return True
        return False

    until(answers, START_TIMEOUT_S, "Prometheus does not answer")
