"""Sprites: the RGBA cut-outs of the nouns, and their recolouring."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .vocabulary import COLOURS, NOUNS

Sprite = NDArray[np.uint8]  # (h w 4), cropped to its alpha box
HUE_WINDOW_DEGREES = 40.0


def load_sprites(folder: Path) -> dict[str, Sprite]:
    """Return the sprite of every noun by its code; `folder` holds `<code>.webp`. Raises FileNotFoundError."""
    return {
        noun.code: crop_to_alpha(np.array(Image.open(folder / f"{noun.code}.webp").convert("RGBA"))) for noun in NOUNS
    }


def crop_to_alpha(rgba: Sprite) -> Sprite:
    """Return the part of the picture that is not transparent."""
    ys, xs = np.nonzero(rgba[..., 3] > 24)
    return rgba[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def dominant_hue(sprite: Sprite) -> float:
    """Return the hue, in degrees, that most of the saturated pixels share."""
    hsv = cv2.cvtColor(sprite[..., :3].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    vivid = (sprite[..., 3] > 200) & (hsv[..., 1] > 0.25)
    counts, _ = np.histogram(hsv[..., 0][vivid], bins=36, range=(0, 360))
    smooth = counts + np.roll(counts, 1) + np.roll(counts, -1)
    return float(np.argmax(smooth)) * 10 + 5


def recolour(sprite: Sprite, colour: str) -> Sprite:
    """Return the sprite with its dominant hue moved to `colour`; other hues stay."""
    hue, saturation, value = COLOURS[colour]
    hsv = cv2.cvtColor(sprite[..., :3].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    offset = (hsv[..., 0] - dominant_hue(sprite) + 180) % 360 - 180
    share = np.clip(2.0 - np.abs(offset) / (HUE_WINDOW_DEGREES / 1.5), 0, 1) * np.clip(hsv[..., 1] * 6 - 0.6, 0, 1)
    moved = hsv.copy()
    moved[..., 0] = (hue + offset * 0.35) % 360
    moved[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 1)
    moved[..., 2] = np.clip(hsv[..., 2] * value, 0, 1)
    rgb, new = (cv2.cvtColor(x, cv2.COLOR_HSV2RGB) for x in (hsv, moved))
    mixed = rgb + (new - rgb) * share[..., None]
    return np.dstack([np.rint(np.clip(mixed, 0, 1) * 255).astype(np.uint8), sprite[..., 3]])


def wardrobe(sprites: dict[str, Sprite]) -> dict[tuple[str, str | None], Sprite]:
    """Return every sprite in every colour it can wear; the native look has the key (code, None)."""
    looks: dict[tuple[str, str | None], Sprite] = {}
    for noun in NOUNS:
        if noun.code not in sprites:
            continue
        looks[noun.code, None] = sprites[noun.code]
        if noun.colour is not None:
            for colour in COLOURS:
                looks[noun.code, colour] = recolour(sprites[noun.code], colour)
    return looks
