"""What a run starts from, and which of its steps rest."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from disegno import Request
from disegno.backbones.base import Backbone, TextStates
from disegno.core.guide import Guide
from disegno.diffusion.noise import ImageNoise
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import flow_table, scaled_linear_table
from disegno.engine.batch import Run, View
from disegno.engine.runs import Begin, Material, runs_of, taken_over
from disegno.engine.texts import Texts

pytestmark = pytest.mark.unit

LATENTS = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def _backbone(prediction: str) -> Backbone:
    table = flow_table(1.0) if prediction == "flow" else scaled_linear_table()
    given: dict[str, Any] = {"prediction": PREDICTIONS[prediction], "table": table, "family": "sd1", "name": "small"}
    return cast(Backbone, SimpleNamespace(**given, latent_channels=4, in_channels=4, downscale=8))


def _material(begin: Begin | None = None) -> Material:
    states = TextStates(torch.zeros(1, 3, 2), None, ("text",))
    return Material(Texts.plain(states, states), (8, 8), (View(),), begin)


def _run(request: Request, prediction: str, begin: Begin | None = None) -> Run:
    (run,) = runs_of(request, _backbone(prediction), _material(begin), [7], [7])
    return run


def test_the_extra_noise_is_as_weak_as_the_rest() -> None:
    """A1111's x *= initial_noise_multiplier comes before xi += noise * img2img_extra_noise."""
    request = Request(steps=8, sampler="Euler", schedule="Automatic", cfg=7.0)
    run = _run(request, "epsilon", Begin(LATENTS, 0.5, noise=0.5, extra_noise=0.2))
    run.start()
    assert run.question is not None
    noise = 0.5 * ImageNoise((4, 8, 8), [7]).start_noise()
    torch.testing.assert_close(run.question.x, LATENTS + noise * run.sigmas[0] + 0.2 * noise)


def test_the_steps_that_rest_are_the_first_of_those_from_noise_on() -> None:
    """Where a picture is drawn over, a step that rests would leave its noise in it."""
    guide = Guide(zero_star=True, zero_steps=3)
    request = Request(steps=8, sampler="Euler", schedule="normal", cfg=4.0, guide=guide)
    begins = (None, Begin(LATENTS, 1.0), Begin(LATENTS, 0.8), Begin(LATENTS, 0.4), Begin(LATENTS, 0.4, True))
    runs = [_run(request, "flow", begin) for begin in begins]
    assert [(len(run.sigmas) - 1, run.guidance.still) for run in runs] == [(8, 3), (8, 3), (7, 2), (4, 0), (8, 0)]
    over = taken_over(runs[3], request, _backbone("flow"), _material())
    assert over.guidance.still == 0
