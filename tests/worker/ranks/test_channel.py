"""How the ranks of a worker meet."""

from __future__ import annotations

import stat
import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import pytest

from baton.config.ray_names import RAY_FOLDER
from baton.protocol.errors import InternalError
from baton.worker.ranks.channel import Channel, MeetingPlace, join, pickled


def met(place: MeetingPlace, ranks: range) -> tuple[dict[int, Channel], dict[int, Any], dict[int, Channel]]:
    """The leader's channels and lifelines, and the followers' channels."""
    joined: dict[int, Channel] = {}
    threads = [
        threading.Thread(target=lambda rank=rank: joined.update({rank: join(place.folder, place.authkey, rank)[0]}))
        for rank in ranks
    ]
    for thread in threads:
        thread.start()
    channels: dict[int, Channel] = {}
    lifelines: dict[int, Any] = {}
    while len(channels) < len(ranks) or len(lifelines) < len(ranks):
        if (accepted := place.accept()) is not None:
            rank, lifeline, connection = accepted
            if lifeline:
                lifelines[rank] = connection
            else:
                channels[rank] = Channel(connection)
    place.end_listening()
    for thread in threads:
        thread.join()
    return channels, lifelines, joined


def test_followers_join_in_any_order_and_get_what_their_leader_sends() -> None:
    place = MeetingPlace()
    channels, lifelines, joined = met(place, range(1, 4))
    assert sorted(channels) == sorted(lifelines) == [1, 2, 3]
    for rank, channel in channels.items():
        channel.send(f"to {rank}")
        assert joined[rank].readable(10.0) and joined[rank].receive() == f"to {rank}"
        joined[rank].send_pickled(pickled(rank))
        assert channel.receive() == rank
        assert not channel.readable(0.0)
    place.close()


def test_on_batons_own_ray_the_folder_is_in_that_rays_and_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RAY_FOLDER, str(tmp_path))
    place = MeetingPlace()
    assert place.folder.parent == tmp_path
    place.close()
    assert not list(tmp_path.iterdir())


def test_the_folder_is_private_and_its_socket_is_gone_once_all_have_joined() -> None:
    place = MeetingPlace()
    assert stat.S_IMODE(place.folder.stat().st_mode) == 0o700
    assert [path.name for path in place.folder.iterdir()] == ["leader"]
    met(place, range(1, 3))
    assert list(place.folder.iterdir()) == []
    with pytest.raises(InternalError, match="Rank 1 cannot join"):
        join(place.folder, place.authkey, 1)
    place.close()
    place.close()
    assert not place.folder.exists()


def test_a_process_without_the_key_does_not_join() -> None:
    place = MeetingPlace()
    refused: list[Exception] = []

    def intrude() -> None:
        try:
            Client(str(place.folder / "leader"), "AF_UNIX", b"another key")
        except (AuthenticationError, OSError, EOFError) as error:
            refused.append(error)

    thread = threading.Thread(target=intrude)
    thread.start()
    with pytest.raises(AuthenticationError):
        while place.accept() is None:
            pass
    place.close()
    thread.join()
    assert refused


def test_the_end_of_the_other_side_is_readable() -> None:
    place = MeetingPlace()
    channels, _, joined = met(place, range(1, 2))
    joined[1].close()
    assert channels[1].readable(10.0)
    with pytest.raises(EOFError):
        channels[1].receive()
    place.close()


def test_a_worker_whose_folder_is_gone_has_ended(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="cannot join"):
        join(tmp_path / "gone", b"key", 2)
