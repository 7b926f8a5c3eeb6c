"""Write what the stages and `disegno teach` have left as the folder that the program ships.

python -m recipes.diorama.export --run RUN --out FOLDER [--scale home] [--control palette=FILE ...]

Nets are stored as int8 rows, the rest in 16 bits. Every condition's file names the Base ControlNet as it is stored, by
its digest; conditions of `--control` were taught on the folder that an earlier call has written. Of a stage that has
left nothing, the folder has nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any

from PIL import Image

from disegno.core.settings import load_settings
from disegno.memory import DTYPES
from disegno.training.recipes.base import condition_path
from disegno.weights.ctrlora_files import MECHANISM
from disegno.weights.load import load_file, open_file
from disegno.weights.save import save_safetensors

from .compose import SEEDS
from .course import packed
from .newborn import built_in
from .scale import FULL, SCALES
from .shards import size_mib
from .stages import Place
from .widen import wide_config
from .world.maps import BASE_CONDITIONS, MAPS, class_colours
from .world.pack import Wardrobe, known_to, open_pack
from .world.render import compose
from .world.vocabulary import CLASSES

BASE, FEW, TINY = "basecn.safetensors", "few.safetensors", "preview.safetensors"
FEW_STEPS = {"lora": FEW, "steps": 4, "cfg": 1.0, "sampler": "DDIM", "schedule": "Turbo"}
MOST_MIB = 96.0
EXAMPLE = 665  # of version 0's nouns: "a castle in the snow"
_DIGEST, _ANNOTATOR = "disegno.base_sha256", "disegno.annotator"
_NAME, _TITLE = "disegno.name", "modelspec.title"


def export(place: Place, out: Path, controls: Mapping[str, Path]) -> dict[str, Any]:
    """Write the folder, and return its description (model.json). `controls`: conditions that were taught later.

    Raises FileNotFoundError where the net was not trained, ValueError where a control was taught on another Base.
    """
    model = place.net
    about = json.loads((model / "model.json").read_text("utf-8"))
    if out.resolve() == built_in().resolve():
        raise ValueError("The built-in model is what this starts from: write another folder, then put it there.")
    out.mkdir(parents=True, exist_ok=True)
    packed(model / "unet.safetensors", out / "unet.safetensors")
    vae = _autoencoder(place, model / "vae.safetensors")
    packed(vae, out / "vae.safetensors")
    about |= {"vae": wide_config(about["vae"], load_file(vae))}
    for name in ("text.safetensors", "tokenizer.json"):
        shutil.copy(model / name, out / name)
    conditions = _base(place, out) | {name: _taught(path, name, out) for name, path in controls.items()}
    about |= {"conditions": conditions}
    about |= {"segmentation_colours": dict(zip(CLASSES, class_colours().tolist(), strict=True))}
    if place.result("few").exists():
        packed(place.result("few"), out / FEW)
        about |= {"few_steps": FEW_STEPS}
    if place.result("tiny").exists():
        packed(place.result("tiny"), out / TINY)
        about |= {"preview": TINY}
    (out / "model.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    return about


def _autoencoder(place: Place, path: Path) -> Path:
    """Return the autoencoder's file, with the decoder that was taught later, where there is one."""
    decoder = place.result("decoder")
    if not decoder.exists():
        return path
    newer = decoder.with_name("vae.safetensors")
    save_safetensors(newer, dict(load_file(path)) | dict(load_file(decoder)), {"format": "pt"})
    return newer


def _base(place: Place, out: Path) -> dict[str, str]:
    """Write the Base ControlNet and its conditions; return their files by name."""
    base = place.result("base")
    if not base.exists():
        return {}
    packed(base, out / BASE)
    return {
        name: _condition(path, name, out) for name in BASE_CONDITIONS if (path := condition_path(base, name)).exists()
    }


def _condition(path: Path, name: str, out: Path) -> str:
    """Write a condition in 16 bits, for the Base as it is stored here; return its file's name."""
    with open_file(path) as file:
        tensors, words = dict(file.tensors()), dict(file.metadata)
    target = out / f"control_{name}.safetensors"
    halves = {key: tensor.to(DTYPES["fp16"]).contiguous() for key, tensor in tensors.items()}
    named = {_NAME: name, _TITLE: name, _DIGEST: digest_of(out / BASE)}
    save_safetensors(target, halves, {_ANNOTATOR: name} | words | named)
    return target.name


def _taught(path: Path, name: str, out: Path) -> str:
    """Write a condition that `disegno teach` has left; return its file's name."""
    with open_file(path) as file:
        words = dict(file.metadata)
    if words.get("disegno.mechanism") == MECHANISM and words.get(_DIGEST) != digest_of(out / BASE):
        raise ValueError(
            f"{path.name} was taught on another Base ControlNet than {out / BASE}. Teach it again on this."
        )
    return _condition(path, name, out)


def write_examples(folder: Path, wardrobe: Wardrobe, size: int, names: Collection[str]) -> None:
    """Write a scene of the test's stream as castle.png, and its drawings as castle_CONDITION.png."""
    folder.mkdir(parents=True, exist_ok=True)
    scene = compose(wardrobe, SEEDS["test"], EXAMPLE, size)
    pictures = {"": scene.image} | {f"_{name}": MAPS[name](scene, wardrobe) for name in names if name in MAPS}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"castle{name}.png", optimize=True)


def digest_of(path: Path) -> str:
    """Return a file's sha256."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", choices=tuple(SCALES), default=FULL.name)
    parser.add_argument("--examples", type=Path, help="a pack: also write a scene and its drawings")
    parser.add_argument("--control", action="append", default=[], metavar="NAME=FILE")
    args = parser.parse_args(arguments)
    place = Place(args.run, SCALES[args.scale], load_settings())
    controls = {name: Path(path) for name, _, path in (given.partition("=") for given in args.control)}
    about = export(place, args.out, controls)
    if args.examples is not None:
        wardrobe = known_to(args.out / "model.json", open_pack(args.examples))
        write_examples(args.out / "examples", wardrobe, about["defaults"]["width"], about["conditions"])
    size = size_mib(args.out.iterdir())
    print(f"{args.out}: {size:.1f} MiB of at most {MOST_MIB:.0f}; conditions: {', '.join(about['conditions'])}")


if __name__ == "__main__":
    main()
