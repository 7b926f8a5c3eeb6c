"""The noise of a generation: AUTOMATIC1111's numbers, image by image."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torchsde
from torch import Tensor

from disegno.diffusion.noise import ImageNoise, Variation, batch_seeds, start_latents
from disegno.diffusion.philox import nv_normals, philox
from disegno.diffusion.prediction import PREDICTIONS
from disegno.diffusion.schedules import Spacing, find_schedule, scaled_linear_table

pytestmark = pytest.mark.unit

VECTORS = Path(__file__).parent.parent / "golden" / "vectors"
SHAPE = (4, 6, 8)


def cases(name: str) -> list[dict]:
    return json.loads((VECTORS / f"{name}.json").read_text("utf-8"))["cases"]


def noise_of(case: dict) -> ImageNoise:
    size = (case.get("seed_resize_from_h", 0) // 8, case.get("seed_resize_from_w", 0) // 8)
    variation = Variation(
        strength=case.get("subseed_strength", 0.0),
        seed_size=size if all(size) else None,
        seed_delta=case.get("eta_noise_seed_delta", 0),
    )
    return ImageNoise(
        tuple(case["shape"]), case["seeds"], case.get("subseeds", ()), case["rng"].lower(), variation=variation
    )


def check(noise: Tensor, expected: dict, atol: float) -> None:
    flat = noise.flatten()
    assert noise.numel() == torch.Size(expected["shape"]).numel()
    if "values" in expected:
        torch.testing.assert_close(flat, torch.tensor(expected["values"]), rtol=0, atol=atol)
        return
    parts = {"first16": flat[:16], "last16": flat[-16:], "every_997": flat[::997]}
    for name, part in parts.items():
        torch.testing.assert_close(part, torch.tensor(expected[name]), rtol=0, atol=atol)
    assert float(flat.double().sum()) == pytest.approx(expected["sum"], abs=1e-2)


@pytest.mark.parametrize(("source", "atol"), [("CPU", 0.0), ("NV", 2e-6)])
def test_noise_is_a1111s(source: str, atol: float) -> None:
    """The CPU's is exact; NVIDIA's is worked out through sin and log, whose last bit may differ between machines."""
    chosen = [case for case in cases("rng") if case["rng"] == source]
    assert chosen
    for case in chosen:
        noise = noise_of(case)
        check(noise.start_noise(), case["first"], atol if not case.get("subseed_strength") else max(atol, 2e-6))
        for later in ("second", "third"):
            if later in case:
                check(noise.draw(), case[later], atol)


def test_batch_seeds_are_a1111s() -> None:
    for case in cases("batch_seeds"):
        num_images = case["batch_size"] * case["n_iter"]
        seeds = batch_seeds(case["seed"], case["subseed"], case["subseed_strength"], num_images)
        assert seeds == (case["all_seeds"], case["all_subseeds"])


def test_philox_gives_the_known_answers() -> None:
    """Random123's kat_vectors for philox4x32 10: all zeros, and the digits of pi."""
    none = torch.zeros(1, dtype=torch.int64)
    zeros = philox([none] * 4, none)
    assert [hex(int(word)) for word in zeros[:, 0]] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    counter = [torch.tensor([word]) for word in (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)]
    pi = philox(counter, torch.tensor([0x299F31D0 << 32 | 0xA4093822]))
    assert [hex(int(word)) for word in pi[:, 0]] == ["0xd16cfe09", "0x94fdcceb", "0x5001e420", "0x24126ea1"]


def test_normals_of_several_seeds_are_each_its_own() -> None:
    both = nv_normals([7, 2**64 - 1], SHAPE, 3)
    assert torch.equal(both, torch.cat([nv_normals([seed], SHAPE, 3) for seed in (7, 2**64 - 1)]))
    assert not torch.equal(both[0], nv_normals([7], SHAPE)[0])


