"""Reference: a picture whose style and things the result takes up, without any weights of its own.

sd-webui-controlnet's reference_only, reference_adain and reference_adain+attn. The model draws the picture too, at the
result's noise level, and takes up what it made of it: see `backbones._self_attention`. Strength is the share of the net
that does. The fidelity says how far the negative prompt's rows keep out of it, so that guidance amplifies it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Protocol

import torch
from torch import Tensor

from disegno.controls.base import Condition, Host, in_vain, key_of
from disegno.core.errors import RequestError, WrongFamily
from disegno.core.request import FIDELITY, ControlMode, ControlPass, ControlUnit
from disegno.diffusion.call import Call, Reference
from disegno.diffusion.noise import CpuNormals
from disegno.diffusion.schedules import NoiseTable

families = ("sd1", "sd2", "sdxl", "diorama")

_OF_MODE: Mapping[ControlMode, float] = {"control": 1.0, "prompt": 0.0}
_HOW: Mapping[str, tuple[bool, bool]] = {  # attends, matches
    "reference-only": (True, False),
    "reference-adain": (False, True),
    "reference-adain-attn": (True, True),
}


class ReferenceHost(Host, Protocol):
    """A backbone that knows its noise levels; every Backbone is one."""

    @property
    def table(self) -> NoiseTable: ...


@dataclass(frozen=True, eq=False)
class ReferenceControl:
    """A prepared reference. `latents`: (1 c h w), float32; `alphas_cumprod`: of each timestep, (t,)."""

    latents: Tensor
    alphas_cumprod: Tensor
    fidelity: float
    attends: bool
    matches: bool
    key: str
    sees_x: bool = True
    positive_only: bool = False

    def __call__(self, call: Call) -> Call:
        """Return the call with the picture as a reference of every row, noised to the row's timestep, rounded."""
        levels = call.t.cpu().round().long()
        abar = self.alphas_cumprod[levels].reshape(-1, 1, 1, 1)
        noise = [self._noise(row.seed, level) for row, level in zip(call.rows, levels.tolist(), strict=True)]
        x = abar.sqrt().to(self.latents) * self.latents + ((1 - abar).sqrt() * torch.stack(noise)).to(self.latents)
        rows = torch.arange(len(levels), device=call.x.device)
        shares = (1.0,) * len(levels)
        own = Reference(self.latents, x, rows, shares, self.fidelity, self.attends, self.matches)
        return replace(call, references=(*call.references, own))

    def _noise(self, seed: int, level: int) -> Tensor:
        """Return the noise of an image's reference at a timestep, (c h w): any other than the image's own.

        A1111's comes from the global generator; here a picture depends on its seed and on nothing before it.
        """
        words = sha256(f"reference {seed} {level}".encode()).digest()
        channels, height, width = self.latents.shape[1:]
        return CpuNormals(int.from_bytes(words[:8], "big")).draw((channels, height, width))


@dataclass(frozen=True)
class ReferenceController:
    """What makes a picture a reference, for one model."""

    name: str
    fidelity: float
    backbone: ReferenceHost
    annotator: str | None = None

    def prepare(self, condition: Condition) -> ReferenceControl:
        """Return the control for one picture."""
        latents = self.backbone.encode_image(condition.image * 2 - 1).float()
        key = key_of(self.name, str(self.fidelity), self.backbone.fingerprint, condition.key)
        return ReferenceControl(latents, self.backbone.table.alphas_cumprod, self.fidelity, *_HOW[self.name], key)


def open_reference(unit: ControlUnit, backbone: ReferenceHost, which: ControlPass = "first") -> ReferenceController:
    """Return the reference that a unit names, for a pass. Raises WrongFamily, RequestError."""
    if backbone.family not in families:
        raise WrongFamily(
            f"The control {unit.name!r} works by a UNet's attention, and {backbone.name} ({backbone.family}) has no"
            f" UNet. Choose a model of {', '.join(families)}, or leave the control out."
        )
    if meaningless := in_vain(unit, ("annotate", "region", "layers", "mix", "base"), ("fidelity",)):
        raise RequestError(
            f"The control {unit.name!r} shows the model the whole picture as it is, and knows one parameter, fidelity:"
            f" leave out its {' and '.join(meaningless)}."
        )
    fidelity = _fidelity(unit, which)
    # A1111 parity: references act too strongly on SDXL, so less is kept out
    return ReferenceController(unit.name, fidelity**3 if backbone.family == "sdxl" else fidelity, backbone)


def _fidelity(unit: ControlUnit, which: ControlPass) -> float:
    """Return how far the negative prompt's rows keep out. A1111 parity: the modes' own, and none in a hires pass."""
    given = unit.params.get("fidelity", FIDELITY)
    if isinstance(given, bool | str) or not 0 <= given <= 1:
        raise RequestError(f"The control {unit.name!r}: its fidelity is a number from 0 to 1, not {given!r}.")
    return _OF_MODE.get(unit.mode, 0.0 if which == "hires" else float(given))
