"""Samplers against k-diffusion's and diffusers' own, on the exact denoiser of a Gaussian mixture."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from disegno.diffusion.noise import ImageNoise
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import NoiseTable, plan_sigmas, scaled_linear_table
from disegno.diffusion.steps import ratio_of
from disegno.samplers.base import Answer, Eval, Options, Plan, Sampling
from disegno.samplers.catalogue import find_sampler

# k-diffusion asks its Brownian trees for their unrounded ends, and torchsde warns
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:Should have")]

SHAPE = (2, 4, 4)
SEEDS = (11, 12)
VP = scaled_linear_table()
FLOW = NoiseTable(torch.linspace(0.001, 1, 1000))


def mixture(x: Tensor, sigma: Tensor, alpha: Tensor) -> Tensor:
    """Return E[x0 | x] for pixels drawn from 0.3 N(-1, 0.3^2) + 0.7 N(0.8, 0.3^2), in float64."""
    x, sigma, alpha = x.double()[..., None], sigma.double(), alpha.double()
    means, weights = torch.tensor([-1.0, 0.8]).double(), torch.tensor([0.3, 0.7]).double()
    variance = alpha**2 * 0.09 + sigma**2
    share = (weights.log() - (x - alpha * means) ** 2 / (2 * variance)).softmax(-1)
    return (share * (means + alpha * 0.09 / variance * (x - alpha * means))).sum(-1).float()


def drive(sampling: Sampling, answer: Callable[[Eval], Answer]) -> Tensor:
    """Return the picture: each question of the sampler answered at once."""
    try:
        question = next(sampling)
        while True:
            question = sampling.send(answer(question))
    except StopIteration as stop:
        return stop.value


@dataclass(frozen=True)
class Case:
    """A start, a plan, and the noise that both programs draw."""

    x: Tensor
    plan: Plan

    def ours(self, name: str) -> Tensor:
        """Return what our sampler makes of it."""
        return drive(
            find_sampler(name).sample(self.x, self.plan), lambda q: mixture(q.x, q.sigma, self.plan.alpha(q.sigma))
        )

    def model(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the estimate in k-diffusion's form: sigma is (b,)."""
        return mixture(x, sigma[0], self.plan.alpha(sigma[0]))


def case(sigmas: Tensor, prediction: str = "epsilon", table: NoiseTable = VP, **options: float) -> Case:
    noise = ImageNoise(SHAPE, SEEDS, sigmas=sigmas)
    alpha = PREDICTIONS[prediction].alpha
    x = noise.start_noise() * sigmas[0] + alpha(sigmas[0]) * 0.3
    return Case(x, Plan(sigmas, noise, alpha, table, Options(**options)))


