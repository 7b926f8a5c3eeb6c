"""Sprites: cut-outs with premultiplied colour, what is known of them, and their recolouring."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .vocabulary import COLOURS

Pixels = NDArray[np.uint8]  # (h w 4): red, green, blue times alpha; alpha
HUE_WINDOW_DEGREES = 40.0
DOMINANT_SHARE = 0.45  # of what is opaque: below, a foreign colour would not be the thing's colour
NAMED_SHARE = 0.58  # below, a caption does not name its own colour
_OPAQUE, _VIVID = 200, 0.22
_PALE = 0.2  # a saturation below which a surface is shaded by its value alone


@dataclass(frozen=True)
class Look:
    """What is known of a noun's drawing, the same in every style.

    `box`: left, top, right, bottom of what is seen, in the drawing. `foot`: where it touches the ground, left and right
    as parts of its width. `colour`: its own colour, where it has one; `hue`: of most of it, in degrees, where it can be
    recoloured, and the `saturation` and `value` that it has there.
    """

    box: tuple[int, int, int, int]
    foot: tuple[float, float]
    colour: str | None
    hue: float | None
    saturation: float = 1.0
    value: float = 1.0


def look_of(rgba: NDArray[np.uint8]) -> Look:
    """Return what is known of a drawing (h w 4), not premultiplied."""
    ys, xs = np.nonzero(rgba[..., 3] > 24)
    box = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    left, top, right, bottom = box
    low = rgba[top + round((bottom - top) * 0.88) : bottom, left:right, 3].max(axis=0)
    touching = np.nonzero(low > 128)[0]
    width = right - left
    foot = (float(touching.min()) / width, float(touching.max() + 1) / width) if len(touching) else (0.3, 0.7)
    hue, share = dominant_hue(rgba)
    if share < DOMINANT_SHARE:
        return Look(box, foot, own_colour(rgba, hue, share), None)
    return Look(box, foot, own_colour(rgba, hue, share), *middle_of(rgba, hue))


def middle_of(rgba: NDArray[np.uint8], hue: float) -> tuple[float, float, float]:
    """Return the median hue (near `hue`), saturation and value of the dominant colour."""
    opaque = rgba[rgba[..., 3] > _OPAQUE][:, :3].astype(np.float32) / 255
    hsv = cv2.cvtColor(opaque[None], cv2.COLOR_RGB2HSV)[0]
    inside = hsv[(np.abs((hsv[:, 0] - hue + 180) % 360 - 180) < HUE_WINDOW_DEGREES * 0.7) & (hsv[:, 1] > _VIVID)]
    turned = (inside[:, 0] - hue + 180) % 360 - 180
    return float((hue + np.median(turned)) % 360), float(np.median(inside[:, 1])), float(np.median(inside[:, 2]))


def dominant_hue(rgba: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the hue, in degrees, that most of the vivid pixels share, and its part of all that is opaque."""
    hsv = cv2.cvtColor(rgba[..., :3].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    opaque = rgba[..., 3] > _OPAQUE
    vivid = opaque & (hsv[..., 1] > _VIVID) & (hsv[..., 2] > 0.15)
    counts, _ = np.histogram(hsv[..., 0][vivid], bins=36, range=(0, 360))
    near = counts + np.roll(counts, 1) + np.roll(counts, -1)
    hue = float(np.argmax(near)) * 10 + 5
    inside = vivid & (np.abs((hsv[..., 0] - hue + 180) % 360 - 180) < HUE_WINDOW_DEGREES * 0.7)
    return hue, float(inside.sum() / max(1, opaque.sum()))


def own_colour(rgba: NDArray[np.uint8], hue: float, share: float) -> str | None:
    """Return the name of the colour that a drawing has by itself; None where it has several."""
    opaque = rgba[rgba[..., 3] > _OPAQUE][:, :3].astype(np.float32) / 255
    hsv = cv2.cvtColor(opaque[None], cv2.COLOR_RGB2HSV)[0]
    if share < NAMED_SHARE:
        grey = hsv[:, 1] < 0.2
        if (grey & (hsv[:, 2] > 0.8)).mean() > 0.7:
            return "white"
        return "black" if (hsv[:, 2] < 0.33).mean() > 0.65 else None
    return name_of(*middle_of(rgba, hue))


def name_of(hue: float, saturation: float, value: float) -> str | None:
    """Return what a colour is called, None between two names."""
    if value < 0.3:
        return "black"
    if 8 <= hue < 42 and value < 0.68:
        return "brown"
    if saturation < 0.4:
        return "pink" if (hue > 310 or hue < 8) and value > 0.8 else None
    if hue > 312 and value > 0.85 and saturation < 0.72:
        return "pink"
    if 10 <= hue < 38 and saturation < 0.62:
        return None  # tan
    for low, high, name in _HUES:
        if low <= hue < high:
            return name
    return None


_HUES = (
    (0, 10, "red"), (17, 34, "orange"), (39, 58, "yellow"), (72, 165, "green"), (192, 238, "blue"),
    (248, 292, "purple"), (318, 336, "pink"), (338, 361, "red"),
)  # fmt: skip


def premultiplied(rgba: NDArray[np.uint8]) -> Pixels:
    """Return a drawing with its colours times its alpha."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return np.dstack([((rgba[..., :3] * alpha + 127) // 255).astype(np.uint8), rgba[..., 3]])


def recoloured(pixels: NDArray[np.float32], look: Look, colour: str) -> NDArray[np.float32]:
    """Return premultiplied pixels (h w 4) in [0, 1] whose dominant colour has become `colour`; other hues stay.

    Hue and saturation do not depend on alpha, and the value is as premultiplied as the colour is. The middle of the
    dominant colour becomes the colour's own; what was darker or paler than it stays so, in proportion.
    """
    assert look.hue is not None
    target, saturation, value = COLOURS[colour]
    hsv = cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_RGB2HSV)
    offset = (hsv[..., 0] - look.hue + 180) % 360 - 180
    share = np.clip(2.0 - np.abs(offset) / (HUE_WINDOW_DEGREES / 1.5), 0, 1) * np.clip(hsv[..., 1] * 6 - 0.6, 0, 1)
    vividness = hsv[..., 1] / max(look.saturation, 0.1)  # 1 in the middle; shading is often a change of saturation
    moved = np.empty_like(hsv)
    moved[..., 0] = (target + offset * 0.3) % 360
    moved[..., 1] = np.clip(saturation * vividness, 0, 1)
    moved[..., 2] = np.clip(hsv[..., 2] * (value / max(look.value, 0.2)), 0, pixels[..., 3])
    if saturation < _PALE:
        moved[..., 2] *= np.clip(1.18 - 0.18 * vividness, 0.75, 1.0)
    new = cv2.cvtColor(moved, cv2.COLOR_HSV2RGB)
    out = pixels.copy()
    out[..., :3] += (new - pixels[..., :3]) * share[..., None]
    return out


def swatch(colour: str) -> tuple[int, int, int]:
    """Return a typical red, green, blue of a colour's name."""
    hue, saturation, value = COLOURS[colour]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue / 360, saturation, value))
    return red, green, blue
