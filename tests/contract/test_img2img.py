"""Every sampler and schedule begins in the middle of its noise levels, where a picture is changed."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from disegno.backbones.miniature import open_miniature
from disegno.core.request import Request
from disegno.diffusion.noise import ImageNoise, start_latents
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import SCHEDULES, flow_table, start_step
from disegno.engine.runs import Begin, walk_of
from disegno.samplers.base import Plan, SamplerSpec, Sampling
from disegno.samplers.catalogue import SAMPLERS, find_sampler

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


@pytest.mark.parametrize("name", ["DPM++ SDE", "DPM++ 2M SDE", "DPM++ 3M SDE", "LMS", "Euler"])
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize("denoise", [0.005, 0.001])
def test_next_to_nothing_of_a_flow_is_drawn_over(name: str, schedule: str, denoise: float) -> None:
    """Levels of a plan of 20 steps for a thousandth are nearer than 1e-6; the picture stays what it nearly is."""
    table, generator = flow_table(1.0), torch.Generator().manual_seed(1)
    picture = torch.randn(1, 4, 4, 4, generator=generator)
    request = Request(steps=20, schedule=schedule)
    backbone = replace(BACKBONE, table=table, prediction=PREDICTIONS["flow"])
    walk = walk_of(request, find_sampler(name), backbone, Begin(picture, denoise, exact_steps=True))
    noise = ImageNoise((4, 4, 4), [5], sigmas=walk.planned, walked=walk.sigmas)
    alpha = PREDICTIONS["flow"].alpha
    x = start_latents(noise.start_noise(), walk.sigmas[0], alpha(walk.sigmas[0]), picture)
    sampling = find_sampler(name).sample(x, Plan(walk.sigmas, noise, alpha, table))
    question = next(sampling)
    with pytest.raises(StopIteration) as ended:
        while True:  # a net that is rough, as trained ones are in half precision
            question = sampling.send(picture + 0.01 * torch.sin(1000 * question.x))
    assert (ended.value.value - picture).abs().max() < 0.1
