"""What every sampler of the catalogue does, for epsilon, v and flow models."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from disegno.diffusion.noise import ImageNoise
from disegno.diffusion.prediction import PREDICTIONS, Prediction
from disegno.diffusion.schedules import NoiseTable, plan_sigmas, scaled_linear_table
from disegno.samplers.base import Answer, Eval, Options, Plan, SamplerSpec, Sampling
from disegno.samplers.catalogue import SAMPLERS

pytestmark = pytest.mark.contract

VP = scaled_linear_table()
FLOW = NoiseTable(torch.linspace(0.001, 1, 1000))
TABLES = {"epsilon": VP, "v": VP, "flow": FLOW}
SHAPE = (2, 4, 4)

every_sampler = pytest.mark.parametrize("spec", SAMPLERS, ids=lambda spec: spec.name)
every_prediction = pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])


def mixture(x: Tensor, sigma: Tensor, alpha: Tensor) -> Tensor:
    """Return E[x0 | x] for pixels drawn from 0.3 N(-1, 0.3^2) + 0.7 N(0.8, 0.3^2), in float64."""
    x, sigma, alpha = x.double()[..., None], sigma.double(), alpha.double()
    means, weights = torch.tensor([-1.0, 0.8]).double(), torch.tensor([0.3, 0.7]).double()
    variance = alpha**2 * 0.09 + sigma**2
    share = (weights.log() - (x - alpha * means) ** 2 / (2 * variance)).softmax(-1)
    return (share * (means + alpha * 0.09 / variance * (x - alpha * means))).sum(-1).float()


MEAN, STD = 0.26, (0.3 * 1.0 + 0.7 * 0.64 + 0.09 - 0.26**2) ** 0.5


def answers(prediction: Prediction) -> Callable[[Eval], Answer]:
    """Return the answers of a net of this kind that knows the mixture.

    Its raw output, taken back to x0 by `prediction`.
    """

    def answer(q: Eval) -> Answer:
        x0 = mixture(q.x, q.sigma, prediction.alpha(q.sigma))
        n = (q.x - prediction.alpha(q.sigma) * x0) / q.sigma
        denoised = prediction.denoise(q.x, q.sigma, prediction.target(x0, n, q.sigma))
        return (denoised, denoised) if q.split else denoised

    return answer


def drive(sampling: Sampling, answer: Callable[[Eval], Answer]) -> Tensor:
    try:
        question = next(sampling)
        while True:
            question = sampling.send(answer(question))
    except StopIteration as stop:
        return stop.value


def begin(
    spec: SamplerSpec,
    prediction: str,
    steps: int,
    shape: tuple[int, int, int] = SHAPE,
    seeds: tuple[int, ...] = (1,),
    schedule: str | None = None,
    options: Options | None = None,
) -> tuple[Sampling, Plan]:
    """Return a sampling that starts from pure noise, and its plan."""
    sigmas = plan_sigmas(spec, schedule, steps, TABLES[prediction])
    noise = ImageNoise(shape, seeds, sigmas=sigmas)
    plan = Plan(sigmas, noise, PREDICTIONS[prediction].alpha, TABLES[prediction], options or Options())
    return spec.sample(noise.start_noise() * sigmas[0], plan), plan


@every_prediction
@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 40])
def test_reaches_x0_with_a_perfect_denoiser(spec: SamplerSpec, prediction: str, steps: int) -> None:
    x0 = torch.linspace(-1, 1, 32).reshape(1, *SHAPE)
    sampling, plan = begin(spec, prediction, steps)
    result = drive(sampling, lambda q: (x0, x0) if q.split else x0)
    # what a plan that does not end at 0 leaves is noise of that level; 5 standard deviations
    ends_above_zero = float(plan.sigmas[-1]) or (float(TABLES[prediction].sigma_min) if "DPM " in spec.name else 0.0)
    assert result.shape == x0.shape
    assert (result - x0).abs().max() < 1e-4 + 5 * ends_above_zero


@every_prediction
@every_sampler
def test_draws_from_the_distribution_that_its_net_knows(spec: SamplerSpec, prediction: str) -> None:
    """Mean and standard deviation over 4096 pixels, each a sample of its own."""
    if spec.name == "LCM":
        pytest.skip("its nets say where the flow ends, not E[x0 | x]; with the latter it draws the modes too sharp")
    # a flow's Normal schedule is coarse where the picture is nearly done: the Heun variant's error is 25 % at 20 steps,
    # 7 % at 40, 3.5 % at 60, 1.5 % at 160
    sampling, _ = begin(spec, prediction, 60 if prediction == "flow" else 40, (1, 64, 64))
    result = drive(sampling, answers(PREDICTIONS[prediction]))
    assert abs(float(result.mean()) - MEAN) < 0.06  # 4096 samples: 4 standard errors
    assert abs(float(result.std()) / STD - 1) < 0.05


DETERMINISTIC = [spec for spec in SAMPLERS if not spec.stochastic]


@every_prediction
@pytest.mark.parametrize("spec", DETERMINISTIC, ids=lambda spec: spec.name)
def test_without_noise_all_solve_the_same_equation(spec: SamplerSpec, prediction: str) -> None:
    """With 200 steps, a deterministic sampler ends where Heun with 400 does."""
    reference, _ = begin(next(s for s in SAMPLERS if s.name == "Heun"), prediction, 400, schedule="karras")
    expected = drive(reference, answers(PREDICTIONS[prediction]))
    sampling, _ = begin(spec, prediction, 200, schedule="karras")
    error = (drive(sampling, answers(PREDICTIONS[prediction])) - expected).abs()
    first_order = spec.name in ("Euler", "DDIM", "DDIM CFG++", "DPM2")  # DPM2's middle is geometric, its step is not
    assert error.max() < (0.05 if first_order else 0.01)


@every_prediction
@pytest.mark.parametrize("name", ["Euler a", "DPM2 a", "DPM++ 2S a", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 3M SDE"])
def test_eta_0_turns_noise_off(name: str, prediction: str) -> None:
    spec = next(s for s in SAMPLERS if s.name == name)
    results: list[Tensor] = []
    for step_seed in (0, 99):
        sampling, plan = begin(spec, prediction, 8, options=Options(eta=0.0))
        question = next(sampling)
        plan.noise.streams = [plan.noise.source(step_seed)]
        answer = answers(PREDICTIONS[prediction])
        try:
            while True:
                question = sampling.send(answer(question))
        except StopIteration as stop:
            results.append(stop.value)
    assert torch.equal(*results)


@every_sampler
def test_two_requests_in_one_batch_are_what_they_are_alone(spec: SamplerSpec) -> None:
    """Both are stepped in one loop and answered in one evaluation; one has more steps, and joins late."""

    def evaluate(questions: list[Eval]) -> tuple[Tensor, ...]:
        sigma = torch.stack([q.sigma for q in questions]).reshape(-1, 1, 1, 1, 1)
        return mixture(torch.cat([q.x for q in questions]), sigma, torch.ones_like(sigma)).split(1)

    def alone(seed: int, steps: int) -> Tensor:
        sampling, _ = begin(spec, "epsilon", steps, seeds=(seed,))
        return drive(sampling, lambda q: evaluate([q]) * 2 if q.split else evaluate([q])[0])

    waiting = {7: begin(spec, "epsilon", 6, seeds=(7,))[0], 8: begin(spec, "epsilon", 9, seeds=(8,))[0]}
    open_questions = {7: next(waiting[7])}
    results: dict[int, Tensor] = {}
    for turn in range(10_000):
        if turn == 2:
            open_questions[8] = next(waiting[8])
        if not open_questions and turn > 2:
            break
        denoised = evaluate(list(open_questions.values()))
        for (seed, question), own in zip(list(open_questions.items()), denoised, strict=True):
            try:
                open_questions[seed] = waiting[seed].send((own, own) if question.split else own)
            except StopIteration as stop:
                results[seed] = stop.value
                del open_questions[seed]
    assert torch.equal(results[7], alone(7, 6))
    assert torch.equal(results[8], alone(8, 9))


@every_sampler
def test_an_image_does_not_depend_on_its_batch(spec: SamplerSpec) -> None:
    if spec.adaptive:
        pytest.skip("its steps are chosen by the whole x: a driver gives each image its own coroutine")
    answer = answers(PREDICTIONS["epsilon"])
    both = drive(begin(spec, "epsilon", 6, seeds=(3, 4))[0], answer)
    assert torch.equal(both[1:], drive(begin(spec, "epsilon", 6, seeds=(4,))[0], answer))


@every_sampler
def test_can_be_stopped_anywhere(spec: SamplerSpec) -> None:
    for num_answers in range(3):
        sampling, _ = begin(spec, "flow", 5)
        question = next(sampling)
        for _ in range(num_answers):
            zero = torch.zeros_like(question.x)
            question = sampling.send((zero, zero) if question.split else zero)
        sampling.close()
        with pytest.raises(StopIteration):
            next(sampling)


@every_sampler
def test_computes_in_float32_whatever_it_is_told(spec: SamplerSpec) -> None:
    sampling, _ = begin(spec, "epsilon", 4)
    half = torch.zeros(1, *SHAPE, dtype=torch.bfloat16)
    asked: list[torch.dtype] = []

    def answer(q: Eval) -> Answer:
        asked.append(q.x.dtype)
        return (half, half) if q.split else half

    assert drive(sampling, answer).dtype == torch.float32
    assert set(asked) == {torch.float32}


@every_prediction
@every_sampler
def test_asks_at_finite_noise_levels_of_the_model(spec: SamplerSpec, prediction: str) -> None:
    sampling, plan = begin(spec, prediction, 30)
    levels: list[Tensor] = []
    answer = answers(PREDICTIONS[prediction])

    def listen(q: Eval) -> Answer:
        levels.append(q.sigma)
        assert q.x.isfinite().all()
        return answer(q)

    drive(sampling, listen)
    asked = torch.stack(levels)
    assert asked.min() > 0
    assert asked.max() <= plan.sigmas[0] * (1 + 1e-6)
    if spec.evals_per_step == 1 and spec.name not in ("DPM adaptive", "PLMS"):
        assert len(asked) == int((plan.sigmas[:-1] > 0).sum())


@every_sampler
def test_ends_even_when_the_net_gives_no_numbers(spec: SamplerSpec) -> None:
    sampling, _ = begin(spec, "epsilon", 5)
    nan = torch.full((1, *SHAPE), torch.nan)
    assert drive(sampling, lambda q: (nan, nan) if q.split else nan).isnan().all()
