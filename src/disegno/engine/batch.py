"""The step-level batch: requests at different steps, answered by one evaluation of the backbone.

Every run is a sampler coroutine waiting for an answer. One `step` of the batch collects the open questions, lets each
run's controls fold over its rows, evaluates the backbone once for all rows that can share an evaluation, and sends the
answers back. A run joins at any step (`add`) and leaves when its coroutine returns; the others do not notice.

A run on a large canvas is asked in windows: each is a call of its own, with controls of its own; their outputs are
averaged into one before guidance.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from disegno.backbones.base import Backbone
from disegno.controls.base import Control
from disegno.core.freeu import FreeU
from disegno.diffusion.call import Call, Row, Where
from disegno.diffusion.denoiser import Guidance, estimates
from disegno.diffusion.inpaint import Inpaint
from disegno.diffusion.told import USUAL, Told
from disegno.engine.guiding import joins_of
from disegno.engine.seamless import going_round
from disegno.engine.sharing import Sharing, kind_of
from disegno.engine.texts import TextRow, Texts, by_length
from disegno.engine.tiles import Window, averaged
from disegno.loras.apply import NO_LORAS, Loras
from disegno.samplers.base import Answer, Eval, Sampling

MAX_CELLS = 32 * 64 * 64  # latent cells of one evaluation, unless one row has more: 16 guided pictures of 512 px


@dataclass(frozen=True)
class View:
    """A part of the canvas that is asked about at once: all of it, or a window; and the controls that see it."""

    controls: tuple[Control, ...] = ()
    window: Window | None = None


@dataclass
class Run:
    """One request on its way: its coroutine, its open question, and what is needed to answer it.

    `sigmas`: the plan's noise levels, by which a question's share of the way is known. `latents` is set when it has
    ended. `images`: which of the batch's these are, with their `seeds`. `told`: what SDXL is told of them beside their
    size. `inpaint`: what is held of a picture. `extra`: what the net is shown beside x, (1 e h w). `windows`: the parts
    that the canvas is drawn in, instead of all at once with `controls`. `loras`: on the net while it is asked.
    `seamless`: whether the canvas has no edges. `freeu`: how a UNet's skip connections are weighed. `rests`: says of
    its open question whether that is another model's (`engine.relay`); then it is `resting`. `stopped`: it was to end
    as it stood.
    """

    sampling: Sampling
    texts: Texts
    guidance: Guidance
    sigmas: Tensor
    controls: tuple[Control, ...] = ()
    inpaint: Inpaint | None = None
    extra: Tensor | None = None
    windows: tuple[View, ...] = ()
    loras: Loras = NO_LORAS
    seamless: bool = False
    freeu: FreeU | None = None
    images: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    told: Told = USUAL
    question: Eval | None = None
    latents: Tensor | None = None
    estimate: Tensor | None = None  # the last x0 estimate, for previews
    running: Tensor | None = None  # what its guidance keeps of the evaluations before
    owner: str = ""  # runs of one owner always share their evaluations, those of several as the batch's `sharing` says
    evaluations: int = 0
    rests: "Callable[[Run], bool] | None" = None
    resting: bool = False
    stopped: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it waits for an answer of this model."""
        return self.question is not None and not self.resting

    def start(self) -> None:
        """Run the coroutine to its first question; one that is on its way already goes on from where it is."""
        if self.question is None and self.latents is None:
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
        self.resting = self.question is not None and self.rests is not None and self.rests(self)

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
        self.stopped = True
        if self.question is not None:
            latents = self.question.x if self.estimate is None else self.estimate
            self.latents = self.inpaint.finish(latents) if self.inpaint else latents
            self.stop()

    def stop(self) -> None:
        """Stop asking; the coroutine is closed."""
        self.sampling.close()
        self.question = None


