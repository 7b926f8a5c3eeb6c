"""What a control costs: 4 images of one condition, with CtrLoRA, a plain ControlNet, a T2I-Adapter, and no control.

    python benchmarks/bench_control_cost.py [--size 256] [--rounds 3] [--images 4]

Stable Diffusion 1.5's shape, random weights, rank 128, 2 rows of guidance an image. "cold": every residual is
computed; "warm": a second seed of the same prompt and condition finds them in the cache. The peer is the plain
ControlNet in the same
engine, which has to look at every row. One JSON line.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from common import UNET, build, interleaved, make, median, report
from diffusers import T2IAdapter
from safetensors.torch import save_file
from torch import Tensor

from disegno.backbones.base import TextStates
from disegno.backbones.sd1 import DEFAULTS, FAMILY, LatentDiffusion
from disegno.controls import controlnet, ctrlora, t2i_adapter
from disegno.controls.base import Condition, Control
from disegno.controls.strength import Use, Used
from disegno.core.settings import Settings
from disegno.diffusion.denoiser import Guidance
from disegno.diffusion.noise import ImageNoise
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import plan_sigmas, scaled_linear_table
from disegno.engine.batch import Batch, Run
from disegno.engine.residuals import ResidualCache, Shared
from disegno.engine.texts import Texts
from disegno.memory import Memory, decide, tune_allocator
from disegno.samplers.base import Plan
from disegno.samplers.catalogue import find_sampler

STEPS = 6
RANK = 128


def write_ctrlora(folder: Path) -> tuple[Path, Path]:
    """Return a Base ControlNet and a condition file of the true shape, with random weights."""
    _, weights = make("controlnet", seed=1)
    base = {name: tensor.half() for name, tensor in weights.items() if not name.startswith("controlnet_cond_embedding")}
    header = {"disegno.mechanism": "ctrlora-base", "disegno.family": "sd1", "disegno.config": json.dumps(UNET)}
    save_file(base, folder / "base.safetensors", header)
    condition: dict[str, Tensor] = {}
    for name, tensor in base.items():
        module = name.removesuffix(".weight")
        if tensor.ndim == 2 and name.endswith(".weight"):
            condition[f"{module}.lora_layer.down.weight"] = torch.randn(RANK, tensor.shape[1]).half() / RANK
            condition[f"{module}.lora_layer.up.weight"] = torch.randn(tensor.shape[0], RANK).half() * 0.01
        elif "controlnet_" in name or (".attentions." in name and "norm" in name):
            condition[name] = tensor.clone()
    header = {
        "disegno.mechanism": "ctrlora",
        "disegno.family": "sd1",
        "disegno.name": "random",
        "disegno.rank": str(RANK),
    }
    save_file(condition, folder / "condition.safetensors", header)
    return folder / "base.safetensors", folder / "condition.safetensors"


def run_of(
    backbone: LatentDiffusion, controls: tuple[Control, ...], size: int, seed: int, num: int, texts: Tensor
) -> Run:
    """Return a run of `num` guided pictures."""
    spec = find_sampler("DDIM")
    sigmas = plan_sigmas(spec, "uniform", STEPS, backbone.table)
    noise = ImageNoise((4, size // 8, size // 8), [seed + i for i in range(num)], sigmas=sigmas)
    plan = Plan(sigmas, noise, backbone.prediction.alpha, backbone.table)
    positive, negative = (TextStates(texts[i : i + 1], None, (key,)) for i, key in enumerate(("positive", "negative")))
    states = Texts.plain(positive, negative, num)
    return Run(spec.sample(noise.start_noise() * sigmas[0], plan), states, Guidance(7.5), sigmas, controls)


def measured(
    backbone: LatentDiffusion,
    controls: tuple[Control, ...],
    size: int,
    num: int,
    texts: Tensor,
    cache: ResidualCache | None,
) -> Callable[[], float]:
    """Return a function that draws all steps and gives back the seconds; `cache`: emptied first."""

    def draw() -> float:
        if cache is not None:
            cache.clear()
        batch = Batch(backbone)
        batch.add(run_of(backbone, controls, size, 1, num, texts))
        began = perf_counter()
        while batch.runs:
            batch.step()
        return perf_counter() - began

    return draw


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4)
    args = parser.parse_args()
    memory = Memory(decide(Settings()))
    backbone = LatentDiffusion(
        family=FAMILY, name="sd15", prediction=PREDICTIONS["epsilon"], table=scaled_linear_table(), defaults=DEFAULTS,
        net=memory.pack(build("unet", memory)), vae=build("vae", memory), text=cast(Any, None), memory=memory,
        fingerprint="random",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        base, file = write_ctrlora(Path(folder))
        save_file(make("controlnet", seed=2)[1], Path(folder) / "plain.safetensors")
        plain = controlnet.open(Path(folder) / "plain.safetensors", backbone, memory)
        save_file(T2IAdapter(3, [320, 640, 1280, 1280], 2).state_dict(), Path(folder) / "t2i.safetensors")
        adapter = t2i_adapter.open(Path(folder) / "t2i.safetensors", backbone, memory)
        lora = ctrlora.open(file, backbone, memory, base=ctrlora.open_base(base, backbone, memory))
    condition = Condition(torch.rand(1, 3, args.size, args.size), "condition")
    cold, warm = ResidualCache(1 << 30), ResidualCache(1 << 30)
    prepared = lora.prepare(condition)
    texts = torch.randn(2, 77, 768)
    cases: dict[str, tuple[tuple[Control, ...], ResidualCache | None]] = {
        "none": ((), None),
        "ctrlora_cold": ((Used(Shared(prepared, cold), Use()),), cold),
        "ctrlora_warm": ((Used(Shared(prepared, warm), Use()),), None),
        "controlnet": ((Used(plain.prepare(condition), Use()),), None),
        "t2i_adapter": ((Used(adapter.prepare(condition), Use()),), None),
    }
    functions = {
        name: measured(backbone, controls, args.size, args.images, texts, cache)
        for name, (controls, cache) in cases.items()
    }
    times = interleaved(functions, args.rounds)
    found = {name: median(values) for name, values in times.items()}
    ratios = {
        f"{name}_ratio": round(median([a / b for a, b in zip(times[name], times["none"], strict=True)]), 3)
        for name in cases
    }
    report("control_cost", size=args.size, images=args.images, steps=STEPS, seconds=found, all_seconds=times, **ratios)


if __name__ == "__main__":
    tune_allocator()
    with torch.inference_mode():
        main()
