"""The step-level batch: requests at different steps, answered by one evaluation of the backbone.

Every run is a sampler coroutine waiting for an answer. One `step` of the batch collects the open questions, lets each
run's controls fold over its rows, evaluates the backbone once for all rows that can share an evaluation, and sends
the
answers back. A run joins at any step (`add`) and leaves when its coroutine returns; the others do not notice.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from disegno.backbones.base import Backbone
from disegno.controls.base import Control
from disegno.diffusion.call import Call, Residuals, Row
from disegno.diffusion.denoiser import Guidance, denoised_pair
from disegno.samplers.base import Answer, Eval, Sampling


@dataclass(frozen=True)
class Texts:
    """The positive and the negative text states, one row each, (1 n d), and their names by content."""

    positive: Tensor
    negative: Tensor
    positive_key: str
    negative_key: str
    positive_pooled: Tensor | None = None  # 1 p
    negative_pooled: Tensor | None = None  # 1 p


@dataclass
class Run:
    """One request on its way: its coroutine, its open question, and what is needed to answer it.

    `sigmas`: the plan's noise levels, by which a question's share of the way is known. `latents` is set when it has
    ended.
    """

    sampling: Sampling
    texts: Texts
    guidance: Guidance
    sigmas: Tensor
    controls: tuple[Control, ...] = ()
    question: Eval | None = None
    latents: Tensor | None = None
    estimate: Tensor | None = None  # the last x0 estimate, for previews
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
            self.question, self.latents = None, end.value

    def step(self) -> int:
        """Return how many steps are done: how many of the plan's noise levels lie above the question's."""
        if self.question is None:
            return 0 if self.latents is None else len(self.sigmas) - 1
        above = (self.sigmas > self.question.sigma.cpu() * (1 + 1e-5)).sum().item()
        return min(int(above), len(self.sigmas) - 2)

    def stop(self) -> None:
        """Stop asking; the coroutine is closed."""
        self.sampling.close()
        self.question = None


def _rows(run: Run, question: Eval) -> tuple[Row, ...]:
    progress = run.step() / max(len(run.sigmas) - 1, 1)
    texts = run.texts
    positive = [Row(i, True, texts.positive_key, progress) for i in range(question.x.shape[0])]
    if not needs_negative(run, question):
        return tuple(positive)
    return (*positive, *(Row(i, False, texts.negative_key, progress) for i in range(question.x.shape[0])))


def needs_negative(run: Run, question: Eval) -> bool:
    """Return whether the negative prompt decides anything: guidance is on, or the sampler asks for it."""
    return question.split or bool((torch.as_tensor(run.guidance.cfg) != 1).any())


def _spread(states: Tensor, num: int) -> Tensor:
    return states.expand(num, *states.shape[1:])


def _both(positive: Tensor | None, negative: Tensor | None, num: int, split: bool) -> Tensor | None:
    if positive is None:
        return None
    rows = _spread(positive, num)
    return torch.cat([rows, _spread(negative, num)]) if split and negative is not None else rows


def call_of(run: Run, backbone: Backbone) -> Call:
    """Return the run's question as a call, its controls folded over it: positive rows, then the negative ones."""
    question = run.question
    assert question is not None
    num, rows = question.x.shape[0], _rows(run, question)
    copies = len(rows) // num
    sigma = question.sigma
    x = backbone.prediction.scale(question.x, sigma)
    tokens = _both(run.texts.positive, run.texts.negative, num, copies == 2)
    assert tokens is not None
    call = Call(
        x=x.repeat(copies, 1, 1, 1),
        t=timestep(backbone, sigma).to(x.device).expand(len(rows)),
        tokens=tokens,
        rows=rows,
        net=backbone.evaluate,
        pooled=_both(run.texts.positive_pooled, run.texts.negative_pooled, num, copies == 2),
    )
    return reduce(lambda so_far, control: control(so_far), run.controls, call)


def timestep(backbone: Backbone, sigma: Tensor) -> Tensor:
    """Return the net's timestep for a noise level, (1,), float32."""
    return backbone.table.t_of(sigma.float().cpu()).reshape(1)


def _kind(call: Call) -> Hashable:
    return (call.net, call.x.shape[1:], call.tokens.shape[1:], call.pooled is None)


def _zeros_for(call: Call, like: Residuals) -> Residuals:
    num = call.x.shape[0]
    return Residuals(
        tuple(d.new_zeros(num, *d.shape[1:]) for d in like.down), like.mid.new_zeros(num, *like.mid.shape[1:])
    )


def merged(calls: list[Call]) -> Call:
    """Return one call with the rows of all; rows without residuals get zeros where others have some."""
    if len(calls) == 1:
        return calls[0]
    some = next((call.residuals for call in calls if call.residuals is not None), None)
    residuals = None
    if some is not None:
        parts = [call.residuals or _zeros_for(call, some) for call in calls]
        down = tuple(torch.cat(layer) for layer in zip(*(part.down for part in parts), strict=True))
        residuals = Residuals(down, torch.cat([part.mid for part in parts]))
    pooled = [call.pooled for call in calls if call.pooled is not None]
    return replace(
        calls[0],
        x=torch.cat([call.x for call in calls]),
        t=torch.cat([call.t for call in calls]),
        tokens=torch.cat([call.tokens for call in calls]),
        rows=tuple(row for call in calls for row in call.rows),
        pooled=torch.cat(pooled) if pooled else None,
        residuals=residuals,
    )


def _by_kind(calls: Iterable[tuple[Run, Call]]) -> Iterator[list[tuple[Run, Call]]]:
    groups: dict[Hashable, list[tuple[Run, Call]]] = {}
    for run, call in calls:
        groups.setdefault(_kind(call), []).append((run, call))
    yield from groups.values()


def _answer(run: Run, rows: tuple[Row, ...], out: Tensor, backbone: Backbone) -> None:
    question = run.question
    assert question is not None
    pair = denoised_pair(question.x, question.sigma, out, rows, backbone.prediction, run.guidance)
    run.estimate = pair[0]
    run.answer(pair if question.split else pair[0])


@dataclass
class Batch:
    """Runs that are stepped together on one backbone."""

    backbone: Backbone
    runs: list[Run] = field(default_factory=list[Run])

    @torch.inference_mode()
    def add(self, run: Run) -> None:
        """Let a run join, at whatever step the others are."""
        run.start()
        self.runs.append(run)

    @torch.inference_mode()
    def step(self) -> list[Run]:
        """Answer every open question once. Returns the runs that have ended; they have left the batch."""
        asking = [(run, call_of(run, self.backbone)) for run in self.runs if run.question is not None]
        for group in _by_kind(asking):
            out = merged([call for _, call in group]).run()
            sizes = [call.x.shape[0] for _, call in group]
            for (run, call), part in zip(group, out.split(sizes), strict=True):
                _answer(run, call.rows, part, self.backbone)
        ended = [run for run in self.runs if run.question is None]
        self.runs = [run for run in self.runs if run.question is not None]
        return ended
