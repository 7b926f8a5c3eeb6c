"""The weighted mean of files of one net: checkpoints of a training, or a net and what it became when it learned on.

python -m recipes.diorama.blend OUT.safetensors OLD.safetensors=0.4 NEW.safetensors=0.6

Between such weights the loss has no hill (Wortsman et al. 2022, "Model soups" and "Robust fine-tuning of zero-shot
models"), and the mean may be better than each. Tensors keep the dtype that the first file gives them; what is stored
in int8 becomes float32.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from disegno.weights.quantised import SCALE_SUFFIX, dequantise_rows
from disegno.weights.save import save_safetensors


def blended(parts: Mapping[Path, float]) -> dict[str, Tensor]:
    """Return the mean of files by their weights. Raises ValueError: other tensors, or weights that do not sum to 1."""
    if not math.isclose(sum(parts.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"The weights sum to {sum(parts.values()):g}. Give such that sum to 1, as 0.4 and 0.6.")
    opened = {path: _opened(path) for path in parts}
    first_path, first = next(iter(opened.items()))
    shapes = {name: tensor.shape for name, tensor in first.items()}
    for path, tensors in opened.items():
        if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
            raise ValueError(f"{path} holds other tensors than {first_path}. Give files of the same net.")
    mean = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for path, weight in parts.items():
        for name, tensor in opened[path].items():
            mean[name] += weight * tensor.double()
    return {name: tensor.to(first[name].dtype) for name, tensor in mean.items()}


def _opened(path: Path) -> dict[str, Tensor]:
    tensors = load_file(path)
    return dequantise_rows(tensors) if any(name.endswith(SCALE_SUFFIX) for name in tensors) else tensors


def main(arguments: list[str] | None = None) -> None:
    """Write the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="+", metavar="FILE=WEIGHT")
    args = parser.parse_args(arguments)
    parts: dict[Path, float] = {}
    for given in args.parts:
        path, _, weight = given.rpartition("=")
        try:
            parts[Path(path)] = float(weight)
        except ValueError:
            parser.error(f"{given!r} is not FILE=WEIGHT, as in new.safetensors=0.6")
    save_safetensors(args.out, blended(parts), {"format": "pt"})
    print(f"{args.out}: {len(parts)} files")


if __name__ == "__main__":
    main()
