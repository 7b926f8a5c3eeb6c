"""One step of teaching a CtrLoRA condition at Stable Diffusion 1.5's size: ours, and as the reference program trains.

    python benchmarks/bench_teach.py [--size 512] [--rank 128] [--steps 3]

Random weights, batch 1. Ours: the recipe `ctrlora` on cached examples, at the dtype of this machine. The peer is
plain PyTorch around diffusers' and transformers' own classes, and does what xyfJASON/ctrlora's finetuning does:
float32; VAE and CLIP in memory, the target and the condition encoded at every step; activations recomputed; the
decoder of the UNet left to require gradients. `reference` attends as that program does where there is no xformers, as
on a CPU: by products, with the whole matrix of scores (ldm/modules/attention.py). `fused` is the same peer with
PyTorch's fused attention. Each runs in a process of its own, one after the other, from the same files. One JSON line:
seconds a step, processor time (on a busy machine the fairer one), peak memory, ratios to each peer.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, cast

import torch
from common import UNET, VAE, make, median, report
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from disegno.core.settings import Settings
from disegno.core.teach import TeachRequest
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import scaled_linear_table
from disegno.memory import Memory, build_empty, tune_allocator
from disegno.training.base import Batch, row_seed
from disegno.training.cache import CachedExamples, Row
from disegno.training.ground import training_memory
from disegno.training.optimise import open_pupil
from disegno.training.processes import Processes
from disegno.training.recipe import Model, Opening
from disegno.training.recipes import ctrlora
from disegno.training.step import Course, take
from disegno.training.stopping import Stop
from disegno.training.store import Store
from disegno.weights.load import load_file
from disegno.weights.save import save_safetensors

RATE = 1e-5
CLIP: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768}
HINT = "controlnet_cond_embedding."
Step = Callable[[int], None]


def write_weights(folder: Path) -> None:
    """Write seeded weights for both programs, in bfloat16: a net, a Base ControlNet, a VAE."""
    for number, kind in enumerate(("unet", "controlnet", "vae")):
        weights = {name: t.bfloat16() for name, t in make(kind, number)[1].items() if not name.startswith(HINT)}
        save_safetensors(folder / f"{kind}.safetensors", weights, {"disegno.family": "sd1"})


# ---- ours


def open_ours(folder: Path, size: int, rank: int) -> Step:
    """Return a function that takes one step of the program's own loop: forward, backward, clipping, AdamW."""
    tune_allocator()
    memory = training_memory(Settings())
    net = memory.build(
        lambda: UNet2DConditionModel(**cast(Any, UNET)), load_file(folder / "unet.safetensors"), "The UNet"
    )
    model = Model(None, "sd1", "random", "", net, PREDICTIONS["epsilon"], scaled_linear_table(), 8, None)
    request = TeachRequest(name="bench", data=("none",), rank=rank, rate=RATE)
    opening = Opening(request, model, memory, ("",), torch.randn(77, 768), folder / "controlnet.safetensors")
    learner = ctrlora.open(opening)
    examples = cached(folder, size, memory)
    course = Course(request, learner.module, [open_pupil(learner.turns[0], request)], Processes(), Stop())

    def step(number: int) -> None:
        rows = {name: tensor[None] for name, tensor in examples[0].items()}
        take(course, Batch(rows, (row_seed(0, number, 0),), "", number), 1)

    return step


