"""Is a server's memory flat under load? Clients submit pictures for N minutes while every process is weighed.

    python benchmarks/soak_server.py [--minutes 30] [--warm-minutes 10] [--clients 4] [--cache-mib 16] [--csv FILE]

A real `disegno serve` with the built-in model: sizes, samplers, prompts, controls and batches vary, a tenth of the jobs
fails, a tenth is cancelled. The cache of residuals is small, so that it is full when the warm-up ends. One JSON line:
jobs by state, and of each process the resident memory over the minutes after the warm-up: the mean of their first third
and of their last, the most, and the slope in MiB an hour, with its standard error.
"""

import argparse
import csv
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
from common import report
from PIL import Image

from disegno.engine.record import data_uri
from disegno.weights.built_in import built_in_folder

EVERY_SECONDS = 5.0
SAMPLERS = ("Euler", "Euler a", "DPM++ 2M", "DDIM", "UniPC")
THINGS = ("a red car", "a white cat", "two people", "a green bus", "a boat", "a blue bird")
PLACES = ("on a city street", "in a room", "on a lake", "in the snow", "under trees")
MIB = 2**20


@dataclass
class Load:
    """What clients do, and what came of it."""

    url: str
    picture: str
    until: float
    told: Counter[str] = field(default_factory=Counter[str])

    def request(self, chance: random.Random) -> dict[str, Any]:
        """Return a request, no two alike; now and then one that must fail."""
        fields: dict[str, Any] = {
            "prompt": f"{chance.choice(THINGS)} {chance.choice(PLACES)}, {chance.randrange(10**6)}",
            "seed": chance.randrange(2**31), "steps": chance.randrange(1, 5), "sampler": chance.choice(SAMPLERS),
            "width": chance.choice((64, 96, 128)), "height": chance.choice((64, 128)),
            "batch": chance.choice((1, 1, 2)),
        }  # fmt: skip
        if chance.random() < 0.3:
            fields["controls"] = [{"name": "canny", "image": self.picture, "annotate": "canny"}]
        return fields | ({"sampler": "no such sampler"} if chance.random() < 0.1 else {})

    def run(self, seed: int) -> None:
        """Submit one job after another until the time is over."""
        chance, session = random.Random(seed), requests.Session()
        while time.monotonic() < self.until:
            job = self._post(session, "/v1/jobs", {"kind": "generate", "request": self.request(chance)})
            if chance.random() < 0.1:
                self._post(session, f"/v1/jobs/{job['id']}/cancel", None)
            while job["state"] in ("queued", "running"):
                time.sleep(0.05)
                job = session.get(f"{self.url}/v1/jobs/{job['id']}", timeout=120).json()
            self.told[job["state"] if job["failure"] is None else job["failure"]["code"]] += 1

    def _post(self, session: requests.Session, path: str, body: Any) -> Any:
        answer = session.post(self.url + path, json=body, timeout=120)
        answer.raise_for_status()
        return answer.json()


def start(folder: Path, cache_mib: int) -> "tuple[subprocess.Popen[str], str]":
    """Return a server that is ready, and its address."""
    env = os.environ | {"DISEGNO_RESIDUAL_CACHE_MIB": str(cache_mib)}
    words = [sys.executable, "-m", "disegno.cli.main", "serve", "--port", "0", "--folder", str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
    assert process.stdout is not None
    url = process.stdout.readline().split()[3]
    while requests.get(f"{url}/ready", timeout=120).status_code != 200:
        time.sleep(0.1)
    return process, url


def weigh(process: psutil.Process) -> dict[str, float]:
    """Return the resident memory of the server and its workers, in MiB."""
    people = [("server", process), *((f"worker {i}", child) for i, child in enumerate(process.children()))]
    return {name: person.memory_info().rss / MIB for name, person in people}


def slope(rows: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the slope of (seconds, MiB) in MiB an hour, and its standard error, by least squares."""
    x, y = (np.array(column) for column in zip(*rows, strict=True))
    x = (x - x.mean()) / 3600
    rise = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - rise * x
    return rise, math.sqrt(float((rest**2).sum()) / max(1, len(rows) - 2) / float((x * x).sum()))


def figures(rows: list[tuple[float, dict[str, float]]], warm_seconds: float) -> dict[str, dict[str, float]]:
    """Return each process's memory after the warm-up: early, late, at most, and how it rises."""
    warm = [row for row in rows if row[0] >= warm_seconds]
    found: dict[str, dict[str, float]] = {}
    for name in warm[-1][1]:
        own = [(at, weights[name]) for at, weights in warm if name in weights]
        third, weighed = max(1, len(own) // 3), np.array([mib for _, mib in own])
        rise, error = slope(own)
        told = {
            "first_third_mib": float(weighed[:third].mean()), "last_third_mib": float(weighed[-third:].mean()),
            "most_mib": float(weighed.max()), "slope_mib_per_hour": rise, "error": error,
        }  # fmt: skip
        found[name] = {key: round(value, 1) for key, value in told.items()}
    return found


def main() -> None:
    """Soak, and print what was found."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--minutes", type=float, default=30)
    words.add_argument("--warm-minutes", type=float, default=10, help="before anything counts; not among the minutes")
    words.add_argument("--clients", type=int, default=4)
    words.add_argument("--cache-mib", type=int, default=16, help="of control residuals; 512 is the server's own")
    words.add_argument("--csv", type=Path)
    asked = words.parse_args()
    picture = data_uri(_example())
    with tempfile.TemporaryDirectory() as name:
        process, url = start(Path(name), asked.cache_mib)
        began = time.monotonic()
        load = Load(url, picture, began + 60 * (asked.warm_minutes + asked.minutes))
        clients = [threading.Thread(target=load.run, args=(seed,)) for seed in range(asked.clients)]
        for client in clients:
            client.start()
        rows: list[tuple[float, dict[str, float]]] = []
        while any(client.is_alive() for client in clients):
            rows.append((time.monotonic() - began, weigh(psutil.Process(process.pid))))
            time.sleep(EVERY_SECONDS)
        process.terminate()
        status = process.wait(60)
    if asked.csv is not None:
        with asked.csv.open("w", newline="") as file:
            csv.writer(file).writerows((round(at, 1), json.dumps(weights)) for at, weights in rows)
    report(
        "soak_server", minutes=asked.minutes, warm_minutes=asked.warm_minutes, clients=asked.clients,
        cache_mib=asked.cache_mib, jobs=dict(load.told), processes=figures(rows, 60 * asked.warm_minutes),
        exit_status=status, cores=os.cpu_count(),
    )  # fmt: skip


def _example() -> Image.Image:
    with Image.open(built_in_folder() / "examples" / "car_512.png") as picture:
        return picture.convert("RGB").resize((128, 128))


if __name__ == "__main__":
    main()
