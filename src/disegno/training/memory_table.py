"""What fits on which GPU, at the sizes of real models: the page docs/howto/how-much-memory.md, computed.

python -m disegno.training.memory_table        # writes the page anew
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Generator

from disegno.backbones.miniature import sd15_unet
from disegno.backbones.miniature_sdxl import sdxl_unet
from disegno.controls.ctrlora import base_of
from disegno.core.teach import TeachRequest, make_teach_request
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import scaled_linear_table
from disegno.training.base import Estimate
from disegno.training.encoder import copy_encoder
from disegno.training.estimating import GPU, NUM_TOKENS, Sizes, count, on_meta, with_reserve
from disegno.training.expected import COMPUTED, GPU_GIB, gpu_table
from disegno.training.ledger import META, counting
from disegno.training.recipe import Model, Opening
from disegno.training.recipes import controlnet, ctrlora

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "how-much-memory.md"
HEADS = ("recipe", "batch", "`--checkpointing`", "`--optimiser adamw8bit`")

Cells = tuple[str, ...]
Row = tuple[str, int, bool, bool]


@dataclass(frozen=True)
class Real:
    """A model of real size. `rows`: of its table: recipe, batch, checkpointing, 8-bit optimiser; `gpus`: in GB."""

    family: str
    unet: Callable[[], UNet2DConditionModel]
    sizes: Sizes
    rows: tuple[Row, ...]
    gpus: tuple[int, ...] = GPU_GIB


SD15 = Real(
    "sd1",
    sd15_unet,
    Sizes(512, 512, (NUM_TOKENS, 768), 4, 8),
    (
        ("ctrlora", 1, False, False),
        ("ctrlora", 1, True, False),
        ("ctrlora", 1, True, True),
        ("ctrlora", 2, False, False),
        ("ctrlora", 2, True, False),
        ("ctrlora", 4, False, False),
        ("ctrlora", 4, True, False),
        ("ctrlora", 8, True, False),
        ("controlnet", 1, False, False),
        ("controlnet", 1, True, False),
        ("controlnet", 1, True, True),
        ("controlnet", 4, True, False),
        ("controlnet", 4, True, True),
    ),
)
SDXL = Real(
    "sdxl",
    sdxl_unet,
    Sizes(1024, 1024, (NUM_TOKENS + 1, 2048), 4, 8),
    (
        ("ctrlora", 1, False, False),
        ("ctrlora", 1, True, False),
        ("ctrlora", 1, True, True),
        ("ctrlora", 2, True, False),
        ("ctrlora", 4, True, False),
        ("controlnet", 1, False, False),
        ("controlnet", 1, True, False),
        ("controlnet", 1, True, True),
        ("controlnet", 4, True, True),
    ),
    gpus=(12, 16, 24, 48),
)


def requests(real: Real) -> dict[Cells, TeachRequest]:
    """Return the rows of a model's table: their cells, and what is asked for."""
    asked: dict[Cells, TeachRequest] = {}
    for recipe, batch, checkpointing, is_8bit in real.rows:
        fields: dict[str, Any] = {"recipe": recipe, "batch": batch, "checkpointing": checkpointing}
        optimiser = "adamw8bit" if is_8bit else "adamw"
        cells = recipe, str(batch), "yes" if checkpointing else "", "yes" if is_8bit else ""
        asked[cells] = make_teach_request({"name": "x", "data": ["x"], "optimiser": optimiser, **fields})
    return asked


def counted(request: TeachRequest, real: Real) -> Estimate:
    """Return what a training under the model takes on a GPU, in bfloat16."""
    memory, sizes = on_meta(GPU), real.sizes
    with counting() as ledger:
        net = memory.place(real.unet(), torch.float32 if request.recipe == "controlnet" else None)
        table = scaled_linear_table()
        model = Model(None, real.family, "", "", net, PREDICTIONS["epsilon"], table, sizes.downscale, None)
        opening = Opening(request, model, memory, ("",), torch.empty(sizes.tokens, device=META))
        if request.recipe == "controlnet":
            learner, about = controlnet.open(opening), controlnet.ABOUT
        else:
            base = memory.place(copy_encoder(net, memory, Generator(), with_hint=False)).requires_grad_(False)
            learner, about = ctrlora.open_on(opening, base_of("base", "", base)), ctrlora.ABOUT
        del net, model, opening
        return with_reserve(count(learner, request, about.wants, sizes, ledger), 0, GPU.device.type)


Figures = Mapping[Cells, Estimate]


def page(of_sd15: Figures, of_sdxl: Figures) -> str:
    """Return the page with these figures."""
    return f"""# How much memory does it take?

`disegno teach ... --estimate` says it for your own training, on this machine and on GPUs, and `disegno teach` says it
before it begins. A training that does not fit is refused at once, with the flags that make it fit (`--try-anyway`
begins all the same). The figures come from the very code that trains, run on tensors that have shapes and no numbers.

## Stable Diffusion 1.5 on a GPU

512 x 512, bfloat16, rank 128 for `ctrlora`, no looks. **These figures are {COMPUTED}**: tensors, and a reserve
of 0.7 GiB and 5 % for the driver, the libraries and what lies between the tensors. A screen on the same card takes its
own share. Written by `python -m disegno.training.memory_table`.

NVIDIA's GPUs of before Ampere (GTX 10xx and 16xx, RTX 20xx, T4, V100) have no bfloat16 of their own and train in
float32, which takes more: `--estimate` on such a machine counts it. `--dtype bf16` takes what the table says, slowly.

{gpu_table(of_sd15, HEADS)}

## Stable Diffusion XL on a GPU

The same at 1024 x 1024.

{gpu_table(of_sdxl, HEADS, SDXL.gpus)}

## What to change

| what | memory | what it costs |
|---|---|---|
| `--checkpointing` | activations are made anew in the backward pass | about a quarter more time |
| `--batch 1 --accumulate 4` for `--batch 4` | a quarter of the activations | some time, on a GPU |
| `--optimiser adamw8bit` | a quarter of its states: much for a whole net, little for a LoRA | moments are rounded |
| `--rank 32` | a quarter of the LoRA's weights, gradients and states | a condition of less detail |
| `--width 384 --height 384` | about half of the activations | less detail is learned |

Latents and text states are computed once and kept on disk, so neither VAE nor text encoder is in memory while it
trains.
A look draws with the whole model, which takes as much as `disegno generate` on top of it: `--validate-every 0`
leaves looks out.
"""


if __name__ == "__main__":
    figures = [{cells: counted(request, real) for cells, request in requests(real).items()} for real in (SD15, SDXL)]
    PAGE.write_text(page(*figures), "utf-8")
