"""The step-level batch: requests at different steps, answered by one evaluation of the backbone.

Every run is a sampler coroutine waiting for an answer. One `step` of the batch collects the open questions, lets each
run's controls fold over its rows, evaluates the backbone once for all rows that can share an evaluation, and sends the
answers back. A run joins at any step (`add`) and leaves when its coroutine returns; the others do not notice.

A run on a large canvas is asked in windows: each is a call of its own, with controls of its own; their outputs are
averaged into one before guidance.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from disegno.backbones.base import Backbone
from disegno.controls.base import Control
from disegno.diffusion.call import Call, Row
from disegno.diffusion.denoiser import Guidance, denoised_pair
from disegno.diffusion.inpaint import Inpaint
from disegno.engine.sharing import Sharing, kind_of
from disegno.engine.tiles import Window, averaged
from disegno.samplers.base import Answer, Eval, Sampling

MAX_CELLS = 32 * 64 * 64  # latent cells of one evaluation, where it is of several calls: 16 guided pictures of 512 px


@dataclass(frozen=True)
class Texts:
    """The positive and the negative text states, one row each, (1 n d), and their names by content."""

    positive: Tensor
    negative: Tensor
    positive_key: str
    negative_key: str
    positive_pooled: Tensor | None = None  # 1 p
    negative_pooled: Tensor | None = None  # 1 p


@dataclass(frozen=True)
class View:
    """A part of the canvas that is asked about at once: all of it, or a window; and the controls that see it."""

    controls: tuple[Control, ...] = ()
    window: Window | None = None


@dataclass
class Run:
    """One request on its way: its coroutine, its open question, and what is needed to answer it.

    `sigmas`: the plan's noise levels, by which a question's share of the way is known. `latents` is set when it has
    ended. `inpaint`: what is held of a picture. `extra`: what the net is shown beside x, (1 e h w). `windows`: the
    parts that the canvas is drawn in, instead of all at once with `controls`.
    """

    sampling: Sampling
    texts: Texts
    guidance: Guidance
    sigmas: Tensor
    controls: tuple[Control, ...] = ()
    inpaint: Inpaint | None = None
    extra: Tensor | None = None
    windows: tuple[View, ...] = ()
    question: Eval | None = None
    latents: Tensor | None = None
    estimate: Tensor | None = None  # the last x0 estimate, for previews
    owner: str = ""  # runs of one owner always share their evaluations, those of several as the batch's `sharing` says
    evaluations: int = 0

    def start(self) -> None:
        """Run the coroutine to its first question."""
        self._resume(None)

    def answer(self, answer: Answer) -> None:
        """Send the answer and run to the next question, or to the end."""
        self.evaluations += 1
        self._resume(answer)

    def _resume(self, answer: Answer | None) -> None:
        try:
            self.question = next(self.sampling) if answer is None else self.sampling.send(answer)
        except StopIteration as end:
            self.question = None
            self.latents = self.inpaint.finish(end.value) if self.inpaint else end.value

    def step(self) -> int:
        """Return how many steps are done: how many of the plan's noise levels lie above the question's."""
        if self.question is None:
            return 0 if self.latents is None else len(self.sigmas) - 1
        above = (self.sigmas > self.question.sigma.cpu() * (1 + 1e-5)).sum().item()
        return min(int(above), len(self.sigmas) - 2)

    @property
    def progress(self) -> float:
        """The share of the steps that are done, in [0, 1)."""
        return self.step() / max(len(self.sigmas) - 1, 1)

    @property
    def views(self) -> tuple[View, ...]:
        """The parts that are asked about: one, or the windows."""
        return self.windows or (View(self.controls),)

    @torch.inference_mode()
    def finish(self) -> None:
        """End now: the picture is what the net believes it to be."""
        if self.question is not None:
            latents = self.question.x if self.estimate is None else self.estimate
            self.latents = self.inpaint.finish(latents) if self.inpaint else latents
            self.stop()

    def stop(self) -> None:
        """Stop asking; the coroutine is closed."""
        self.sampling.close()
        self.question = None


def _rows(run: Run, question: Eval) -> tuple[Row, ...]:
    """Return the rows of the prompt, then of the negative prompt, then of the negative prompt without the picture."""
    texts, images, progress = run.texts, range(question.x.shape[0]), run.progress
    rows = [Row(i, True, texts.positive_key, progress) for i in images]
    if needs_negative(run, question):
        rows += [Row(i, False, texts.negative_key, progress) for i in images]
    if run.guidance.weighs_image():
        rows += [Row(i, False, texts.negative_key, progress, is_shown=False) for i in images]
    return tuple(rows)


def needs_negative(run: Run, question: Eval) -> bool:
    """Return whether the negative prompt decides anything: guidance is on, or the sampler asks for it."""
    guidance = run.guidance
    return question.split or guidance.weighs_image() or bool((torch.as_tensor(guidance.cfg) != 1).any())


def _by_row(positive: Tensor, negative: Tensor, rows: tuple[Row, ...]) -> Tensor:
    """Return the state of each row's prompt, (r ...)."""
    return torch.cat([positive if row.positive else negative for row in rows])


