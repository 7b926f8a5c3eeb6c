"""A server that keeps its jobs in PostgreSQL: killed, what it acknowledged is carried out by the next one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from disegno.backbones import miniature
from kit.postgres import postgres
from kit.server import Server, start

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

REQUEST: dict[str, Any] = {"model": "mini", "prompt": "a cat", "width": 64, "height": 64, "steps": 4}


@pytest.fixture
def db() -> Iterator[str]:
    with postgres() as url:
        yield url


def _serve(folder: Path, db: str) -> Server:
    where = {"DISEGNO_MODEL_DIRS": str(folder / "models"), "DISEGNO_CACHE_DIR": str(folder / "cache")}
    return start(folder / "server", "--db", db, "--device", "cpu", "--dtype", "fp32", **where)


def test_what_was_acknowledged_is_carried_out_after_a_kill(tmp_path: Path, db: str) -> None:
    miniature.write_sd1_checkpoint(tmp_path / "models" / "mini.safetensors")
    first = _serve(tmp_path, db)
    keys = [{"Idempotency-Key": str(seed)} for seed in range(8)]
    asked = [REQUEST | {"seed": seed} for seed in range(8)]
    jobs = [first.submit("generate", fields, **key)["id"] for fields, key in zip(asked, keys, strict=True)]
    assert first.kill() == -9
    second = _serve(tmp_path, db)
    again = [second.submit("generate", fields, **key)["id"] for fields, key in zip(asked, keys, strict=True)]
    assert again == jobs
    ended = [second.wait(job) for job in jobs]
    assert [job["state"] for job in ended] == ["done"] * 8
    assert all(second.ask("GET", job["result"]["files"][0]["url"]).content[:4] == b"\x89PNG" for job in ended)
    assert second.stop() == 0
    assert not (tmp_path / "server" / "jobs.sqlite").exists()
