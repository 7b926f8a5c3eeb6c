"""A training in processes of its own, ended by signals at any moment: the same bytes in the end, no work lost."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

KIT = Path(__file__).parent.parent / "kit"
REQUEST = {"steps": 500, "save_every": 6, "validate_every": 50, "ema": 0.9, "rate_schedule": "cosine", "warmup": 5}
KILLS = {"SIGKILL": 10, "SIGTERM": 6}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what became of the trainings, and their folder: in memory where the system has that, which is faster."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path_factory.mktemp("kills")) as folder:
        words = [sys.executable, "-m", "kit.kill_loop", folder, "7", json.dumps(REQUEST), json.dumps(KILLS)]
        done = subprocess.run(words, cwd=KIT.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout), Path(folder)


@pytest.mark.parametrize("name", KILLS)
def test_the_result_is_the_same_to_the_bit(ended: Any, name: str) -> None:
    done, folder = ended
    assert done[name]["kills"] == KILLS[name]
    assert done[name]["sha256"] == done["undisturbed"]["sha256"]
    assert not list((folder / name).rglob("*.tmp"))
    assert done[name]["statuses"][-1] == 0


def test_some_kills_came_inside_a_save(ended: Any) -> None:
    assert ended[0]["SIGKILL"]["in_saves"] >= 2  # measured: half of them


def test_a_signal_that_is_heard_costs_no_step(ended: Any) -> None:
    """Each ends with status 0, at once, and the next goes on with the very next step."""
    done, folder = ended
    assert set(done["SIGTERM"]["statuses"]) == {0}
    assert done["SIGTERM"]["slowest_seconds"] < 30  # measured: 0.1 s
    lines = [line.split() for line in (folder / "SIGTERM.log").read_text("utf-8").splitlines()]
    steps = [int(step) for event, step, *why in lines if why == ["teaching"]]
    assert steps == list(range(1, REQUEST["steps"] + 1))
    assert sum(why == ["stopped"] for _, _, *why in lines) >= KILLS["SIGTERM"] - 1


def test_a_kill_costs_no_more_than_what_was_not_saved(ended: Any) -> None:
    lines = [line.split() for line in (ended[1] / "SIGKILL.log").read_text("utf-8").splitlines()]
    steps = [int(step) for event, step, *why in lines if why == ["teaching"]]
    again = [before - after + 1 for before, after in pairwise(steps) if after <= before]
    assert again and max(again) <= REQUEST["save_every"]