def _extra(extra: Tensor | None, rows: tuple[Row, ...]) -> Tensor | None:
    """Return what each row is shown beside x, (r e h w); zeros where it is not shown the picture."""
    return None if extra is None else torch.cat([extra if row.is_shown else torch.zeros_like(extra) for row in rows])


def call_of(run: Run, backbone: Backbone, view: View | None = None) -> Call:
    """Return the run's question about a part of the canvas as a call, the part's controls folded over it.

    `view`: unset, all of the canvas.
    """
    question, view = run.question, view or View(run.controls)
    assert question is not None
    rows, texts = _rows(run, question), run.texts
    copies = len(rows) // question.x.shape[0]
    x, extra = backbone.prediction.scale(question.x, question.sigma), run.extra
    if view.window is not None:
        x, extra = view.window.cut(x), None if extra is None else view.window.cut(extra)
    pooled = None
    if texts.positive_pooled is not None and texts.negative_pooled is not None:
        pooled = _by_row(texts.positive_pooled, texts.negative_pooled, rows)
    call = Call(
        x=x.repeat(copies, 1, 1, 1),
        t=timestep(backbone, question.sigma).to(x.device).expand(len(rows)),
        tokens=_by_row(texts.positive, texts.negative, rows),
        rows=rows,
        net=backbone.evaluate,
        pooled=pooled,
        extra=_extra(extra, rows),
    )
    return reduce(lambda so_far, control: control(so_far), view.controls, call)


def timestep(backbone: Backbone, sigma: Tensor) -> Tensor:
    """Return the net's timestep for a noise level, (1,), float32."""
    return backbone.table.t_of(sigma.float().cpu()).reshape(1)


@dataclass(frozen=True)
class _Asked:
    """A call, and whose it is: the run's place in the batch, and the view's in the run."""

    run: int
    view: int
    call: Call

    @property
    def num_cells(self) -> int:
        return self.call.x[:, 0].numel()


def _groups(asked: Iterable[_Asked]) -> Iterator[list[_Asked]]:
    """Yield calls that can share an evaluation, as they come, at most MAX_CELLS together: `asked` may be lazy."""
    waiting: dict[Hashable, list[_Asked]] = {}
    for one in asked:
        group = waiting.setdefault(kind_of(one.call), [])
        if group and sum(other.num_cells for other in group) + one.num_cells > MAX_CELLS:
            yield list(group)
            group.clear()
        group.append(one)
    yield from waiting.values()


def _answer(run: Run, outs: list[Tensor], backbone: Backbone) -> None:
    """Send the run its answer. `outs`: the net's output for each of its views, (r c h w)."""
    question = run.question
    assert question is not None
    out = averaged(outs, [view.window for view in run.windows if view.window], question.x) if run.windows else outs[0]
    rows = _rows(run, question)
    pair = denoised_pair(question.x, question.sigma, out, rows, backbone.prediction, run.guidance)
    if run.inpaint is not None:
        pair = run.inpaint.hold(pair[0], run.progress), run.inpaint.hold(pair[1], run.progress)
    run.estimate = pair[0]
    run.answer(pair if question.split else pair[0])


@dataclass
class Batch:
    """Runs that are stepped together on one backbone."""

    backbone: Backbone
    runs: list[Run] = field(default_factory=list[Run])
    sharing: Sharing = field(default_factory=lambda: Sharing("always"))

    @torch.inference_mode()
    def add(self, run: Run) -> None:
        """Let a run join, at whatever step the others are."""
        run.start()
        self.runs.append(run)

    @torch.inference_mode()
    def step(self) -> list[Run]:
        """Answer every open question once. Returns the runs that have ended; they have left the batch."""
        outs = [dict[int, Tensor]() for _ in self.runs]
        for group in _groups(self._asking()):
            for asked, out in self._evaluated(group):
                outs[asked.run][asked.view] = out
        for run, answered in zip(self.runs, outs, strict=True):
            if run.question is not None:
                _answer(run, [answered[n] for n in range(len(answered))], self.backbone)
        ended = [run for run in self.runs if run.question is None]
        self.runs = [run for run in self.runs if run.question is not None]
        return ended

    def _evaluated(self, group: list[_Asked]) -> Iterator[tuple[_Asked, Tensor]]:
        """Yield each call of a group with the net's output for it, (r c h w)."""
        owners: dict[str, list[_Asked]] = {}
        for asked in group:
            owners.setdefault(self.runs[asked.run].owner, []).append(asked)
        parts = list(owners.values())
        outs = self.sharing.run([[asked.call for asked in part] for part in parts])
        for part, out in zip(parts, outs, strict=True):
            yield from zip(part, out.split([len(asked.call.rows) for asked in part]), strict=True)

    def _asking(self) -> Iterator[_Asked]:
        """Yield the open questions as calls, made when they are wanted: a window's residuals are freed after it."""
        for i, run in enumerate(self.runs):
            for n, view in enumerate(run.views if run.question is not None else ()):
                yield _Asked(i, n, call_of(run, self.backbone, view))
