"""A PostgreSQL of the test's own: a cluster in a temporary folder, spoken to over a socket in it."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_USER = "postgres"


def _program(name: str) -> str:
    """Return where a program of PostgreSQL's is. Debian keeps them beside their version."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(beside[-1]) if beside else None)
    if found is None:
        pytest.skip("there is no PostgreSQL on this machine: apt-get install postgresql")
    return found


def _wait_ready(folder: Path) -> None:
    until = time.monotonic() + 60
    while subprocess.run([_program("pg_isready"), "-q", "-h", str(folder)]).returncode != 0:
        assert time.monotonic() < until, "PostgreSQL did not start"
        time.sleep(0.1)


@contextmanager
def postgres() -> Iterator[str]:
    """Give the address of a running PostgreSQL, for SQLAlchemy; it ends afterwards, and its folder goes."""
    initdb, server = _program("initdb"), _program("postgres")
    user = _USER if os.geteuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if user is not None:
            shutil.chown(folder, user)
        words = [initdb, "-D", "data", "-U", _USER, "-A", "trust", "-N"]
        subprocess.run(words, cwd=folder, user=user, check=True, stdout=subprocess.DEVNULL)
        process = subprocess.Popen(
            [server, "-D", "data", "-k", str(folder), "-c", "listen_addresses=", "-c", "log_min_messages=fatal"],
            cwd=folder, user=user,
        )  # fmt: skip
        try:
            _wait_ready(folder)
            yield f"postgresql+psycopg://{_USER}@/postgres?host={folder}"
        finally:
            process.terminate()
            process.wait(30)