@pytest.fixture(scope="module")
def k_diffusion() -> ModuleType:
    """Return k-diffusion's sampling.py, without the package around it, which wants much that it does not need."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None or not found.submodule_search_locations:
        pytest.skip("k-diffusion is not installed (pip install --no-deps k-diffusion)")
    package = ModuleType("k_diffusion_alone")
    package.__path__ = []
    utils = ModuleType("k_diffusion_alone.utils")
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # pyright: ignore
    package.utils = utils  # pyright: ignore
    sys.modules |= {"k_diffusion_alone": package, "k_diffusion_alone.utils": utils}
    path = Path(found.submodule_search_locations[0]) / "sampling.py"
    spec = importlib.util.spec_from_file_location("k_diffusion_alone.sampling", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(c: Case) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda sigma, sigma_next: c.plan.noise.draw()


THEIRS = {
    "Euler": "sample_euler",
    "Heun": "sample_heun",
    "DPM2": "sample_dpm_2",
    "LMS": "sample_lms",
    "DPM++ 2M": "sample_dpmpp_2m",
    "Euler a": "sample_euler_ancestral",
    "DPM2 a": "sample_dpm_2_ancestral",
    "DPM++ 2S a": "sample_dpmpp_2s_ancestral",
    "DPM++ SDE": "sample_dpmpp_sde",
    "DPM++ 2M SDE": "sample_dpmpp_2m_sde",
    "DPM++ 2M SDE Heun": "sample_dpmpp_2m_sde",
    "DPM++ 3M SDE": "sample_dpmpp_3m_sde",
}
DETERMINISTIC = ("Euler", "Heun", "DPM2", "LMS", "DPM++ 2M")
ANCESTRAL = ("Euler a", "DPM2 a", "DPM++ 2S a")
BROWNIAN = ("DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE")
# float32 on both sides, the same operations in nearly the same order
CLOSE = partial(torch.testing.assert_close, rtol=2e-5, atol=2e-5)


def theirs(k_diffusion: ModuleType, name: str, c: Case, **more: object) -> Tensor:
    sample = getattr(k_diffusion, THEIRS[name])
    if name in ANCESTRAL:
        more["noise_sampler"] = drawn(c)
    if name in BROWNIAN:
        sigmas = c.plan.sigmas
        more["noise_sampler"] = k_diffusion.BrownianTreeNoiseSampler(
            c.x, sigmas[sigmas > 0].min(), sigmas.max(), seed=list(SEEDS)
        )
    if name == "DPM++ 2M SDE Heun":
        more["solver_type"] = "heun"
    return sample(c.model, c.x, c.plan.sigmas, disable=True, **more)


@pytest.mark.parametrize("schedule", ["karras", "exponential", "sgm_uniform", "kl_optimal"])
@pytest.mark.parametrize("name", THEIRS)
def test_epsilon_and_v_as_k_diffusion(k_diffusion: ModuleType, name: str, schedule: str) -> None:
    sigmas = plan_sigmas(find_sampler(name), schedule, 12, VP)
    CLOSE(case(sigmas).ours(name), theirs(k_diffusion, name, case(sigmas)))


@pytest.mark.parametrize("eta", [0.0, 0.4])
@pytest.mark.parametrize("name", ANCESTRAL + BROWNIAN)
def test_eta_and_s_noise_as_k_diffusion(k_diffusion: ModuleType, name: str, eta: float) -> None:
    sigmas = plan_sigmas(find_sampler(name), None, 10, VP)
    ours = case(sigmas, eta=eta, s_noise=1.01).ours(name)
    CLOSE(ours, theirs(k_diffusion, name, case(sigmas), eta=eta, s_noise=1.01))


@pytest.mark.parametrize("name", ["Euler", "Heun", "DPM2"])
def test_churn_as_k_diffusion(k_diffusion: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sigmas = plan_sigmas(find_sampler(name), "karras", 10, VP)
    options = {"s_churn": 4.0, "s_tmin": 0.1, "s_tmax": 8.0, "s_noise": 1.003}
    ours, reference = case(sigmas, **options).ours(name), case(sigmas)
    monkeypatch.setattr(torch, "randn_like", lambda x: reference.plan.noise.draw())
    CLOSE(ours, theirs(k_diffusion, name, reference, **options))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("num_evals", [1, 2, 3, 7, 12, 20])
def test_dpm_fast_as_k_diffusion(k_diffusion: ModuleType, num_evals: int, eta: float) -> None:
    sigmas = plan_sigmas(find_sampler("DPM fast"), None, num_evals, VP)
    ours, c = case(sigmas, eta=eta).ours("DPM fast"), case(sigmas)
    low, high = float(VP.sigma_min), float(sigmas[0])
    expected = k_diffusion.sample_dpm_fast(
        c.model, c.x, low, high, num_evals, disable=True, eta=eta, noise_sampler=drawn(c)
    )
    # a few steps over all of log sigma: e^h / h magnifies rounding
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpm_adaptive_as_k_diffusion(k_diffusion: ModuleType, eta: float) -> None:
    sigmas = plan_sigmas(find_sampler("DPM adaptive"), None, 10, VP)
    ours, c = case(sigmas, eta=eta).ours("DPM adaptive"), case(sigmas)
    low, high = float(VP.sigma_min), float(sigmas[0])
    expected = k_diffusion.sample_dpm_adaptive(c.model, c.x, low, high, disable=True, eta=eta, noise_sampler=drawn(c))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)  # its steps answer to rounding errors of x


@pytest.mark.parametrize(
    ("steps", "num_again", "times"), [(10, 0, 0), (19, 0, 0), (20, 9, 1), (35, 9, 1), (36, 9, 2), (50, 12, 2)]
)
def test_restart_is_heun_in_a1111s_order(k_diffusion: ModuleType, steps: int, num_again: int, times: int) -> None:
    """A1111's rule restated: from 20 steps on, some of them go back from sigma 0.1 to sigma 2 and down again."""
    sigmas = plan_sigmas(find_sampler("Restart"), None, steps, VP)
    c = case(sigmas)
    ours, reference = case(sigmas).ours("Restart"), c.x
    main = k_diffusion.get_sigmas_karras(steps - num_again * times, float(sigmas[-2]), float(sigmas[0]))
    at_low, at_high = (int((main - level).abs().argmin()) for level in (0.1, 2.0))
    runs = [main]
    if times:
        again = k_diffusion.get_sigmas_karras(num_again + 1, float(main[at_low]), float(main[at_high]))[:-1]
        runs = [main[: at_low + 1], *[again] * times, main[at_low:]]
    for i, run in enumerate(runs):
        if 0 < i <= times:
            reference = reference + c.plan.noise.draw() * (run[0] ** 2 - runs[i - 1][-1] ** 2) ** 0.5
        reference = k_diffusion.sample_heun(c.model, reference, run, disable=True)
    CLOSE(ours, reference)
    assert sum(len(run) - 1 for run in runs) == steps


