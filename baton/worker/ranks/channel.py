"""Connections between the ranks of a worker: Unix sockets in a folder that only their user can read.

Each follower has two: a channel for commands and replies, and a lifeline that shows the death of either side.
"""

from __future__ import annotations

import os
import pickle
import secrets
import select
import shutil
import socket
import tempfile
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

from baton.config.ray_names import RAY_FOLDER
from baton.protocol.errors import InternalError

ACCEPT_S = 0.2  # Time between two checks that the followers still run
_SOCKET = "leader"


class Channel:
    """One end of a channel for the messages of `commands`. `EOFError` and `OSError` are the end of the other side."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._poll = select.poll()  # Kept, because a connection's own `poll` makes one at each call
        self._poll.register(self.fileno(), select.POLLIN)

    def fileno(self) -> int:
        """The descriptor that becomes readable with a message."""
        number: int = self._connection.fileno()
        return number

    def send(self, message: object) -> None:
        """Send one message."""
        self._connection.send_bytes(pickled(message))

    def send_pickled(self, message: bytes) -> None:
        """Send a message that `pickled` has returned."""
        self._connection.send_bytes(message)

    def receive(self) -> Any:
        """Wait for the next message."""
        return pickle.loads(self._connection.recv_bytes())

    def readable(self, wait_s: float | None) -> bool:
        """Whether a message, or the other side's end, comes within `wait_s`; None: without a limit."""
        return bool(self._poll.poll(None if wait_s is None else wait_s * 1000))

    def close(self) -> None:
        """Close it; the other side reads its end."""
        self._connection.close()


def pickled(message: object) -> bytes:
    """A message as bytes, to send it to several ranks."""
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


class MeetingPlace:
    """Where followers join their leader: a private folder, with a socket that is open until all have joined."""

    def __init__(self) -> None:
        # Of mode 0700. Baton's own Ray removes its folder, with what killed processes leave there.
        self.folder = Path(tempfile.mkdtemp(prefix="baton-ranks-", dir=os.environ.get(RAY_FOLDER)))
        self.authkey = secrets.token_bytes(32)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self.folder / _SOCKET))
        self._socket.listen()
        self._socket.settimeout(ACCEPT_S)

    def accept(self) -> tuple[int, bool, Any] | None:
        """A follower's next connection, as (rank, whether it is the lifeline, connection); None after `ACCEPT_S`."""
        try:
            accepted, _ = self._socket.accept()
        except TimeoutError:
            return None
        accepted.setblocking(True)
        connection = Connection(accepted.detach())
        deliver_challenge(connection, self.authkey)
        answer_challenge(connection, self.authkey)
        rank, lifeline = connection.recv()
        return rank, lifeline, connection

    def end_listening(self) -> None:
        """All have joined: remove the socket."""
        self._socket.close()
        (self.folder / _SOCKET).unlink()

    def close(self) -> None:
        """Remove the folder; a repeat does nothing."""
        self._socket.close()
        remove(self.folder)


def join(folder: Path, authkey: bytes, rank: int) -> tuple[Channel, Any]:
    """A follower's channel and lifeline to its leader. Raises `InternalError` when the leader has ended."""

    def connect(lifeline: bool) -> Any:
        connection = Client(str(folder / _SOCKET), "AF_UNIX", authkey)
        connection.send((rank, lifeline))
        return connection

    try:
        lifeline = connect(True)
        return Channel(connect(False)), lifeline
    except (OSError, EOFError) as error:
        raise InternalError(f"Rank {rank} cannot join its worker: {error}.") from None


def remove(folder: Path) -> None:
    """Remove the folder in which ranks met, if it is still there."""
    shutil.rmtree(folder, ignore_errors=True)
