"""The noise of a generation.

One generator an image, so that a picture depends on its own seed and nothing else in its batch. Numbers are those of
AUTOMATIC1111: torch's CPU generator, or the Philox generator of an NVIDIA card, worked out. Nothing here reads or moves
a global generator. Shapes: an image's noise is (c h w), a batch's (b c h w), float32.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
import torchsde
from torch import Tensor

from disegno.core.request import SEEDS, NoiseSource
from disegno.diffusion.brownian import NvPath
from disegno.diffusion.philox import nv_normals

Shape = tuple[int, int, int]  # c h w
Path = Callable[[float, float], Tensor]
# torchsde.BrownianTree rounds levels to its tolerance, and warns of what lies outside of its ends. Of levels that are
# nearer to each other than that it looks for the one between without end, so these get a finer tree: another path.
_TREE_DIGITS, _FINE_DIGITS = 6, 12
_NEAR = 4e-6  # what a sampler asks of lies between two levels, too


class Normals(Protocol):
    """A seeded stream of standard normal tensors."""

    def draw(self, shape: Shape) -> Tensor:
        """Return the next tensor, (c h w), float32, on the CPU."""
        ...


@dataclass
class CpuNormals:
    """torch's CPU generator."""

    seed: int
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator("cpu")
        self.generator.manual_seed(self.seed % SEEDS)

    def draw(self, shape: Shape) -> Tensor:
        return torch.randn(shape, generator=self.generator)


@dataclass
class NvNormals:
    """What torch.randn draws on an NVIDIA card."""

    seed: int
    num_draws: int = 0

    def draw(self, shape: Shape) -> Tensor:
        self.num_draws += 1
        return nv_normals([self.seed % SEEDS], shape, self.num_draws - 1)[0]


SOURCES: dict[NoiseSource, Callable[[int], Normals]] = {"cpu": CpuNormals, "nv": NvNormals}


def batch_seeds(seed: int, subseed: int, subseed_strength: float, num_images: int) -> tuple[list[int], list[int]]:
    """Return every image's seed and subseed. Subseeds count up; seeds count up only where there is no variation."""
    step = 1 if subseed_strength == 0 else 0
    return [(seed + i * step) % SEEDS for i in range(num_images)], [(subseed + i) % SEEDS for i in range(num_images)]


def slerp(strength: float, low: Tensor, high: Tensor) -> Tensor:
    """Return the point at `strength` on the arc from low to high, (c h w).

    A1111 parity: the angle is taken along axis 1 of (c h w), so there is one for each channel and column; and where
    the two are nearly parallel, the weights of the straight line are the wrong way round.
    """
    dot = (low / low.norm(dim=1, keepdim=True) * (high / high.norm(dim=1, keepdim=True))).sum(1)  # c w
    if dot.mean() > 0.9995:
        return low * strength + high * (1 - strength)
    omega = torch.acos(dot)
    toward, away = torch.sin(strength * omega) / torch.sin(omega), torch.sin((1 - strength) * omega) / torch.sin(omega)
    return away.unsqueeze(1) * low + toward.unsqueeze(1) * high


@dataclass(frozen=True)
class Variation:
    """How an image's first noise departs from its seed's.

    `strength`: how far it goes towards the subseed's noise. `seed_size`: (h, w) in latent cells; the noise is drawn
    as for a picture of that size, and fitted in (A1111's seed resize). `seed_delta`: added to the seed for all noise
    after the first (A1111's ENSD).
    """

    strength: float = 0.0
    seed_size: tuple[int, int] | None = None
    seed_delta: int = 0


def _overlap(size: int, other: int) -> tuple[slice, slice]:
    """Return where a centred piece of length `other` lies in `size`, and which part of the piece that is."""
    offset = (size - other) // 2
    length = other if offset >= 0 else other + 2 * offset
    start, skip = max(offset, 0), max(-offset, 0)
    return slice(start, start + length), slice(skip, skip + length)


def paste_centred(background: Tensor, piece: Tensor) -> Tensor:
    """Return `background` (c h w) with `piece` (c h' w') in its middle, cropped where it is larger."""
    (top, piece_top), (left, piece_left) = (
        _overlap(size, other) for size, other in zip(background.shape[1:], piece.shape[1:], strict=True)
    )
    result = background.clone()
    result[:, top, left] = piece[:, piece_top, piece_left]
    return result


