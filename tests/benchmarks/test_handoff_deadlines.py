"""A sender whose pages do not arrive gives up: over TCP, to a process that is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import multiprocessing as mp, os, signal, torch
from benchmarks.handoff import MIB, Sender, layout_of, receiver
from baton.kv_transfer.nixl import NixlTransport

size = 64 * MIB  # more than the buffers of a connection hold
layout = layout_of(size)
context = mp.get_context("spawn")
ours, theirs = context.Pipe()
process = context.Process(target=receiver, args=(size, theirs), daemon=True)
process.start()
transport = NixlTransport(torch.ones(layout.shape), layout, "sender:1")
endpoint = ours.recv()
transport.connect(endpoint)
ours.send(transport.endpoint)
pages = list(range(layout.num_pages))
sender = Sender(transport, endpoint.agent, transport._pages, most_s=20.0)
sender.path(pages, pages), sender.raw(pages, pages)
print("arrived")
sender.most_s = 0.5
os.kill(process.pid, signal.SIGSTOP)
for send in (sender.path, sender.raw):
    try:
        send(pages, pages)
    except TimeoutError as error:
        print(error)
process.kill()
os._exit(0)
"""


def test_pages_that_never_arrive_end_the_round_with_an_error_message() -> None:
    environment = os.environ | {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    first, *timeouts = done.stdout.splitlines()
    assert first == "arrived", done.stderr
    assert len(timeouts) == 2, done.stdout + done.stderr
    assert all("64 MiB have not arrived at receiver:1 within 0.5 s" in line for line in timeouts)