@pytest.mark.parametrize("name", DETERMINISTIC[:4])
def test_flow_over_sigma_as_k_diffusion(k_diffusion: ModuleType, name: str) -> None:
    """For flow too dx / dsigma = (x - x0) / sigma, so solvers over sigma hold as they are, from sigma 1 on."""
    sigmas = plan_sigmas(find_sampler(name), "simple", 12, FLOW)
    assert sigmas[0] == 1
    CLOSE(case(sigmas, "flow", FLOW).ours(name), theirs(k_diffusion, name, case(sigmas, "flow", FLOW)))


@dataclass(frozen=True)
class SignalSpace:
    """A flow case as k-diffusion sees it: y = x / alpha = x0 + ratio n."""

    flow: Case

    @property
    def x(self) -> Tensor:
        return self.flow.x / self.flow.plan.alpha(self.flow.plan.sigmas[0])

    @property
    def ratios(self) -> Tensor:
        return ratio_of(self.flow.plan.sigmas, self.flow.plan.alpha)

    def model(self, y: Tensor, ratio: Tensor) -> Tensor:
        return mixture(y, ratio[0], torch.ones(()))


@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M", *ANCESTRAL, *BROWNIAN])
def test_flow_over_ratio_as_k_diffusion(k_diffusion: ModuleType, name: str) -> None:
    """From sigma < 1, a flow sampler is k-diffusion's in x / alpha, whose noise level is sigma / (1 - sigma)."""
    sigmas = plan_sigmas(find_sampler(name), "normal", 12, NoiseTable(FLOW.sigmas[:970]))
    c, reference = case(sigmas, "flow", FLOW), SignalSpace(case(sigmas, "flow", FLOW))
    more: dict[str, object] = {}
    if name in ANCESTRAL:
        more["noise_sampler"] = drawn(reference.flow)
    if name in BROWNIAN:
        native = lambda ratio: ratio / (1 + ratio)  # noqa: E731
        more["noise_sampler"] = lambda a, b: reference.flow.plan.noise.between(native(a), native(b))
    if name == "DPM++ 2M SDE Heun":
        more["solver_type"] = "heun"
    sample = getattr(k_diffusion, THEIRS[name])
    # the Brownian path is rough: rounding of sigma by 1e-7 moves its increments by its square root
    tolerance = 2e-3 if name in BROWNIAN else 5e-5
    expected = sample(reference.model, reference.x, reference.ratios, disable=True, **more)
    torch.testing.assert_close(c.ours(name), expected, rtol=tolerance, atol=tolerance)
