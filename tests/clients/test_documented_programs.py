"""The programs and commands of README.md and docs/openai.md do what they show, in the order in which they stand."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from baton.builtin_model.sentences import is_sentence
from tests.clients.cluster import Served

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", "docs/openai.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_programs_with_the_client_of_openai_run(served: Served, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / name).read_text().replace("127.0.0.1:8000", served.address)
    blocks = [block for block in BLOCK.findall(text) if "import baton" not in block]
    whole, streamed = blocks
    names: dict[str, object] = {}
    exec(whole, names)
    answers = [capsys.readouterr().out]
    exec(streamed, names)
    answers.append(capsys.readouterr().out)
    for answer in answers:
        assert answer.startswith(" ")
        assert is_sentence("the old fox" + answer.rstrip())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_command_with_curl_is_answered(served: Served, name: str) -> None:
    (command,) = re.findall(r"^curl .+$", (ROOT / name).read_text(), re.MULTILINE)
    arguments = shlex.split(command.replace("127.0.0.1:8000", served.address))
    done = subprocess.run([*arguments, "-sS"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert '"role":"assistant"' in done.stdout
