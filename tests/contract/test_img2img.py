"""Every sampler and schedule begins in the middle of its noise levels, where a picture is changed."""

from itertools import pairwise

import pytest
import torch

from disegno.backbones.miniature import open_miniature
from disegno.core.request import Request
from disegno.diffusion.noise import ImageNoise, start_latents
from disegno.diffusion.schedules import SCHEDULES, start_step
from disegno.engine.runs import Begin, walk_of
from disegno.samplers.base import Plan, SamplerSpec, Sampling
from disegno.samplers.catalogue import SAMPLERS

pytestmark = pytest.mark.contract

BACKBONE = open_miniature()
X0 = torch.linspace(-1, 1, 64).reshape(1, 4, 4, 4)
REQUEST = Request(steps=20)


@pytest.mark.parametrize("schedule", [None, *SCHEDULES])
@pytest.mark.parametrize("spec", SAMPLERS, ids=lambda spec: spec.name)
def test_a_noised_picture_comes_back_with_a_perfect_denoiser(schedule: str | None, spec: SamplerSpec) -> None:
    request = Request(steps=20, schedule=schedule)
    for denoise in (0.01, 0.5, 1.0):
        walk = walk_of(request, spec, BACKBONE, Begin(X0, denoise))
        assert len(walk.sigmas) >= 2 and all(a > b for a, b in pairwise(walk.sigmas.tolist()))
        noise = ImageNoise((4, 4, 4), [5], sigmas=walk.planned)
        x = start_latents(noise.start_noise(), walk.sigmas[0], torch.ones(()), X0)
        table = None if spec.name == "LCM" else BACKBONE.table  # it mixes in x near the table's end, by design
        sampling = spec.sample(x, Plan(walk.sigmas, noise, torch.ones_like, table))
        found = _driven(sampling)
        lowest = float(BACKBONE.table.sigma_min) if "DPM " in spec.name else float(walk.sigmas[-1])
        assert (found - X0).abs().max() < 1e-4 + 5 * lowest  # what is left is noise of the last level


def _driven(sampling: Sampling) -> torch.Tensor:
    try:
        question = next(sampling)
        while True:
            question = sampling.send((X0, X0) if question.split else X0)
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("spec", SAMPLERS, ids=lambda spec: spec.name)
def test_as_many_steps_are_done_as_the_strength_says(spec: SamplerSpec, exact: bool) -> None:
    """A1111's count; its samplers over timesteps plan one step less, with or without a picture."""
    for denoise in (0.3, 0.75, 1.0):
        walk = walk_of(REQUEST, spec, BACKBONE, Begin(X0, denoise, exact))
        start = start_step(20, denoise, exact)
        ends_above = spec.over_timesteps and spec.name != "UniPC"
        assert len(walk.sigmas) - 1 == max(1, start.num_steps - ends_above)
