"""One controlled, guided step of Stable Diffusion 1.5's shape: ours, and that of diffusers' pipeline.

    python benchmarks/bench_sd15.py [--size 512 256] [--rounds 3]

The same random weights, 2 rows of guidance, a ControlNet. The peer, StableDiffusionControlNetPipeline, at its defaults
(float32) and tuned by hand (bfloat16, channels_last); each program in a process of its own, in turn; steps are timed
inside the peer's own loop, ours inside `engine.batch`. One JSON line a size.
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from common import Worker, build, in_turn, make, median, report
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionControlNetPipeline
from safetensors.torch import save_file
from torch import Tensor

from disegno.backbones.base import TextStates
from disegno.backbones.sd1 import DEFAULTS, FAMILY, LatentDiffusion
from disegno.controls import controlnet
from disegno.controls.base import Condition
from disegno.controls.controlnet import ControlNetController
from disegno.controls.strength import Use, Used
from disegno.core.settings import Settings
from disegno.diffusion.denoiser import Guidance
from disegno.diffusion.noise import ImageNoise
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import plan_sigmas, scaled_linear_table
from disegno.engine.batch import Batch, Run
from disegno.engine.texts import Texts
from disegno.memory import Memory, decide, tune_allocator
from disegno.samplers.base import Plan
from disegno.samplers.catalogue import find_sampler

STEPS = 2
PARTS = ("unet", "controlnet", "vae")


def ours(memory: Memory) -> tuple[LatentDiffusion, ControlNetController]:
    """Return our backbone, and a ControlNet opened from a file."""
    backbone = LatentDiffusion(
        family=FAMILY, name="sd15", prediction=PREDICTIONS["epsilon"], table=scaled_linear_table(), defaults=DEFAULTS,
        net=memory.pack(build("unet", memory)), vae=build("vae", memory), text=cast(Any, None), memory=memory,
        fingerprint="random",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "control.safetensors"
        save_file({name: tensor.bfloat16() for name, tensor in make("controlnet")[1].items()}, path)
        return backbone, controlnet.open(path, backbone, memory)


def new_run(backbone: LatentDiffusion, controller: ControlNetController, texts: Tensor, size: int) -> Run:
    """Return a run of one controlled picture of `size` pixels, guided."""
    spec = find_sampler("DDIM")
    sigmas = plan_sigmas(spec, "uniform", STEPS, backbone.table)
    noise = ImageNoise((4, size // 8, size // 8), [1], sigmas=sigmas)
    plan = Plan(sigmas, noise, backbone.prediction.alpha, backbone.table)
    control = Used(controller.prepare(Condition(torch.rand(1, 3, size, size), "condition")), Use())
    positive, negative = (TextStates(texts[i : i + 1], None, (key,)) for i, key in enumerate(("positive", "negative")))
    states = Texts.plain(positive, negative)
    return Run(spec.sample(noise.start_noise() * sigmas[0], plan), states, Guidance(7.5), sigmas, (control,))


def open_ours() -> Callable[..., float]:
    """Return a function that does one step of a fresh run, and gives back its seconds."""
    tune_allocator()
    memory = Memory(decide(Settings()))
    backbone, controller = ours(memory)
    texts = torch.randn(2, 77, 768)

    def step(size: int) -> float:
        batch = Batch(backbone)
        batch.add(new_run(backbone, controller, texts, size))
        batch.step()
        began = perf_counter()
        batch.step()
        return perf_counter() - began

    return step


def peer(unet: Any, controlnet: Any, vae: AutoencoderKL) -> StableDiffusionControlNetPipeline:
    """Return diffusers' pipeline around these modules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = StableDiffusionControlNetPipeline(
            vae=vae, text_encoder=cast(Any, None), tokenizer=cast(Any, None), unet=unet, controlnet=controlnet,
            scheduler=cast(Any, DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)),
            safety_checker=cast(Any, None), feature_extractor=cast(Any, None), requires_safety_checker=False,
        )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def peer_step(pipe: StableDiffusionControlNetPipeline) -> Callable[..., float]:
    """Return a function that runs the pipeline and gives back how long its last step took."""
    texts = torch.randn(2, 77, 768).to(pipe.unet.dtype)

    def step(size: int) -> float:
        stamps: list[float] = []

        def stamp(pipe: Any, i: int, t: Any, kept: dict[str, Any]) -> dict[str, Any]:
            stamps.append(perf_counter())
            return kept

        pipe(
            prompt_embeds=texts[:1], negative_prompt_embeds=texts[1:], image=torch.rand(1, 3, size, size), height=size,
            width=size, num_inference_steps=STEPS, guidance_scale=7.5, output_type="latent",
            callback_on_step_end=cast(Any, stamp),
        )  # fmt: skip
        return stamps[-1] - stamps[-2]

    return step


def open_default() -> Callable[..., float]:
    """Return the measuring function of diffusers as it comes: float32."""
    memory = Memory(decide(Settings(dtype="fp32")))
    return peer_step(peer(*(build(kind, memory) for kind in PARTS)))


def open_tuned() -> Callable[..., float]:
    """Return the measuring function of diffusers tuned by hand: bfloat16 and channels_last, where the CPU has them."""
    memory = Memory(decide(Settings()))
    return peer_step(peer(*(build(kind, memory) for kind in PARTS)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[512, 256])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    openers = {"diffusers_default": open_default, "diffusers_tuned": open_tuned, "disegno": open_ours}
    workers = {name: Worker.start(opener) for name, opener in openers.items()}
    for size in args.size:
        times = in_turn(workers, (size,), args.rounds)
        found = {name: median(values) for name, values in times.items()}
        report(
            "sd15_controlled_step",
            size=size,
            step_seconds=found,
            all_seconds=times,
            faster_than_default=round(found["diffusers_default"] / found["disegno"], 2),
            faster_than_tuned=round(found["diffusers_tuned"] / found["disegno"], 2),
        )
    for worker in workers.values():
        worker.stop()


if __name__ == "__main__":
    main()