def _rows(run: Run, question: Eval) -> list[TextRow]:
    """Return the rows of the prompt, then of the negative prompt, then of the negative prompt without the picture.

    Behind them the prompt's again, once for each way in which the net is weakened.
    """
    assert len(run.texts.images) == len(question.x), "each image has its texts"
    blind = run.guidance.weighs_image()
    rows = run.texts.rows(run.evaluations, run.progress, needs_negative(run, question), with_blind=blind)
    seeds = run.seeds or (0,) * len(run.texts.images)
    joins = joins_of(run.freeu, run.progress)
    rows += [
        replace(one, row=replace(one.row, weakness=weakness))
        for weakness in run.guidance.weaknesses(run.progress)
        for one in rows
        if one.row.positive
    ]
    return [
        replace(one, row=replace(one.row, seed=seeds[one.row.image], told=run.told, joins=joins), place=place)
        for place, one in enumerate(rows)
    ]


def _reaching(rows: Sequence[TextRow], window: Window | None) -> Sequence[TextRow]:
    """Return the rows whose texts hold somewhere in a window."""
    if window is None or all(one.row.where is None for one in rows):
        return rows
    reaching = dict[Where | None, bool]()
    for where in {one.row.where for one in rows}:
        reaching[where] = where is None or bool((window.cut(where.share) > 0).any())
    return [one for one in rows if reaching[one.row.where]]


def needs_negative(run: Run, question: Eval) -> bool:
    """Return whether the negative prompt decides anything: guidance is on, parts are mixed, or the sampler asks."""
    guidance = run.guidance
    # asked only where it can be: to read a number waits for the device
    if guidance.may_pause() and guidance.pauses(float(question.sigma), run.progress, run.evaluations):
        return False
    asks = question.split or guidance.weighs_image() or run.texts.composes()
    return asks or bool((torch.as_tensor(guidance.cfg) != 1).any())


def _extra(extra: Tensor | None, rows: Sequence[TextRow]) -> Tensor | None:
    """Return what each row is shown beside x, (r e h w); zeros where it is not shown the picture."""
    if extra is None:
        return None
    return torch.cat([extra if row.row.is_shown else torch.zeros_like(extra) for row in rows])


@dataclass(frozen=True)
class Posed:
    """A call, the LoRAs that are on the net for it, and which of the question's rows it has."""

    call: Call
    loras: Loras
    places: tuple[int, ...]


