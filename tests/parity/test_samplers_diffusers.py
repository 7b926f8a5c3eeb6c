"""Samplers that k-diffusion lacks, and flow models, against diffusers' schedulers, on a Gaussian mixture."""

from collections.abc import Callable

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from disegno.diffusion.noise import ImageNoise
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import NoiseTable, plan_sigmas, scaled_linear_table
from disegno.samplers.base import Answer, Eval, Options, Plan, Sampling
from disegno.samplers.catalogue import find_sampler

# diffusers turns tensors into arrays in a way that numpy 2 deprecates
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]

SHAPE = (2, 4, 4)
VP = scaled_linear_table()
FLOW = NoiseTable(torch.linspace(0.001, 1, 1000))
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
LEADING = {"steps_offset": 1, "timestep_spacing": "leading", "set_alpha_to_one": False}


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


def ours(name: str, x: Tensor, sigmas: Tensor, prediction: str = "epsilon", **options: float) -> Tensor:
    alpha = PREDICTIONS[prediction].alpha
    plan = Plan(sigmas, noise(), alpha, VP if prediction == "epsilon" else FLOW, Options(**options))
    return drive(find_sampler(name).sample(x, plan), lambda q: mixture(q.x, q.sigma, alpha(q.sigma)))


def noise() -> ImageNoise:
    drawn = ImageNoise(SHAPE, (5, 6))
    drawn.start_noise()
    return drawn


def start() -> Tensor:
    return ImageNoise(SHAPE, (5, 6)).start_noise()


def vp(sigma: Tensor) -> Tensor:
    """Return what turns x0 + sigma n into diffusers' alpha x0 + sqrt(1 - alpha^2) n."""
    return 1 / (sigma**2 + 1).sqrt()


def eps(x: Tensor, t: int) -> Tensor:
    """Return the noise that diffusers' epsilon model sees in x at timestep t."""
    sigma = VP.sigmas[t]
    return (x / vp(sigma) - mixture(x / vp(sigma), sigma, torch.ones(()))) / sigma


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("name", ["DDIM", "DDIM CFG++"])
def test_ddim(name: str, eta: float) -> None:
    """With nothing to guide, CFG++ is DDIM."""
    sigmas = plan_sigmas(find_sampler(name), None, 10, VP)
    scheduler = DDIMScheduler(**BETAS, **LEADING, clip_sample=False)
    scheduler.set_timesteps(10)
    x, drawn = start(), noise()
    for t in scheduler.timesteps.tolist()[:-1]:  # A1111 ends at timestep 1; diffusers goes on to timestep 0
        x = scheduler.step(eps(x, t), t, x, eta=eta, variance_noise=drawn.draw()).prev_sample
    plan = Plan(sigmas, noise(), torch.ones_like, VP, Options(eta=eta))

    def answer(q: Eval) -> Answer:
        denoised = mixture(q.x, q.sigma, torch.ones(()))
        return (denoised, denoised) if q.split else denoised

    result = drive(find_sampler(name).sample(start() / vp(sigmas[0]), plan), answer)
    torch.testing.assert_close(result * vp(sigmas[-1]), x, rtol=1e-4, atol=1e-4)  # float32, another order of operations


def test_plms() -> None:
    sigmas = plan_sigmas(find_sampler("PLMS"), None, 10, VP)
    scheduler = PNDMScheduler(**BETAS, **LEADING, skip_prk_steps=True)
    scheduler.set_timesteps(10)
    x = start()
    for t in scheduler.timesteps.tolist()[:-1]:
        x = scheduler.step(eps(x, t), t, x).prev_sample
    result = ours("PLMS", start() / vp(sigmas[0]), sigmas)
    torch.testing.assert_close(result * vp(sigmas[-1]), x, rtol=1e-4, atol=1e-4)  # float32, another order of operations


