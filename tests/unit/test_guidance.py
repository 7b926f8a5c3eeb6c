"""Guidance, and the way from a net's rows to a sampler's answer."""

from dataclasses import replace

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
from torch import Tensor

from disegno.core.errors import RequestError
from disegno.core.request import Request, make_request
from disegno.diffusion.call import Row, Weakness
from disegno.diffusion.denoiser import Away, Guidance, denoised, denoised_pair, estimates, split_rows
from disegno.diffusion.guidance import Projection, fit, guide, rescale
from disegno.diffusion.prediction import PREDICTIONS
from kit.apple import Apple

pytestmark = pytest.mark.unit


def row(image: int, positive: bool) -> Row:
    return Row(image, positive, text=f"{image}{positive}", progress=0.0)


ROWS = (row(0, True), row(1, True), row(0, False), row(1, False))


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_guide() -> None:
    positive, negative = some(2, 3, 4, 4), some(2, 3, 4, 4, seed=1)
    assert torch.equal(guide(positive, negative, 0.0), negative)
    torch.testing.assert_close(guide(positive, negative, 1.0), positive)
    each = guide(positive, negative, torch.tensor([2.0, 5.0]))
    torch.testing.assert_close(each[1:], guide(positive, negative, 5.0)[1:])


def test_rescale_puts_the_contrast_back() -> None:
    positive, negative = some(2, 3, 4, 4), some(2, 3, 4, 4, seed=1)
    guided = guide(positive, negative, 7.0)
    full = rescale(guided, positive, 1.0)
    torch.testing.assert_close(full.std(dim=(1, 2, 3)), positive.std(dim=(1, 2, 3)))
    torch.testing.assert_close(rescale(guided, positive, 0.25), 0.25 * full + 0.75 * guided)
    assert torch.equal(rescale(guided, positive, 0.0), guided)
    some_only = rescale(guided, positive, torch.tensor([0.0, 1.0]))
    assert torch.equal(some_only[0], guided[0])
    torch.testing.assert_close(some_only[1], full[1])


def test_rows_find_their_images_in_any_order() -> None:
    out = some(4, 1, 2, 2)
    positive, negative = split_rows(out, (ROWS[3], ROWS[0], ROWS[1], ROWS[2]), 2)
    assert torch.equal(positive, out[[1, 2]])
    assert torch.equal(negative, out[[3, 0]])


def test_an_image_without_a_negative_row_is_its_own() -> None:
    out = some(3, 1, 2, 2)
    positive, negative = split_rows(out, (ROWS[0], ROWS[1], ROWS[3]), 2)
    assert torch.equal(positive, out[[0, 1]])
    assert torch.equal(negative, out[[0, 2]])


def test_the_first_of_several_parts_stands_for_a_negative_row_that_is_not_there() -> None:
    """A1111 parity: its fake_uncond."""
    out = some(2, 1, 2, 2)
    parts = replace(ROWS[0], weight=0.5), replace(ROWS[0], weight=2.0)
    positive, negative = split_rows(out, parts, 1)
    assert torch.equal(negative[0], out[0])
    torch.testing.assert_close(positive[0], out[0] + 2.0 * (out[1] - out[0]))


def test_parts_are_composed_without_guidance_where_it_pauses() -> None:
    """A1111 parity: combine_denoised with a cond_scale of 1."""
    x, out, prediction = some(1, 1, 2, 2), some(2, 1, 2, 2, seed=1), PREDICTIONS["epsilon"]
    parts = replace(ROWS[0], weight=0.5), replace(ROWS[0], weight=2.0)
    x0 = denoised(x, torch.tensor(0.5), out, parts, prediction, Guidance(7.0, start=1.0))
    expected = out[:1] + 2.0 * (out[1:] - out[:1])
    torch.testing.assert_close(x0, prediction.denoise(x, torch.tensor(0.5), expected))