def test_a_path_of_an_nvidia_cards_normals_is_a1111s(monkeypatch: pytest.MonkeyPatch) -> None:
    """A1111 lets torchsde draw by its own randn_local: of the source NV the first tensor of each interval's seed."""

    def randn_local(size: tuple[int, ...], dtype: torch.dtype, device: object, seed: int) -> torch.Tensor:
        return nv_normals([int(seed)], size)[0]

    monkeypatch.setattr("torchsde._brownian.brownian_interval._randn", randn_local)
    sigmas = find_schedule("exponential").sigmas(6, scaled_linear_table(), Spacing())
    low, high = float(sigmas[-2]), float(sigmas[0])
    noise = ImageNoise(SHAPE, (5, 2**63), source="nv", sigmas=sigmas)
    trees = [torchsde.BrownianTree(low, torch.zeros(SHAPE), high, entropy=seed, tol=1e-6) for seed in (5, 2**63)]
    middles = [(a * b).sqrt() for a, b in pairwise(sigmas[:-1])]
    asked = [*pairwise(sigmas[:-1]), *zip(sigmas, middles, strict=False), (sigmas[3], sigmas[1])]
    for a, b in asked:
        ends = sorted((round(max(float(a), round(low, 6)), 6), round(min(float(b), round(high, 6)), 6)))
        theirs = torch.stack([tree(*ends) for tree in trees]) * (1.0 if b > a else -1.0)
        # float32's rounding of values up to 10, over the root of a step of 0.04 and more
        torch.testing.assert_close(noise.between(a, b), theirs / (b - a).abs().sqrt(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("source", ["cpu", "nv"])
def test_an_image_does_not_depend_on_its_batch(source: str) -> None:
    sigmas = find_schedule("karras").sigmas(8, scaled_linear_table(), Spacing())
    batch = ImageNoise(SHAPE, (5, 6, 7), source=source, sigmas=sigmas)
    alone = ImageNoise(SHAPE, (6,), source=source, sigmas=sigmas)
    for _ in range(2):
        assert torch.equal(batch.start_noise()[1:2], alone.start_noise())
        assert torch.equal(batch.draw()[1:2], alone.draw())
        assert torch.equal(batch.between(sigmas[2], sigmas[3])[1:2], alone.between(sigmas[2], sigmas[3]))


def test_global_generators_are_left_alone() -> None:
    before = torch.random.get_rng_state()
    sigmas = find_schedule("karras").sigmas(8, scaled_linear_table(), Spacing())
    noise = ImageNoise(SHAPE, (1, 2), (3, 4), variation=Variation(0.3, (4, 4), 31337), sigmas=sigmas)
    noise.start_noise()
    noise.draw()
    noise.between(sigmas[0], sigmas[1])
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_path_adds_up() -> None:
    """The increments between a and c are those of a to b and b to c."""
    sigmas = torch.tensor([10.0, 6.0, 1.0])
    noise = ImageNoise((1, 32, 32), (1,), sigmas=sigmas)
    a, b, c = sigmas
    whole = noise.between(a, c) * 9**0.5
    parts = noise.between(a, b) * 4**0.5 + noise.between(b, c) * 5**0.5
    torch.testing.assert_close(
        whole, parts, rtol=1e-4, atol=1e-4
    )  # the tree is cut at 1e-6 of time, its square root is 1e-3
    assert float(whole.std()) == pytest.approx(3.0, rel=0.1)


def test_big_seeds_wrap_around() -> None:
    last = ImageNoise(SHAPE, (2**64 - 1,), variation=Variation(seed_delta=2))
    last.start_noise()
    first = ImageNoise(SHAPE, (1,))
    assert torch.equal(last.draw(), first.start_noise())


def test_after_the_last_seed_comes_the_first() -> None:
    assert batch_seeds(2**64 - 1, 2**64 - 2, 0.0, 3) == ([2**64 - 1, 0, 1], [2**64 - 2, 2**64 - 1, 0])


def test_what_sampling_starts_from() -> None:
    noise, latents = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0)
    sigma = torch.tensor(0.75)
    epsilon, flow = PREDICTIONS["epsilon"].alpha(sigma), PREDICTIONS["flow"].alpha(sigma)
    assert torch.equal(start_latents(noise, sigma, epsilon), noise * 0.75)
    assert torch.equal(start_latents(noise, sigma, epsilon, unit_variance=True), noise * 1.25)
    assert torch.equal(start_latents(noise, sigma, epsilon, latents), noise * 3.75)
    assert torch.equal(start_latents(noise, sigma, flow, latents), noise * 1.5)


def test_levels_that_are_nearer_than_the_trees_tolerance_have_noise_of_their_own() -> None:
    """A flow's plan of which the last thousandth is walked; the search for the one between had no end."""
    walked = torch.tensor([0.0010008, 0.0010004, 0.0010002, 0.001])
    planned = torch.cat([torch.tensor([1.0, 0.5]), walked, torch.zeros(1)])
    noise = ImageNoise((1, 64, 64), (1, 2), sigmas=planned, walked=walked)
    steps = [noise.between(a, b) for a, b in pairwise(walked)]
    for step in steps:
        assert abs(float(step.mean())) < 0.1 and abs(float(step.std()) - 1) < 0.1
    assert abs(float((steps[0] * steps[1]).mean())) < 0.1
    torch.testing.assert_close(
        steps[0] * (walked[0] - walked[1]).sqrt() + steps[1] * (walked[1] - walked[2]).sqrt(),
        noise.between(walked[0], walked[2]) * (walked[0] - walked[2]).sqrt(),
        atol=1e-6, rtol=1e-3,
    )  # fmt: skip
    usual = ImageNoise((1, 8, 8), (1,), sigmas=planned, walked=planned[:3])
    far = ImageNoise((1, 8, 8), (1,), sigmas=planned[:3])
    assert usual.digits == far.digits  # other levels of the plan change no picture