def _first(
    normals: Normals, source: Callable[[int], Normals], seed: int, subseed: int, shape: Shape, variation: Variation
) -> Tensor:
    """Return an image's first noise, (c h w); `normals` is the image's own stream and moves on by one draw."""
    drawn = (shape[0], *variation.seed_size) if variation.seed_size else shape
    resized = drawn != shape
    noise = source(seed).draw(drawn) if resized else normals.draw(shape)
    if variation.strength:
        noise = slerp(variation.strength, noise, source(subseed).draw(drawn))
    return paste_centred(normals.draw(shape), noise) if resized else noise


def _digits_of(walked: Tensor) -> int:
    """Return to how many digits the Brownian paths tell these levels apart."""
    levels = walked[walked > 0]
    return _FINE_DIGITS if len(levels) > 1 and float(levels.diff().abs().min()) < _NEAR else _TREE_DIGITS


class ImageNoise:
    """The noise of one generation's images: `start_noise` first, then the noise of the steps.

    A `StepNoise` of the samplers. `sigmas`: the plan's whole noise levels, also where image-to-image uses only some:
    the ends of the Brownian paths. `walked`: those that are used; unset: all of them.
    """

    def __init__(
        self,
        shape: Shape,
        seeds: Sequence[int],
        subseeds: Sequence[int] = (),
        source: NoiseSource = "cpu",
        variation: Variation | None = None,
        sigmas: Tensor | None = None,
        walked: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape, self.seeds, self.subseeds = shape, tuple(seeds), tuple(subseeds) or tuple(seeds)
        self.source, self.variation, self.device = SOURCES[source], variation or Variation(), device
        self.streams = [self.source(seed) for seed in self.seeds]
        self.range = (float(sigmas[sigmas > 0].min()), float(sigmas.max())) if sigmas is not None else None
        self.digits = _TREE_DIGITS if sigmas is None else _digits_of(sigmas if walked is None else walked)
        self.paths: list[Path] = []

    def start_noise(self) -> Tensor:
        """Return the noise that the pictures start from, (b c h w). To be called once, before any step."""
        images = [
            _first(stream, self.source, seed, subseed, self.shape, self.variation)
            for stream, seed, subseed in zip(self.streams, self.seeds, self.subseeds, strict=True)
        ]
        if self.variation.seed_delta:
            self.streams = [self.source(seed + self.variation.seed_delta) for seed in self.seeds]
        return torch.stack(images).to(self.device)

    def draw(self) -> Tensor:
        """Return the next standard normal tensor, (b c h w)."""
        return torch.stack([stream.draw(self.shape) for stream in self.streams]).to(self.device)

    def between(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """Return the normalised increment of each image's Brownian path from sigma to sigma_next, (b c h w).

        The path's entropy is the image's seed, its normals are of the source. k-diffusion's BrownianTreeNoiseSampler,
        and A1111's torchsde_randn.
        """
        assert self.range is not None, "Brownian noise wants the plan's sigmas"
        low, high = self.range
        inside = [min(max(float(s), round(low, self.digits)), round(high, self.digits)) for s in (sigma, sigma_next)]
        increments = torch.stack([path(min(inside), max(inside)) for path in self._paths()])
        sign = 1.0 if sigma_next > sigma else -1.0
        return (increments * sign / (sigma_next - sigma).abs().sqrt()).float().to(self.device)

    def _paths(self) -> list[Path]:
        """Return each image's path: from one level to a higher one, its increment, (c h w)."""
        if not self.paths and self.range is not None:
            make = self._nv_path if self.source is NvNormals else self._cpu_path
            self.paths = [make(self.range, seed % SEEDS) for seed in self.seeds]
        return self.paths

    def _nv_path(self, ends: tuple[float, float], seed: int) -> Path:
        return NvPath(ends, self.shape, seed, self.digits, self.device).between

    def _cpu_path(self, ends: tuple[float, float], seed: int) -> Path:
        tree = torchsde.BrownianTree(ends[0], torch.zeros(self.shape), ends[1], entropy=seed, tol=10.0**-self.digits)
        return lambda low, high: cast(Tensor, tree(low, high))


def start_latents(
    noise: Tensor, sigma: Tensor, alpha: Tensor, latents: Tensor | None = None, unit_variance: bool = False
) -> Tensor:
    """Return what sampling starts from, (b c h w).

    Alpha latents + sigma noise, and without latents sigma noise alone. `sigma`, `alpha`: the first noise level that
    is used, scalars. `unit_variance`: noise alone gets the variance that a noised picture of variance 1 has, sigma^2
    + alpha^2: A1111's samplers over timesteps, and its sgm_noise_multiplier.
    """
    if latents is not None:
        return alpha * latents.float() + sigma * noise
    return noise * ((sigma**2 + alpha**2).sqrt() if unit_variance else sigma)
