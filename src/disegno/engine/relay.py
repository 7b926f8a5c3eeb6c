"""The refiner: from a share of the way on, another model answers what the sampler asks (A1111's Refiner).

A sampler never calls a model, so nothing of it changes: its run rests at an open question, and goes on with another
model's texts, controls and net.
"""

from dataclasses import dataclass, replace

import torch

from disegno.backbones.base import Backbone
from disegno.core.errors import RequestError
from disegno.core.request import FILELESS, ControlPass, ControlUnit, Refiner
from disegno.diffusion.schedules import NoiseTable
from disegno.engine.batch import Run
from disegno.engine.depth import check_depth
from disegno.engine.few_steps import for_another
from disegno.engine.guiding import check_guide, edits
from disegno.engine.phases import Job, Phase, acting, check_files, continued
from disegno.engine.runs import latents_of, sampler_of
from disegno.engine.seamless import require_edges


@dataclass(frozen=True)
class Relay:
    """Who takes over in a pass, and when. `job`: the generation with that model. `warnings`: about who takes over."""

    refiner: Refiner
    job: Job
    table: NoiseTable  # of the model that begins
    warnings: tuple[str, ...] = ()

    def rests(self, run: Run) -> bool:
        """Return whether the run's open question is the refiner's. A1111 parity: apply_refiner."""
        return self.is_done(run.progress, None if run.question is None else run.question.sigma)

    def is_done(self, steps: float, sigma: torch.Tensor | None) -> bool:
        """Return whether the first model's share is done: of the steps, or of the levels above `sigma`."""
        if self.refiner.share == "steps" or not sigma:
            return steps >= self.refiner.at
        levels = self.table.sigmas
        last, nearest = len(levels) - 1, int((levels - sigma.float().cpu()).abs().argmin())
        return (last - nearest) / len(levels) >= self.refiner.at

    def given(self, phase: Phase) -> Phase:
        """Return the phase with its runs told where to rest, and its steps up to there."""
        sigmas = phase.runs[0].sigmas[:-1]
        first = (n for n, sigma in enumerate(sigmas) if self.is_done(n / len(sigmas), sigma))
        runs = tuple(replace(run, rests=self.rests) for run in phase.runs)
        return replace(phase, runs=runs, num_steps=next(first, len(sigmas)))

    def taken(self, phase: Phase) -> Phase | None:
        """Return the phase that goes on with the runs that rest; None where none does."""
        if not any(run.resting for run in phase.runs):
            return None
        left = continued(phase, self.job)
        return replace(left, warnings=(*left.warnings, *self.warnings))


def open_relay(job: Job, which: ControlPass) -> Relay | None:
    """Return what takes over in a pass of a concrete request, its model open; None: the first model draws to the end.

    Raises DisegnoError where the two do not go together.
    """
    refiner, hires = job.request.refiner, job.request.hires
    of_one_pass = hires is None or not hires.denoise
    if refiner is None or refiner.at == 1 or not (of_one_pass or refiner.passes in ("both", which)):
        return None
    studio, request = job.studio, job.request
    if studio.find_model(refiner.model) == studio.find_model(request.model):
        return None
    backbone = studio.backbone(refiner.model, vae=request.vae)
    _check(job.backbone, backbone)
    check_depth(request, backbone)
    require_edges(request, backbone)
    check_guide(request, backbone)
    sampler_of(request, backbone)
    drawn, worded = for_another(job.backbone, backbone, replace(request, model=refiner.model), job.worded)
    taking = replace(job, request=drawn, backbone=backbone, worded=worded)
    unfit = _unfit(job, backbone, which)
    taking = replace(taking, idle=frozenset(unfit))
    check_files(taking, which)
    said = tuple(
        f"The control {unit.name} acts until {backbone.name} takes over, whose net has other sizes than that of"
        f" {job.backbone.name}."
        for unit in unfit.values()
        if unit.end > refiner.at
    )
    return Relay(refiner, taking, job.backbone.table, said)


def _unfit(job: Job, second: Backbone, which: ControlPass) -> dict[int, ControlUnit]:
    """Return the controls of files, by their places, where a net of other sizes takes over, as SDXL's refiner's."""
    if _sizes(job.backbone) == _sizes(second):
        return {}
    return {place: unit for place, unit in acting(job, which) if unit.name not in FILELESS}


def _sizes(backbone: Backbone) -> tuple[tuple[object, ...], object]:
    """Return what a control must fit: the widths of the levels, and of the text."""
    config = getattr(backbone.net, "config", {})
    return tuple(config.get("block_out_channels", ())), config.get("cross_attention_dim")


def _check(first: Backbone, second: Backbone) -> None:
    """Raise RequestError where a model cannot go on with another one's latents."""
    if edits(first) != edits(second):
        raise RequestError(
            f"Only one of {first.name} and {second.name} edits a picture by instruction, so one cannot go on with what"
            " the other began. Choose another refiner."
        )
    if latents_of(first) != latents_of(second) or first.table.is_flow != second.table.is_flow:
        raise RequestError(
            f"{second.name} has other latents or noise levels than {first.name}, so it cannot go on with what that one"
            " began. Choose a refiner of the same family, or draw over the picture with it: --hires 1 --hires-model"
            f" {second.name} --hires-upscaler Lanczos."
        )