def cached(folder: Path, size: int, memory: Memory) -> CachedExamples:
    """Return one example of this size, from a store on disk."""
    store = Store(folder / f"teach_{size}.sqlite")
    latents = {name: torch.randn(4, size // 8, size // 8) for name in ("latent", "condition_latent")}
    tensors = latents | {"tokens": torch.randn(77, 768, dtype=memory.policy.dtype)}
    store.put("row", {name: name for name in tensors}, tensors)
    return CachedExamples(store, (Row("", "0", (size // 8, size // 8), {name: name for name in tensors}),), None)


# ---- the peer


class PlainLora(nn.Module):
    """A linear layer with LoRA matrices, all in float32."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.down, self.up = nn.Linear(linear.in_features, rank, False), nn.Linear(rank, linear.out_features, False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x))


def loaded(make_module: Callable[[], nn.Module], weights: dict[str, Tensor]) -> Any:
    """Return the module with these weights, in float32."""
    module = build_empty(make_module)
    module.load_state_dict({name: t.float() for name, t in weights.items()}, assign=True, strict=False)
    return module


def plain_control(folder: Path, rank: int) -> tuple[Any, list[nn.Parameter]]:
    """Return the control net with LoRA on its linears, and what trains: LoRA, zero convolutions, transformer norms."""
    control = loaded(lambda: ControlNetModel(**cast(Any, UNET)), load_file(folder / "controlnet.safetensors"))
    control.controlnet_cond_embedding = nn.Identity()
    control.requires_grad_(False)
    for path, module in list(control.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = path.rpartition(".")
            setattr(control.get_submodule(parent), child, PlainLora(module, rank))
    for name, parameter in control.named_parameters():
        is_own = ".down." in name or ".up." in name or name.startswith(("controlnet_down", "controlnet_mid"))
        parameter.requires_grad_(is_own or (".attentions." in name and ".norm" in name))
    control.enable_gradient_checkpointing()
    return control, [parameter for parameter in control.parameters() if parameter.requires_grad]


def plain_net(folder: Path) -> Any:
    """Return the UNet: nothing kept of its encoder and middle, its decoder's weights left to require gradients."""
    net = loaded(lambda: UNet2DConditionModel(**cast(Any, UNET)), load_file(folder / "unet.safetensors"))
    net.requires_grad_(False)
    for part in (net.up_blocks, net.conv_norm_out, net.conv_out):
        part.requires_grad_(True)
    net.enable_gradient_checkpointing()
    return net


def open_reference(folder: Path, size: int, rank: int) -> Step:
    """Return a function that takes one step as the reference does."""
    return open_peer(folder, size, rank, AttnProcessor())


def open_fused(folder: Path, size: int, rank: int) -> Step:
    """Return a function that takes one step as the reference does, but for its attention."""
    return open_peer(folder, size, rank, AttnProcessor2_0())


def open_peer(folder: Path, size: int, rank: int, attention: AttnProcessor | AttnProcessor2_0) -> Step:
    """Return a function that takes one step as the reference does, with this attention."""
    net, (control, trained) = plain_net(folder), plain_control(folder, rank)
    vae = loaded(lambda: AutoencoderKL(**cast(Any, VAE)), load_file(folder / "vae.safetensors")).requires_grad_(False)
    for each in (net, control, vae):
        each.set_attn_processor(attention)
    text = CLIPTextModel(CLIPTextConfig(**CLIP)).requires_grad_(False)
    optimiser = torch.optim.AdamW(trained, lr=RATE)
    table, scale = scaled_linear_table().alphas_cumprod, 0.18215

    def step(number: int) -> None:
        picture, ids = torch.rand(1, 3, size, size), torch.randint(0, 49000, (1, 77))
        with torch.no_grad():
            x0 = vae.encode(picture * 2 - 1).latent_dist.sample() * scale
            hint = vae.encode(picture).latent_dist.sample() * scale
            tokens = text(input_ids=ids).last_hidden_state
        t, noise = torch.randint(0, 1000, (1,)), torch.randn_like(x0)
        x = table[t].sqrt() * x0 + (1 - table[t]).sqrt() * noise
        down, mid = control(hint, t, tokens, controlnet_cond=torch.zeros(()), return_dict=False)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        loss = F.mse_loss(net(x, t, tokens, **added).sample, noise)
        optimiser.zero_grad(set_to_none=False)
        loss.backward()
        optimiser.step()

    return step


OPENERS = {"disegno": open_ours, "reference": open_reference, "fused": open_fused}


def work(name: str, folder: Path, size: int, rank: int, steps: int) -> None:
    """Print what one program measured of itself, as JSON."""
    step = OPENERS[name](folder, size, rank)
    seconds: list[float] = []
    busy: list[float] = []
    for number in range(steps + 1):
        began, cpu = perf_counter(), process_time()
        step(number)
        seconds.append(round(perf_counter() - began, 3))
        busy.append(round(process_time() - cpu, 3))
    print(json.dumps({"seconds": seconds[1:], "cpu_seconds": busy[1:], "first": seconds[0], "peak_mib": peak_mib()}))


def peak_mib() -> int:
    """Return the most memory that this process has held. Not `ru_maxrss`, which begins with what its parent held."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024  # KiB


def measured(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return what a program measured, in a process of its own."""
    given = ["--worker", name, "--folder", str(folder)]
    sizes = ["--size", str(args.size), "--rank", str(args.rank), "--steps", str(args.steps)]
    done = subprocess.run([sys.executable, __file__, *given, *sizes], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def ratios(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    """Return how ours compares with a peer."""
    return {
        "faster": round(median(peer["seconds"]) / median(ours["seconds"]), 2),
        "less_cpu": round(median(peer["cpu_seconds"]) / median(ours["cpu_seconds"]), 2),
        "memory_share": round(ours["peak_mib"] / peer["peak_mib"], 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", choices=OPENERS, help="measure one program only")
    parser.add_argument("--worker", choices=OPENERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        work(args.worker, args.folder, args.size, args.rank, args.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_weights(Path(folder))
        names = [args.only] if args.only else list(OPENERS)
        found = {name: measured(name, Path(folder), args) for name in names}
    ours = found.get("disegno")
    against = {name: ratios(ours, peer) for name, peer in found.items() if ours is not None and peer is not ours}
    seconds = {name: median(one["seconds"]) for name, one in found.items()}
    report("teach_step", size=args.size, rank=args.rank, step_seconds=seconds, measured=found, against=against)


if __name__ == "__main__":
    main()
