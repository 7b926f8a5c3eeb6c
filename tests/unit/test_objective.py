"""What a denoiser is taught with: every row from its own seed, every weight from the x0 loss that it stands for."""

import pytest
import torch
from torch import Tensor

from disegno.core.teach import TimeDraw
from disegno.diffusion.objective import Draws, Objective, losses
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import NoiseTable, scaled_linear_table

pytestmark = pytest.mark.unit

SHAPE = (4, 8, 8)
FLOW = NoiseTable(torch.arange(1, 1001) / 1000)
TABLES = {"epsilon": scaled_linear_table(), "v": scaled_linear_table(), "flow": FLOW}
SEEDS = tuple(range(100, 108))


def objective(name: str = "epsilon", **fields: object) -> Objective:
    return Objective(PREDICTIONS[name], TABLES[name], **fields)  # pyright: ignore[reportArgumentType]


def latents(num: int = len(SEEDS)) -> Tensor:
    return torch.randn(num, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_a_row_depends_on_its_own_seed_only() -> None:
    together = objective(offset_noise=0.1, caption_dropout=0.5).draw(SEEDS, SHAPE)
    for i, seed in enumerate(SEEDS):
        alone = objective(offset_noise=0.1, caption_dropout=0.5).draw((seed,), SHAPE)
        assert torch.equal(alone.noise[0], together.noise[i])
        assert alone.level[0] == together.level[i] and alone.drops[0] == together.drops[i]
    assert len({int(level) for level in together.level}) > 1 and not torch.equal(together.noise[0], together.noise[1])


def test_an_option_does_not_change_the_other_draws() -> None:
    plain = objective().draw(SEEDS, SHAPE)
    for other in (objective(offset_noise=0.2), objective(caption_dropout=1.0), objective(min_snr=5.0)):
        drawn = other.draw(SEEDS, SHAPE)
        assert torch.equal(drawn.level, plain.level)
        difference = drawn.noise - plain.noise
        torch.testing.assert_close(difference, difference[:, :, :1, :1].expand_as(difference))  # one number a channel
    assert not plain.drops.any() and objective(caption_dropout=1.0).draw(SEEDS, SHAPE).drops.all()


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    objective(timesteps="logit-normal").draw(SEEDS, SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("timesteps", "mean", "share_of_last_tenth"),
    [
        ("uniform", 500, 0.1),
        ("high-noise", 500 + 1000 / 12, 0.5 * 0.1 + 0.5 * (1 - 0.9**2)),  # half of the rows: the larger of two
        ("logit-normal", 500, 0.014),  # P(N > logit 0.9) = P(N > 2.197)
    ],
)
def test_noise_levels_are_drawn_as_they_should(timesteps: TimeDraw, mean: float, share_of_last_tenth: float) -> None:
    num = 4000
    level = objective(timesteps=timesteps).draw(range(num), (1, 1, 1)).level.double()
    assert level.min() >= 0 and level.max() <= 999
    assert abs(level.mean() - mean) < 4 * 289 / num**0.5
    assert abs((level >= 900).double().mean() - share_of_last_tenth) < 0.02


def test_auto_is_uniform_but_logit_normal_for_flow() -> None:
    for name, drawn in (("epsilon", "uniform"), ("v", "uniform"), ("flow", "logit-normal")):
        auto, told = (objective(name, timesteps=how).draw(SEEDS, SHAPE) for how in ("auto", drawn))
        assert torch.equal(auto.level, told.level)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_net_that_says_the_target_has_no_loss_and_finds_x0(name: str) -> None:
    own, x0 = objective(name), latents()
    draws = own.draw(SEEDS, SHAPE)
    noised = own.noised(x0, draws)
    assert torch.equal(losses(noised.target, noised), torch.zeros(len(SEEDS)))
    sigma = own.table.sigmas[draws.level]
    x = noised.x * (sigma.view(-1, 1, 1, 1) ** 2 + 1).sqrt() if name != "flow" else noised.x
    found = own.prediction.denoise(x, sigma, noised.target)
    torch.testing.assert_close(found, x0, atol=2e-4, rtol=1e-4)
    assert torch.equal(noised.t, 1000 * sigma if name == "flow" else draws.level.float())


@pytest.mark.parametrize("name", PREDICTIONS)
def test_min_snr_weighs_the_x0_loss(name: str) -> None:
    """Hang et al. 2023: whatever the net says, the loss is min(SNR, gamma) times that of its x0 estimate."""
    gamma = 5.0
    own, x0 = objective(name, min_snr=gamma), latents()
    draws = own.draw(SEEDS, SHAPE)
    noised = own.noised(x0, draws)
    sigma = own.table.sigmas[draws.level].double()
    x = noised.x.double()
    x = x * (sigma.view(-1, 1, 1, 1) ** 2 + 1).sqrt() if name != "flow" else x
    out = noised.target.double() + torch.randn(noised.x.shape, dtype=torch.double) * 0.1
    x0_loss = (own.prediction.denoise(x, sigma, out) - x0.double()).square().flatten(1).mean(1)
    snr = (own.prediction.alpha(sigma) / sigma) ** 2
    expected = snr.clamp(max=gamma) * x0_loss
    torch.testing.assert_close(losses(out, noised).double(), expected, rtol=1e-3, atol=1e-7)


def test_a_loss_is_the_mean_square_of_its_row() -> None:
    own, x0 = objective(), latents(2)
    draws = Draws(torch.tensor([0, 999]), torch.ones_like(x0), torch.zeros(2, dtype=torch.bool))
    noised = own.noised(x0, draws)
    out = noised.target + torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(losses(out.bfloat16(), noised), torch.tensor([1.0, 9.0]))
    abar = own.table.alphas_cumprod[draws.level].view(-1, 1, 1, 1)
    torch.testing.assert_close(noised.x, abar.sqrt() * x0 + (1 - abar).sqrt() * draws.noise, atol=1e-6, rtol=1e-5)
