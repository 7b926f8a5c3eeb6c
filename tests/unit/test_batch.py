"""The step-level batch: requests at different steps share evaluations and do not notice each other."""

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from disegno.backbones.base import Defaults, TextStates
from disegno.diffusion.call import Call, Residuals
from disegno.diffusion.denoiser import Guidance
from disegno.diffusion.noise import ImageNoise, start_latents
from disegno.diffusion.prediction import PREDICTIONS, Prediction
from disegno.diffusion.schedules import NoiseTable, plan_sigmas, scaled_linear_table
from disegno.engine.batch import Batch, Run, calls_of
from disegno.engine.texts import Texts
from disegno.samplers.base import Eval, Plan
from disegno.samplers.catalogue import SAMPLERS, find_sampler

pytestmark = pytest.mark.unit

SHAPE = (4, 8, 8)
DEFAULTS = Defaults(64, 64, 10, 3.0, "Euler", "automatic")


@dataclass
class Toy:
    """A backbone whose net is elementwise, so that its bits cannot depend on the batch; counts evaluations and rows."""

    family: str = "toy"
    name: str = "toy"
    prediction: Prediction = PREDICTIONS["epsilon"]
    table: NoiseTable = field(default_factory=scaled_linear_table)
    defaults: Defaults = DEFAULTS
    latent_channels: int = 4
    downscale: int = 8
    net: nn.Module = field(default_factory=nn.Identity)
    vae: nn.Module = field(default_factory=nn.Identity)
    fingerprint: str = "toy"
    conditions: dict[str, Path] = field(default_factory=dict[str, Path])
    base_control: Path | None = None
    evaluations: list[int] = field(default_factory=list[int])

    def evaluate(self, call: Call) -> Tensor:
        self.evaluations.append(len(call.rows))
        extra = call.residuals.mid if call.residuals else torch.zeros_like(call.x[:, :1])
        text = call.tokens.mean(dim=(1, 2))[:, None, None, None]
        return torch.sin(call.x * 1.7 + text) * 0.5 + call.t[:, None, None, None] * 1e-4 + extra


def _run(
    backbone: Toy,
    seed: int,
    sampler: str = "Euler a",
    steps: int = 6,
    num: int = 1,
    cfg: float = 3.0,
    controls: tuple = (),
) -> Run:
    spec = find_sampler(sampler)
    sigmas = plan_sigmas(spec, "automatic", steps, backbone.table)
    noise = ImageNoise(SHAPE, [seed + i for i in range(num)], sigmas=sigmas)
    x = start_latents(noise.start_noise(), sigmas[0], torch.tensor(1.0), unit_variance=spec.over_timesteps)
    plan = Plan(sigmas, noise, backbone.prediction.alpha, backbone.table)
    positive = TextStates(torch.full((1, 3, 5), seed * 0.1), None, (f"text {seed}",))
    texts = Texts.plain(positive, TextStates(torch.zeros(1, 3, 5), None, ("",)), num)
    return Run(spec.sample(x, plan), texts, Guidance(cfg), sigmas, controls)


def test_steps_without_guidance_ask_for_half_as_much() -> None:
    """They are those of guidance 1; the others are as they were."""
    backbone, plain = Toy(), Toy()
    run, x = _run(backbone, 1, "Euler", 8), _run(plain, 1, "Euler", 8).sampling.send(None).x
    run.guidance = Guidance(3.0, start=0.125, lowest=1.5)
    batch = Batch(backbone)
    batch.add(run)
    while batch.runs:
        batch.step()
    rows = [n < 2 or (sigma < 1.5 and n % 2 == 1) for n, sigma in enumerate(run.sigmas[:-1].tolist())]
    assert backbone.evaluations == [1 if alone else 2 for alone in rows] and 2 < sum(rows) < 8
    for n, (sigma, after) in enumerate(pairwise(run.sigmas)):
        one = _run(plain, 1, "Euler", 8)
        one.guidance = Guidance(1.0 if rows[n] else 3.0)
        one.question = Eval(x, sigma)
        out = torch.cat([plain.evaluate(posed.call) for posed in calls_of(one, plain)])
        denoised = _estimate(x, sigma, out, one)
        x = x + (x - denoised) / sigma * (after - sigma)
    assert run.latents is not None and torch.allclose(x, run.latents, atol=1e-5)


