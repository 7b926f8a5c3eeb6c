"""Scenes as files: pairs to teach from, or a sheet to look at.

python -m recipes.diorama.compose --pack RUN/world.zip --out PAIRS --condition palette --count 1000
python -m recipes.diorama.compose --pack RUN/world.zip --sheet scenes.png --count 48
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw

from .world.maps import MAPS
from .world.pack import Wardrobe, known_to, open_pack
from .world.render import compose

SEEDS = {"train": 1, "held_out": 2, "test": 3}
SIZE = 256


def write_pairs(wardrobe: Wardrobe, out: Path, condition: str, count: int, size: int = SIZE, seed: int = 1) -> None:
    """Write pairs in ControlNet's form: prompt.json with source (the condition), target and prompt."""
    for part in ("source", "target"):
        (out / part).mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    index = 0
    while len(lines) < count:
        scene = compose(wardrobe, seed, index, size)
        name = f"{index:06d}.png"
        index += 1
        if condition == "flat" and scene.layout.style == "flat":
            continue  # its twin is no flat drawing
        Image.fromarray(scene.image).save(out / "target" / name)
        Image.fromarray(MAPS[condition](scene, wardrobe)).save(out / "source" / name)
        lines.append(json.dumps({"source": f"source/{name}", "target": f"target/{name}", "prompt": scene.caption}))
    (out / "prompt.json").write_text("\n".join(lines) + "\n", "utf-8")


def write_sheet(wardrobe: Wardrobe, out: Path, count: int, seed: int, columns: int = 8) -> None:
    """Write scenes with their captions on one sheet."""
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * (SIZE + 4), rows * (SIZE + 28)), "white")
    draw = ImageDraw.Draw(sheet)
    for k in range(count):
        scene = compose(wardrobe, seed, k, SIZE)
        x, y = k % columns * (SIZE + 4), k // columns * (SIZE + 28)
        sheet.paste(Image.fromarray(scene.image), (x, y))
        for line, part in enumerate((scene.caption[:44], scene.caption[44:88])):
            draw.text((x, y + SIZE + 1 + 12 * line), part, fill="black")
    sheet.save(out)


def main() -> None:
    """Write pairs or a sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", type=Path, required=True)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path)
    where.add_argument("--sheet", type=Path)
    parser.add_argument("--condition", choices=sorted(MAPS), default="canny")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--seed", type=int, default=SEEDS["train"])
    parser.add_argument("--vocabulary", type=Path, help="a model.json: only nouns that it knows")
    args = parser.parse_args()
    wardrobe = open_pack(args.pack)
    if args.vocabulary is not None:
        wardrobe = known_to(args.vocabulary, wardrobe)
    if args.out is not None:
        write_pairs(wardrobe, args.out, args.condition, args.count, args.size, args.seed)
    else:
        write_sheet(wardrobe, args.sheet, args.count, args.seed)
    print(f"{args.out or args.sheet}: {args.count} scenes")


if __name__ == "__main__":
    main()