@pytest.mark.parametrize("steps", [3, 5, 12])
@pytest.mark.parametrize("schedule", [None, "kl_optimal"])
def test_unipc(schedule: str | None, steps: int) -> None:
    sigmas = plan_sigmas(find_sampler("UniPC"), schedule, steps, VP)
    scheduler = UniPCMultistepScheduler(**BETAS, solver_type="bh1", solver_order=3, prediction_type="sample")
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas, x = sigmas, start()
    for i, t in enumerate(scheduler.timesteps):
        denoised = mixture(x / vp(sigmas[i]), sigmas[i], torch.ones(()))
        x = scheduler.step(denoised, t, x).prev_sample
    result = ours("UniPC", start() / vp(sigmas[0]), sigmas)
    torch.testing.assert_close(result * vp(sigmas[-1]), x, rtol=2e-4, atol=2e-4)  # a 3 x 3 system, float32 there


def test_lcm() -> None:
    """On timesteps that LCM was distilled on.

    The boundary condition keeps 1e-5 of x, which the two scale differently.
    """
    t = torch.tensor([999, 759, 499, 259])
    scheduler = LCMScheduler(**BETAS, original_inference_steps=50, prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(4)
    scheduler.timesteps, x = t, start()
    drawn = noise()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *args, **kwargs: drawn.draw())
        for step in t:
            sigma = VP.sigmas[step]
            denoised = mixture(x / vp(sigma), sigma, torch.ones(()))
            x = scheduler.step(denoised, step, x).prev_sample
    sigmas = torch.cat([VP.sigmas[t], torch.zeros(1)])
    torch.testing.assert_close(ours("LCM", start() / vp(sigmas[0]), sigmas), x, rtol=1e-3, atol=1e-3)


def test_flow_euler_and_heun() -> None:
    sigmas = plan_sigmas(find_sampler("Euler"), "simple", 8, FLOW)
    euler = FlowMatchEulerDiscreteScheduler()
    euler.set_timesteps(sigmas=sigmas[:-1].tolist())
    x = start()
    for sigma, t in zip(euler.sigmas, euler.timesteps, strict=False):
        velocity = (x - mixture(x, sigma, 1 - sigma)) / sigma
        x = euler.step(velocity, t, x).prev_sample
    torch.testing.assert_close(ours("Euler", start(), euler.sigmas, "flow"), x, rtol=1e-4, atol=1e-4)  # float32

    heun = FlowMatchHeunDiscreteScheduler()
    heun.set_timesteps(8)
    x = start()
    for sigma, t in zip(heun.sigmas, heun.timesteps, strict=False):
        velocity = (x - mixture(x, sigma, 1 - sigma)) / sigma
        x = heun.step(velocity, t, x).prev_sample
    levels = torch.cat([heun.sigmas[:1], heun.sigmas[1::2]])
    torch.testing.assert_close(ours("Heun", start(), levels, "flow"), x, rtol=1e-4, atol=1e-4)  # float32


@pytest.mark.parametrize("name", ["DPM++ 2M", "UniPC"])
def test_flow_multistep(name: str) -> None:
    """Between 0.97 and 0.001, since for diffusers' UniPC log(alpha / sigma) must be finite."""
    sigmas = plan_sigmas(find_sampler(name), "kl_optimal", 9, NoiseTable(FLOW.sigmas[:970]))
    flow = {"use_flow_sigmas": True, "prediction_type": "sample"}
    scheduler = {
        "DPM++ 2M": DPMSolverMultistepScheduler(**flow, lower_order_final=False, final_sigmas_type="sigma_min"),
        "UniPC": UniPCMultistepScheduler(**flow, solver_type="bh1", solver_order=3),
    }[name]
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas, x = sigmas, start()
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(mixture(x, sigmas[i], 1 - sigmas[i]), t, x).prev_sample
    torch.testing.assert_close(ours(name, start(), sigmas, "flow"), x, rtol=2e-4, atol=2e-4)  # float32 there
