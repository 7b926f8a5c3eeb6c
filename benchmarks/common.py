"""What the benchmarks share: models of Stable Diffusion 1.5's true shape with random weights, and one line of JSON."""

import json
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from disegno.memory import Memory, build_empty

UNET = {
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}


def random_weights(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return seeded float32 weights for an empty module: every tensor its own, activations stay finite."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: torch.Size) -> Tensor:
        if len(shape) == 1:
            return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        fan_in = shape.numel() // shape[0]
        return torch.randn(shape, generator=generator) * (0.7 / fan_in**0.5)

    return {name: draw(name, tensor.shape) for name, tensor in module.state_dict().items()}


def make(kind: str, seed: int = 0) -> tuple[Callable[[], nn.Module], dict[str, Tensor]]:
    """Return a builder and weights of a unet, controlnet or vae of Stable Diffusion 1.5's shape."""
    builders: dict[str, Callable[[], nn.Module]] = {
        "unet": lambda: UNet2DConditionModel(**cast(Any, UNET)),
        "controlnet": lambda: ControlNetModel(**cast(Any, UNET)),
        "vae": lambda: AutoencoderKL(**cast(Any, VAE)),
    }
    return builders[kind], random_weights(build_empty(builders[kind]), seed)


def build(kind: str, memory: Memory, seed: int = 0) -> Any:
    """Return a unet, controlnet or vae of Stable Diffusion 1.5's shape, with seeded random weights, placed."""
    builder, weights = make(kind, seed)
    return memory.build(builder, weights, kind)


def _serve(connection: Connection, open_parts: Callable[[], Callable[..., float]]) -> None:
    with torch.inference_mode():
        measure = open_parts()
        connection.send("ready")
        for arguments in iter(connection.recv, None):
            connection.send(measure(*arguments))


@dataclass(frozen=True)
class Worker:
    """A process of its own that measures: its allocator, its threads and its weights are nobody else's."""

    process: BaseProcess
    connection: Connection

    @classmethod
    def start(cls, open_parts: Callable[[], Callable[..., float]]) -> "Worker":
        """Return a worker that has called `open_parts` and now waits. It must be a function of a module."""
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, open_parts), daemon=True)
        process.start()
        assert ours.recv() == "ready"
        return cls(process, ours)

    def measure(self, *arguments: object) -> float:
        """Return the seconds that the worker measured."""
        self.connection.send(arguments)
        return self.connection.recv()

    def stop(self) -> None:
        self.connection.send(None)
        self.process.join()


def in_turn(
    workers: dict[str, Worker], arguments: tuple[object, ...], rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Return every worker's times, taken in turn, so that a drifting machine drifts for all."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    for i in range(rounds + warmup):
        for name, worker in workers.items():
            seconds = worker.measure(*arguments)
            if i >= warmup:
                times[name].append(round(seconds, 4))
    return times


def interleaved(functions: dict[str, Callable[[], float]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Return the seconds that each function measured, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(rounds + warmup):
        for name, function in functions.items():
            seconds = function()
            if i >= warmup:
                times[name].append(round(seconds, 4))
    return times


def median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 4)


def _commit() -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=folder)
    return done.stdout.strip()


def report(name: str, **figures: Any) -> None:
    """Print one JSON line: the benchmark, the figures, and what they were measured with."""
    where = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "commit": _commit(),
    }
    print(json.dumps({"benchmark": name, **figures, "with": where}))
