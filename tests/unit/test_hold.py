"""One process at a time: in a training's folder, in a server's, and at a server's port."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from disegno.core.errors import RequestError, ResourceError
from disegno.core.hold import held
from disegno.serving.serve import serve
from disegno.serving.settings import ServerSettings

pytestmark = pytest.mark.unit


def _serve(folder: Path, port: int) -> None:
    asyncio.run(serve(ServerSettings(folder=folder, port=port), lambda used: None))


def test_a_held_folder_says_who_holds_it_until_it_is_let_go(tmp_path: Path) -> None:
    with held(tmp_path / "run", "is training there", "--run") as say:
        say(" since noon")
        who = f"process {os.getpid()} on .* is training there since noon. .* --run"
        with pytest.raises(RequestError, match=who), held(tmp_path / "run", "is training there", "--run"):
            pass
    with held(tmp_path / "run", "is training there", "--run"):
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="Choose another folder: --run"), held(tmp_path / "file", "x", "--run"):
        pass


def test_a_second_server_of_a_folder_touches_nothing(tmp_path: Path) -> None:
    work = tmp_path / "work" / "a-job-1"
    work.mkdir(parents=True)
    with held(tmp_path, "serves from it", "--folder"), pytest.raises(RequestError, match=r"in use.* --folder"):
        _serve(tmp_path, 0)
    assert work.is_dir() and not (tmp_path / "jobs.sqlite").exists()


def test_a_server_whose_port_is_taken_touches_nothing(tmp_path: Path) -> None:
    work = tmp_path / "work" / "a-job-1"
    work.mkdir(parents=True)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RequestError, match=f"Nothing can listen at port {port} of 127.0.0.1 .* --port"):
            _serve(tmp_path, port)
    assert work.is_dir() and not (tmp_path / "jobs.sqlite").exists()


@pytest.mark.parametrize("db", ["foo", "nothing://x", "sqlite:////nothing/there.sqlite", "postgresql+pg8000://x/y"])
def test_a_database_that_cannot_be_opened_is_said(tmp_path: Path, db: str) -> None:
    with pytest.raises(RequestError, match=r"The jobs' database .* --db"):
        asyncio.run(serve(ServerSettings(folder=tmp_path, port=0, db=db), lambda used: None))


def test_a_host_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="Choose another address: --host"):
        asyncio.run(serve(ServerSettings(folder=tmp_path, port=0, host="no host"), lambda used: None))
