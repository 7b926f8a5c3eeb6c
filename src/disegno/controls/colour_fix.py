"""Colour fix: the result keeps a picture's colours, without any weights of its own, and its detail stays free.

sd-webui-controlnet's tile_colorfix and tile_colorfix+sharp. In every estimate of the finished picture what is left of
it when it is blurred, its colours, is replaced by what is left of the given picture. Sharpness blurs the estimate under
the negative prompt a little, so that guidance drives away from blur.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from disegno.controls.base import Condition, Host, in_vain, key_of
from disegno.core.errors import RequestError
from disegno.core.request import COLOUR_FIX, SHARPNESS, VARIATION, ControlPass, ControlUnit, Scalar
from disegno.diffusion.call import Call, Correction
from disegno.diffusion.prediction import Prediction
from disegno.diffusion.schedules import NoiseTable

MAX_VARIATION, MAX_SHARPNESS = 64, 2
_BLURRED = 0.01  # A1111 parity: of the estimate under the negative prompt, for each 1 of sharpness


class Predicting(Host, Protocol):
    """A backbone that says what its net's output means; every Backbone is one."""

    @property
    def prediction(self) -> Prediction: ...
    @property
    def table(self) -> NoiseTable: ...


def blur(x: Tensor, radius: int) -> Tensor:
    """Return x (b c h w), each cell the mean of a square of 2 radius + 1 cells; beyond the edges they are repeated."""
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * radius + 1, stride=1)


@dataclass(frozen=True, eq=False)
class ColourFix:
    """A prepared picture. `colours`: its blurred latents, (1 c h w), float32; `radius`: in latent cells."""

    colours: Tensor
    radius: int
    sharpness: float
    backbone: Predicting
    key: str
    sees_x: bool = True
    positive_only: bool = False

    def __call__(self, call: Call) -> Call:
        """Return the call with every row's output corrected."""
        num = len(call.rows)
        own = Correction(self._corrected, torch.arange(num, device=call.x.device), (1.0,) * num)
        return replace(call, corrections=(*call.corrections, own))

    def _corrected(self, call: Call, out: Tensor) -> Tensor:
        """Return the output that stands for an x0 estimate with these colours, (b c h w)."""
        prediction = self.backbone.prediction
        sigma = self.backbone.table.net_sigma(call.t.cpu()).to(out)
        one = torch.ones_like(out[:, :1, :1, :1])
        x = call.x.float() / prediction.scale(one, sigma)
        x0 = prediction.denoise(x, sigma, out)
        fixed = x0 - blur(x0, self.radius) + self.colours.to(out)
        if self.sharpness:
            keeps = torch.tensor([row.positive for row in call.rows], device=out.device).reshape(-1, 1, 1, 1)
            softer = torch.lerp(fixed, blur(fixed, self.radius), _BLURRED * self.sharpness)
            fixed = torch.where(keeps, fixed, softer)
        return out + (fixed - x0) / prediction.denoise(torch.zeros_like(one), sigma, one)  # x0 is linear in the output


@dataclass(frozen=True)
class ColourFixController:
    """What makes a picture's colours those of the result, for one model."""

    radius: int
    sharpness: float
    backbone: Predicting
    name: str = COLOUR_FIX
    annotator: str | None = None

    def prepare(self, condition: Condition) -> ColourFix:
        """Return the control for one picture."""
        latents = self.backbone.encode_image(condition.image * 2 - 1).float()
        key = key_of(self.name, f"{self.radius} {self.sharpness}", self.backbone.fingerprint, condition.key)
        return ColourFix(blur(latents, self.radius), self.radius, self.sharpness, self.backbone, key)


def open_colour_fix(unit: ControlUnit, backbone: Predicting, which: ControlPass = "first") -> ColourFixController:
    """Return the colour fix that a unit asks for, for a pass. Raises RequestError.

    A1111 parity: in a hires pass the blur is twice as wide.
    """
    if meaningless := in_vain(unit, ("annotate", "mode", "layers", "mix", "base"), ("variation", "sharpness")):
        raise RequestError(
            f"The control {unit.name!r} keeps the colours of its picture as it is, on both prompts alike, and knows two"
            f" parameters, variation and sharpness: leave out its {' and '.join(meaningless)}."
        )
    variation = _number(unit.params, "variation", VARIATION, 1, MAX_VARIATION)
    if variation != int(variation):
        raise RequestError(f"The control {unit.name!r}: its variation is a whole number of cells, not {variation:g}.")
    radius = int(variation) * (2 if which == "hires" else 1)
    return ColourFixController(radius, _number(unit.params, "sharpness", SHARPNESS, 0, MAX_SHARPNESS), backbone)


def _number(params: Mapping[str, Scalar], name: str, default: float, low: float, high: float) -> float:
    given = params.get(name, default)
    if isinstance(given, bool | str) or not low <= given <= high:
        raise RequestError(f"The control {COLOUR_FIX!r}: its {name} is a number from {low} to {high}, not {given!r}.")
    return float(given)
