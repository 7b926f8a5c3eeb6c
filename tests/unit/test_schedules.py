"""Noise levels: AUTOMATIC1111's numbers, and sense on flow tables."""

import json
from pathlib import Path

import pytest
import torch

from disegno.core.errors import RequestError, UnknownName
from disegno.diffusion.schedules import (
    SCHEDULES,
    NoiseTable,
    Spacing,
    find_schedule,
    plan_sigmas,
    scaled_linear_table,
    start_step,
    timesteps,
)
from disegno.samplers.catalogue import SAMPLERS, find_sampler

pytestmark = pytest.mark.unit

VECTORS = Path(__file__).parent.parent / "golden" / "vectors"
VP = scaled_linear_table()
FLOW = NoiseTable(torch.linspace(0.001, 1, 1000))
REL = 1e-5  # float32, made with another torch


def cases(name: str) -> list[dict]:
    return json.loads((VECTORS / f"{name}.json").read_text("utf-8"))["cases"]


def test_schedules_are_a1111s() -> None:
    for case in cases("sigmas"):
        spacing = Spacing(
            sigma_min=case.get("sigma_min"),
            sigma_max=case.get("sigma_max"),
            rho=case.get("rho"),
            beta_alpha=case.get("beta_dist_alpha", 0.6),
            beta_beta=case.get("beta_dist_beta", 0.6),
            sdxl=bool(case.get("sdxl")),
        )
        sigmas = find_schedule(case["scheduler"]).sigmas(case["steps"], VP, spacing)
        torch.testing.assert_close(sigmas, torch.tensor(case["sigmas"]), rtol=REL, atol=0)


def test_plans_are_a1111s() -> None:
    for case in cases("sampler_sigmas"):
        spec = find_sampler(case["sampler"])
        sigmas = plan_sigmas(spec, case["scheduler"], case["steps"], VP)
        torch.testing.assert_close(sigmas, torch.tensor(case["sigmas"]), rtol=REL, atol=0)
        assert spec.evals_per_step * case["steps"] == case["total_steps_for_prompt_schedule"]


def test_sigma_and_timestep_are_k_diffusions() -> None:
    for case in cases("sigma_t_mapping"):
        if "back" in case:
            sigma = VP.sigma_of(torch.tensor(case["t"]))
            assert float(sigma) == pytest.approx(case["sigma"], rel=REL)
            assert float(VP.t_of(sigma)) == pytest.approx(case["back"], abs=2e-3)  # float32 logarithms
        else:
            assert float(VP.t_of(torch.tensor(float(case["sigma"])))) == pytest.approx(case["t"], abs=2e-3)


def test_timesteps_are_a1111s() -> None:
    for case in cases("ddim_timesteps"):
        assert timesteps(case["steps"]).tolist() == case["timesteps"]


def test_image_to_image_starts_where_a1111_starts() -> None:
    karras = find_schedule("karras")
    for case in cases("img2img_steps"):
        exact = case["img2img_fix_steps"] or case["explicit_steps(hires)"]
        start = start_step(case["steps"], case["denoising_strength"], exact)
        assert (start.steps, start.num_steps - 1) == (case["scheduler_steps"], case["t_enc"])
        assert start.num_steps == case["model_calls(first order)"]
        if "karras_sigma_sched_len" in case:
            left = start.cut(karras.sigmas(start.steps, VP, Spacing()))
            assert len(left) == case["karras_sigma_sched_len"]
            assert float(left[0]) == pytest.approx(case["karras_sigma_sched_first"], rel=REL)


@pytest.mark.parametrize("share", [1e-9, 5e-324])
def test_a_share_of_next_to_nothing_plans_no_levels_without_end(share: float) -> None:
    start = start_step(20, share, exact_steps=True)
    assert (start.steps, start.num_steps) == (1_000_000, 20)
    assert find_schedule("karras").sigmas(start.steps, VP, Spacing()).diff()[start.first :].max() < 0


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
@pytest.mark.parametrize("table", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_descends_from_the_noise(name: str, table: NoiseTable, steps: int) -> None:
    sigmas = SCHEDULES[name].sigmas(steps, table, Spacing())
    assert sigmas.dtype == torch.float32
    assert sigmas.diff().max() < 0
    assert sigmas[-1] == (table.sigma_min if name == "kl_optimal" else 0)
    # A1111's quirks: DDIM starts one stride from the top, and a single step of Align Your Steps is VP's lowest
    if name != "ddim" and not (name.startswith("align") and steps == 1 and table is VP):
        assert float(sigmas[0]) == pytest.approx(float(table.sigma_max), rel=1e-4)


def test_turbo_takes_the_last_timesteps_of_equal_parts() -> None:
    sigmas = SCHEDULES["turbo"].sigmas(4, VP, Spacing())
    assert VP.t_of(sigmas[:-1]).round().tolist() == [999, 749, 499, 249]


def test_align_your_steps_are_the_published_values() -> None:
    eleven = SCHEDULES["align_your_steps_11"].sigmas(11, VP, Spacing())
    assert eleven[1:4].tolist() == pytest.approx([6.475, 3.861, 2.697])
    finer = SCHEDULES["align_your_steps_32"].sigmas(32, VP, Spacing(sdxl=True))
    assert finer[1:3].tolist() == pytest.approx([11.1491618, 8.50522127])


def test_a_sampler_has_its_own_levels_only_under_the_automatic_schedule() -> None:
    ddim = find_sampler("DDIM")
    assert plan_sigmas(ddim, "automatic", 10, VP).tolist() == VP.sigmas[timesteps(10)].flip(0).tolist()
    assert plan_sigmas(ddim, "karras", 10, VP)[-1] == 0
    unipc = plan_sigmas(find_sampler("UniPC"), None, 10, VP)
    assert VP.t_of(unipc).round().tolist() == pytest.approx(
        [999, 899, 799, 699, 599, 500, 400, 300, 200, 100, 0], abs=1
    )
    lcm = plan_sigmas(find_sampler("LCM"), None, 8, VP)
    torch.testing.assert_close(lcm[[0, -2, -1]], torch.tensor([VP.sigmas[999], VP.sigmas[19], 0.0]))


@pytest.mark.parametrize("spec", SAMPLERS, ids=lambda spec: spec.name)
def test_every_sampler_has_a_plan_on_a_short_table(spec: object) -> None:
    table = NoiseTable(torch.linspace(0.1, 5, 20))
    assert len(plan_sigmas(spec, None, 4, table)) >= 4  # pyright: ignore


def test_mistakes_are_named() -> None:
    with pytest.raises(UnknownName, match="karras"):
        find_schedule("karass")
    with pytest.raises(RequestError, match="at least 1"):
        plan_sigmas(find_sampler("Euler"), None, 0, VP)


@pytest.mark.parametrize("name", ["simple", "turbo"])
def test_no_level_is_repeated_however_many_there_are(name: str) -> None:
    table = scaled_linear_table()
    sigmas = find_schedule(name).sigmas(2500, table, Spacing())
    assert len(sigmas) == 2501 and sigmas[-1] == 0
    assert float(sigmas[0]) == pytest.approx(float(table.sigma_max)) and (sigmas[1:] < sigmas[:-1]).all()