def test_guidance_pauses_early_and_at_low_noise() -> None:
    """A1111 parity: CFGDenoiser.forward's skip_uncond."""
    assert not any(Guidance(7.0).pauses(sigma, 0.0, 1) for sigma in (0.0, 14.0))
    early = Guidance(7.0, start=0.25)
    assert [early.pauses(9.0, n / 8, n) for n in range(8)] == [True] * 3 + [False] * 5
    late = Guidance(7.0, lowest=3.0)
    assert [late.pauses(5.0 - n, n / 6, n) for n in range(6)] == [False, False, False, True, False, True]
    assert [replace(late, lowest_all=True).pauses(5.0 - n, n / 6, n) for n in range(6)] == [False] * 3 + [True] * 3
    assert not replace(late, lowest_all=True, image_cfg=1.5).pauses(0.1, 0.9, 1)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_answer_is_guided_x0(name: str) -> None:
    """Guiding outputs and guiding estimates is the same, in one batch of two requests at two noise levels."""
    prediction, sigma = PREDICTIONS[name], torch.tensor([0.9, 0.2])
    x, out, cfg = some(2, 3, 4, 4), some(4, 3, 4, 4, seed=1), torch.tensor([7.0, 1.5])
    x0, negative = denoised_pair(x, sigma, out, ROWS, prediction, Guidance(cfg))
    estimates = [prediction.denoise(x, sigma, half) for half in out.split(2)]
    torch.testing.assert_close(x0, guide(estimates[0], estimates[1], cfg), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(negative, estimates[1])
    assert torch.equal(denoised(x, sigma, out, ROWS, prediction, Guidance(cfg)), x0)


def test_the_answer_is_float32_and_each_request_its_own() -> None:
    prediction, sigma = PREDICTIONS["v"], torch.tensor([0.9, 0.2])
    x, out = some(2, 3, 4, 4).bfloat16(), some(4, 3, 4, 4, seed=1).bfloat16()
    guidance = Guidance(torch.tensor([7.0, 3.0]), torch.tensor([0.7, 0.0]))
    both = denoised(x, sigma, out, ROWS, prediction, guidance)
    assert both.dtype == torch.float32
    own = denoised(
        x[1:], sigma[1:], out[[1, 3]], (row(0, True), row(0, False)), prediction, Guidance(torch.tensor([3.0]))
    )
    assert torch.equal(both[1:], own)


@pytest.mark.parametrize(("norm", "momentum", "parallel"), [(15.0, -0.5, 0.0), (2.0, 0.0, 0.0), (0.0, -0.75, 0.4)])
def test_projected_guidance_is_diffusers_and_the_papers(norm: float, momentum: float, parallel: float) -> None:
    guidance = Guidance(7.0, projection=Projection(norm, momentum, parallel))
    theirs, running = MomentumBuffer(momentum), None
    sigma, prediction = torch.tensor(1.5), PREDICTIONS["v"]
    for step in range(3):
        x, out = some(2, 4, 8, 8, seed=step), some(4, 4, 8, 8, seed=10 + step)
        made = estimates(x, sigma, out, ROWS, prediction, guidance, running)
        running = made.running
        positive, negative = (prediction.denoise(x, sigma, part) for part in (out[:2], out[2:]))
        # the paper's form, whose weight is counted from the prompt's own estimate
        wanted = normalized_guidance(positive, negative, 6.0, theirs, parallel, norm, use_original_formulation=True)
        torch.testing.assert_close(made.guided, wanted)
        torch.testing.assert_close(made.negative, negative)


def test_projected_guidance_needs_no_float64() -> None:
    positive, negative = some(2, 4, 8, 8), some(2, 4, 8, 8, seed=1)
    made = Projection().guide(positive.as_subclass(Apple), negative.as_subclass(Apple), 7.0, None).estimate
    torch.testing.assert_close(made.as_subclass(Tensor), Projection().guide(positive, negative, 7.0, None).estimate)


def test_all_of_the_difference_is_plain_guidance() -> None:
    x, out, sigma, prediction = some(2, 4, 8, 8), some(4, 4, 8, 8, seed=1), torch.tensor(0.7), PREDICTIONS["epsilon"]
    whole = Guidance(5.0, projection=Projection(norm=0.0, momentum=0.0, parallel=1.0))
    plain = denoised(x, sigma, out, ROWS, prediction, Guidance(5.0))
    torch.testing.assert_close(denoised(x, sigma, out, ROWS, prediction, whole), plain)
    positive = (ROWS[0], ROWS[1])  # nothing is guided without a negative prompt's rows, and the running mean stays
    made = estimates(x, sigma, out[:2], positive, prediction, whole, before=x)
    assert torch.equal(made.guided, prediction.denoise(x, sigma, out[:2])) and made.running is x


def test_a_negative_velocity_that_fits_is_diffusers() -> None:
    positive, negative = some(2, 4, 8, 8), some(2, 4, 8, 8, seed=1)
    scale = cfg_zero_star_scale(positive.flatten(1), negative.flatten(1)).reshape(2, 1, 1, 1)
    torch.testing.assert_close(fit(negative, positive), scale * negative)
    torch.testing.assert_close(fit(0.5 * positive, positive), positive)
    assert not fit(torch.zeros_like(negative), positive).any()


def test_away_from_what_a_weakened_net_says() -> None:
    weak, other = Weakness(attention=True), Weakness(without=(7, 8, 9))
    rows = (
        *ROWS,
        *(replace(one, weakness=weak) for one in ROWS[:2]),
        *(replace(one, weakness=other) for one in ROWS[:2]),
    )
    x, out, sigma, prediction = some(2, 4, 8, 8), some(8, 4, 8, 8, seed=1), torch.tensor(0.7), PREDICTIONS["flow"]
    guidance = Guidance(4.0, away=(Away(weak, 3.0), Away(other, 2.0, 0.1, 0.5)))
    guided = guide(out[:2], out[2:4], 4.0) + 3 * (out[:2] - out[4:6]) + 2 * (out[:2] - out[6:])
    made = denoised(x, sigma, out, rows, prediction, guidance)
    torch.testing.assert_close(made, prediction.denoise(x, sigma, guided))
    assert guidance.weaknesses(0.0) == [weak] == guidance.weaknesses(0.5) and guidance.weaknesses(0.3) == [weak, other]
    alone = (rows[0], rows[1], rows[4], rows[5])  # without a negative prompt's rows
    made = denoised(x, sigma, out[:4], alone, prediction, guidance)
    torch.testing.assert_close(made, prediction.denoise(x, sigma, out[:2] + 3 * (out[:2] - out[2:4])))


def test_the_parts_of_a_weakened_prompt_come_together_as_the_prompts_own() -> None:
    weak = Weakness(attention=True)
    parts = (row(0, True), replace(row(0, True), weight=0.5), row(0, False))
    rows = (*parts, *(replace(one, weakness=weak) for one in parts[:2]))
    x, out, sigma, prediction = some(1, 4, 8, 8), some(5, 4, 8, 8, seed=1), torch.tensor(0.7), PREDICTIONS["flow"]
    base, pairs = out[2:3], ((out[:1], out[1:2]), (out[3:4], out[4:]))
    strong, poor = (base + (a - base) + 0.5 * (b - base) for a, b in pairs)
    made = denoised(x, sigma, out, rows, prediction, Guidance(4.0, away=(Away(weak, 3.0),)))
    wanted = guide(strong, base, 4.0) + 3 * (strong - poor)
    torch.testing.assert_close(made, prediction.denoise(x, sigma, wanted))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"guide": {"apg": True, "zero_star": True}}, "choose one"),
        ({"guide": {"zero_steps": 1}}, "belongs to zero_star"),
        ({"guide": {"pag": 1.0, "pag_start": 0.5, "pag_end": 0.5}}, "pag_start must lie before pag_end"),
        ({"guide": {"slg": 1.0, "slg_layers": ()}}, "say which"),
        ({"guide": {"apg": True}, "cfg_rescale": 0.5}, "both take back contrast"),
        ({"guide": {"pag": -1.0}}, "greater than or equal to 0"),
    ],
)
def test_guidance_that_makes_no_sense_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        make_request(fields)
    assert Request().guide is None
