"""Kills a training over and over, at random moments, half of them inside a save; begins it again until it has ended.

python tests/kit/kill_loop.py FOLDER SEED REQUEST_AS_JSON '{"SIGKILL": 10, "SIGTERM": 6}'

Prints JSON for each signal: how often it was killed, how often inside a save, the children's exit statuses, the
result's hash. A process that has imported everything forks a child for each round: what takes seconds is done once.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from disegno.training.lesson import Habits
from disegno.training.stopping import Stop
from kit import tiny_training as tiny


def _teach(folder: Path, fields: dict[str, object]) -> int:
    """Return the exit status of a training in this process; says its steps and how it ended in FOLDER.log."""
    with Path(f"{folder}.log").open("a", buffering=1) as log, Stop().on_signals() as stop:
        lesson = tiny.lesson(tiny.request(**fields), tiny.TinyLearner(tiny.TinyNet(512)))
        for event in tiny.events(folder, lesson, stop=stop):
            log.write(f"{type(event).__name__} {event.step} {getattr(event, 'why', getattr(event, 'stage', ''))}\n")
    return 0


def _start(folder: Path, fields: dict[str, object]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = _teach(folder, fields)
        finally:
            os._exit(status)
    return child


@dataclass
class Kills:
    """How it went. `statuses`: of the children that ended by themselves, or after a signal that they heard."""

    kills: int = 0
    in_saves: int = 0
    statuses: tuple[int, ...] = ()
    slowest_seconds: float = 0.0
    sha256: str = ""


def _saving(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").glob("*.tmp")}


def _wait_and_kill(child: int, folder: Path, number: int, random_: random.Random, done: Kills) -> bool:
    """Return whether it was killed, rather than ending before."""
    deadline, in_save = time.monotonic() + random_.uniform(0, 0.6), random_.random() < 0.7
    before = _saving(folder)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        saves = in_save and bool(_saving(folder) - before)
        if saves:
            time.sleep(random_.uniform(0, 0.003))
        if saves or time.monotonic() > deadline:
            os.kill(child, number)
            done.kills += 1
            done.in_saves += saves
            return True
        time.sleep(0.0005)
    done.statuses += (0,)
    return False


def _reap(child: int, done: Kills) -> None:
    """Wait for a child that was sent a signal."""
    began = time.monotonic()
    _, status = os.waitpid(child, 0)
    done.slowest_seconds = max(done.slowest_seconds, time.monotonic() - began)
    if not os.WIFSIGNALED(status):
        done.statuses += (os.waitstatus_to_exitcode(status),)


def _killed(folder: Path, kills: int, number: int, random_: random.Random, fields: dict[str, object]) -> Kills:
    """Kill until there were enough of it, then let it end."""
    done = Kills()
    while done.kills < kills and not (folder / "result.json").exists():
        child = _start(folder, fields)
        if _wait_and_kill(child, folder, number, random_, done):
            _reap(child, done)
    _, status = os.waitpid(_start(folder, fields), 0)
    done.statuses += (os.waitstatus_to_exitcode(status),)
    done.sha256 = sha256((folder / "tiny.safetensors").read_bytes()).hexdigest()
    return done


def main() -> None:
    """Train undisturbed once, then once for each signal."""
    folder, fields = Path(sys.argv[1]), json.loads(sys.argv[3])
    with TemporaryDirectory() as warm:  # torch imports seconds' worth when its optimisers are first used
        list(tiny.events(Path(warm), tiny.lesson(tiny.request(steps=1)), habits=Habits(workers=0)))
    random_ = random.Random(int(sys.argv[2]))
    rounds = {"undisturbed": (0, 0)} | {
        name: (int(n), signal.Signals[name]) for name, n in json.loads(sys.argv[4]).items()
    }
    done = {name: vars(_killed(folder / name, *how, random_, fields)) for name, how in rounds.items()}
    print(json.dumps(done))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