def calls_of(run: Run, backbone: Backbone, view: View | None = None) -> Iterator[Posed]:
    """Yield the run's question about a part of the canvas as calls, the part's controls folded over each.

    One call for each length of text and each set of LoRAs among its rows, and for each MAX_CELLS; of texts that hold
    nowhere in the part, none. Each is made when it is wanted, so that not all residuals are there at once. `view`:
    unset, all of the canvas.
    """
    question, view = run.question, view or View(run.controls)
    assert question is not None
    x, extra = backbone.prediction.scale(question.x, question.sigma), run.extra
    if view.window is not None:
        x, extra = view.window.cut(x), None if extra is None else view.window.cut(extra)
    t = timestep(backbone, question.sigma).to(x.device)
    most = max(1, MAX_CELLS // x[0, 0].numel())
    asked = by_length(_reaching(_rows(run, question), view.window))
    for rows in (some[i : i + most] for some in asked for i in range(0, len(some), most)):
        loras = rows[0].loras or run.loras
        call = _controlled(_call(rows, x, t, extra, backbone), view.controls, loras)
        yield Posed(call, loras, tuple(row.place for row in rows))


def _controlled(call: Call, controls: Sequence[Control], loras: Loras) -> Call:
    """Return the call with the controls folded over it, under its LoRAs: a Control-LoRA reads the net's weights."""
    if not controls:
        return call
    with loras.on("unet"):
        return reduce(lambda so_far, control: control(so_far), controls, call)


def _call(rows: list[TextRow], x: Tensor, t: Tensor, extra: Tensor | None, backbone: Backbone) -> Call:
    pooled = [row.states.pooled for row in rows if row.states.pooled is not None]
    return Call(
        x=x.index_select(0, torch.tensor([row.row.image for row in rows], device=x.device)),
        t=t.expand(len(rows)),
        tokens=torch.cat([row.states.tokens for row in rows]),
        rows=tuple(row.row for row in rows),
        net=backbone.evaluate,
        pooled=torch.cat(pooled) if pooled else None,
        extra=_extra(extra, rows),
    )


def timestep(backbone: Backbone, sigma: Tensor) -> Tensor:
    """Return the net's timestep for a noise level, (1,), float32."""
    return backbone.table.net_t(sigma.float().cpu()).reshape(1)


@dataclass(frozen=True)
class _Asked:
    """A call, and whose it is: the run's place in the batch, the view's in the run, the rows' in the question."""

    run: int
    view: int
    call: Call
    loras: Loras
    places: tuple[int, ...]
    seamless: bool = False

    @property
    def num_cells(self) -> int:
        return self.call.x[:, 0].numel()


def _groups(asked: Iterable[_Asked]) -> Iterator[list[_Asked]]:
    """Yield calls that can share an evaluation, as they come, at most MAX_CELLS together: `asked` may be lazy."""
    waiting: dict[Hashable, list[_Asked]] = {}
    for one in asked:
        group = waiting.setdefault((kind_of(one.call), one.loras.key, one.seamless), [])
        if group and sum(other.num_cells for other in group) + one.num_cells > MAX_CELLS:
            yield list(group)
            group.clear()
        group.append(one)
    yield from waiting.values()


@dataclass(frozen=True)
class _Told:
    """Some of a question's rows, which of them these are, and the net's outputs, (r c h w)."""

    places: tuple[int, ...]
    rows: tuple[Row, ...]
    out: Tensor


@dataclass
class _Answered:
    """What the net said to a run so far, of each view."""

    views: dict[int, list[_Told]] = field(default_factory=dict[int, list[_Told]])

    def take(self, asked: _Asked, out: Tensor) -> None:
        self.views.setdefault(asked.view, []).append(_Told(asked.places, asked.call.rows, out))

    def rows(self) -> list[Row]:
        """Return the question's rows."""
        every = [told for parts in self.views.values() for told in parts]
        rows = {place: row for told in every for place, row in zip(told.places, told.rows, strict=True)}
        return [rows[place] for place in sorted(rows)]

    def outs(self, num: int) -> list[Tensor]:
        """Return each view's output, (r c h w), of the question's `num` rows; 0 where one was not asked."""
        return [_in_order(parts, num) for _, parts in sorted(self.views.items())]


def _in_order(parts: Sequence[_Told], num: int) -> Tensor:
    places, out = [place for told in parts for place in told.places], torch.cat([told.out for told in parts])
    if places == [*range(num)]:
        return out
    whole = out.new_zeros((num, *out.shape[1:]))
    return whole.index_copy_(0, torch.tensor(places, device=out.device), out)


def _answer(run: Run, answered: _Answered, backbone: Backbone) -> None:
    """Send the run its answer."""
    question, rows = run.question, answered.rows()
    assert question is not None
    outs = answered.outs(len(rows))
    out = averaged(outs, [view.window for view in run.windows if view.window], question.x) if run.windows else outs[0]
    if run.step() < run.guidance.still:
        out = torch.zeros_like(out)
    made = estimates(question.x, question.sigma, out, rows, backbone.prediction, run.guidance, run.running)
    run.running, pair = made.running, (made.guided, made.negative)
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
        """Answer every open question once. Returns the runs that have ended, or rest; they have left the batch."""
        answered = [_Answered() for _ in self.runs]
        for group in _groups(self._asking()):
            with group[0].loras.on("unet"), going_round(self.backbone.net, group[0].seamless):
                for asked, out in self._evaluated(group):
                    answered[asked.run].take(asked, out)
        for run, parts in zip(self.runs, answered, strict=True):
            if run.is_open:
                _answer(run, parts, self.backbone)
        ended = [run for run in self.runs if not run.is_open]
        self.runs = [run for run in self.runs if run.is_open]
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
            for n, view in enumerate(run.views if run.is_open else ()):
                for posed in calls_of(run, self.backbone, view):
                    yield _Asked(i, n, posed.call, posed.loras, posed.places, run.seamless)