def _estimate(x: Tensor, sigma: Tensor, out: Tensor, run: Run) -> Tensor:
    (positive, *negative) = out.split(1)
    guided = negative[0] + 3.0 * (positive - negative[0]) if negative else positive
    return x - sigma * guided


def _alone(sampler: str, seed: int, steps: int, num: int = 1) -> Tensor:
    backbone = Toy()
    batch, run = Batch(backbone), _run(backbone, seed, sampler, steps, num)
    batch.add(run)
    while batch.runs:
        batch.step()
    assert run.latents is not None
    return run.latents


@pytest.mark.parametrize("sampler", [spec.name for spec in SAMPLERS if not spec.adaptive])
def test_joining_later_changes_nothing(sampler: str) -> None:
    backbone = Toy()
    batch, first, second = Batch(backbone), _run(backbone, 1, sampler, 6), _run(backbone, 2, "Euler", 4, num=2)
    batch.add(first)
    batch.step()
    batch.step()
    batch.add(second)
    while batch.runs:
        batch.step()
    assert first.latents is not None and second.latents is not None
    assert torch.equal(first.latents, _alone(sampler, 1, 6))
    assert torch.equal(second.latents, _alone("Euler", 2, 4, num=2))
    assert max(backbone.evaluations) == 6  # one and two images, each with a negative row, in one evaluation


def test_an_image_of_a_batch_is_the_image_alone() -> None:
    together = _alone("DPM++ SDE", 5, 5, num=3)
    assert torch.equal(together[2:], _shifted(5, 2))


def _shifted(seed: int, by: int) -> Tensor:
    backbone = Toy()
    batch, run = Batch(backbone), _run(backbone, seed + by, "DPM++ SDE", 5)
    run.texts = _run(backbone, seed).texts
    batch.add(run)
    while batch.runs:
        batch.step()
    assert run.latents is not None
    return run.latents


def test_without_guidance_there_is_no_negative_row() -> None:
    backbone = Toy()
    batch = Batch(backbone)
    batch.add(_run(backbone, 1, "Euler", 3, num=2, cfg=1.0))
    batch.step()
    assert backbone.evaluations == [2]


@dataclass(frozen=True)
class Adds:
    """A control that adds a constant to the middle."""

    value: float
    key: str = "adds"
    sees_x: bool = True
    positive_only: bool = False

    def __call__(self, call: Call) -> Call:
        mid = torch.full_like(call.x[:, :1], self.value)
        added = Residuals((), mid)
        return replace(call, residuals=added if call.residuals is None else call.residuals + added)


def test_a_controlled_run_and_a_plain_one_share_a_batch() -> None:
    backbone = Toy()
    batch, plain, controlled = Batch(backbone), _run(backbone, 1), _run(backbone, 1, controls=(Adds(0.25), Adds(0.25)))
    batch.add(plain)
    batch.add(controlled)
    while batch.runs:
        batch.step()
    assert plain.latents is not None and controlled.latents is not None
    assert torch.equal(plain.latents, _alone("Euler a", 1, 6))
    assert (plain.latents - controlled.latents).abs().max() > 0.01
    assert max(backbone.evaluations) == 4


def test_a_large_batchs_residuals_are_not_all_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disegno.engine.batch.MAX_CELLS", 2 * 8 * 8)  # two rows
    backbone, ahead = Toy(), list[int]()

    def control(call: Call) -> Call:
        made.append(len(call.rows))
        ahead.append(len(made) - len(backbone.evaluations))
        return call

    made = list[int]()
    batch = Batch(backbone)
    batch.add(_run(backbone, 1, num=4, controls=(control,)))
    batch.step()
    assert backbone.evaluations == made == [2, 2, 2, 2] and max(ahead) <= 2


def test_a_stopped_run_asks_no_more() -> None:
    backbone = Toy()
    batch, run = Batch(backbone), _run(backbone, 1)
    batch.add(run)
    batch.step()
    run.stop()
    batch.step()
    assert not batch.runs and len(backbone.evaluations) == 1
