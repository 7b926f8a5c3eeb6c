"""The text states of a run's images: what each row attends to at each call of the model.

A prompt may have several parts (AND), each a row of its own, and each text may change over the calls ([from:to:when]).
Beside it other words may hold in parts of the canvas, which are texts of the same image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, cat, device

from disegno.backbones.base import TextStates
from disegno.diffusion.call import Row, Where
from disegno.loras.apply import Loras
from disegno.prompts.schedule import Span, span_at


@dataclass(frozen=True)
class Timeline:
    """One text over the calls: the states of each of its spans; and how much it counts."""

    spans: tuple[Span, ...]
    states: tuple[TextStates, ...]  # of one row each
    weight: float = 1.0

    @classmethod
    def always(cls, states: TextStates) -> "Timeline":
        """Return a text that does not change."""
        return cls((Span(0, ""),), (states,))

    def at(self, call: int) -> TextStates:
        """Return the states at a call, counted from 0."""
        return self.states[span_at(self.spans, call)]


@dataclass(frozen=True)
class ImageTexts:
    """One image's texts: the parts of its prompt, and its negative prompt.

    `empty`: an empty prompt's states; where it is set, the shorter of prompt and negative prompt is filled up with it.
    `where`: where the prompt holds; None: everywhere. `loras`: on the net for it, instead of the run's. `regions`: the
    words for parts of the canvas, each with the negative prompt as its own LoRAs read it.
    """

    parts: tuple[Timeline, ...]
    negative: Timeline
    empty: TextStates | None = None
    where: Where | None = None
    loras: Loras | None = None
    regions: tuple["ImageTexts", ...] = ()

    @property
    def holding(self) -> tuple["ImageTexts", ...]:
        """The texts that hold somewhere: its own and its regions'."""
        return tuple(text for text in (self, *self.regions) if text.where is None or text.where.holds)

    @property
    def worn(self) -> str:
        """The LoRAs on the net for it, by content; "" for the run's."""
        return self.loras.key if self.loras else ""

    @property
    def opposed(self) -> tuple["ImageTexts", ...]:
        """The texts whose negative prompts are asked: the first of each set of LoRAs."""
        return tuple({text.worn: text for text in reversed(self.holding)}.values())[::-1]

    def composes(self) -> bool:
        """Return whether the parts say how a prompt and its absence are mixed: only one of weight 1 does not."""
        return any(len(text.parts) > 1 or any(part.weight != 1.0 for part in text.parts) for text in self.holding)

    def positive_at(self, call: int) -> list[TextStates]:
        """Return the states of each part, all of one length.

        A1111 parity: the shorter ones of a prompt with AND repeat their last token.
        """
        parts = _aligned([part.at(call) for part in self.parts])
        return parts if self.empty is None else [_filled(part, self.negative.at(call), self.empty) for part in parts]

    def negative_at(self, call: int) -> TextStates:
        """Return the states of the negative prompt."""
        states = self.negative.at(call)
        return states if self.empty is None else _filled(states, self.positive_at(call)[0], self.empty)


def _length(states: TextStates) -> int:
    return states.tokens.shape[1]


def _aligned(parts: list[TextStates]) -> list[TextStates]:
    longest = max(_length(part) for part in parts)
    return [_lengthened(part, part.tokens[:, -1:], longest - _length(part)) for part in parts]


def _filled(states: TextStates, other: TextStates, empty: TextStates) -> TextStates:
    """Return the states with empty chunks after them, as long as the other ones where those are longer."""
    return _lengthened(states, empty.tokens, max(0, _length(other) - _length(states)), empty.keys[0])


def _lengthened(states: TextStates, filling: Tensor, by: int, name: str = "") -> TextStates:
    """Return the states with `by` more tokens of the filling after them; the key names what was done.

    `name`: of the filling, by content; "" where the states themselves decide it.
    """
    if not by:
        return states
    times = -(-by // filling.shape[1])
    tokens = cat([states.tokens, *[filling] * times], dim=1)[:, : _length(states) + by]
    keys = tuple(f"{key}+{filling.shape[1]}{name}:{by}" for key in states.keys)
    return replace(states, tokens=tokens, keys=keys)


@dataclass(frozen=True)
class TextRow:
    """One row of a call: what it is, and what it attends to.

    `loras`: on the net for it, instead of the run's. `place`: which of the question's rows it is.
    """

    row: Row
    states: TextStates
    loras: Loras | None = None
    place: int = 0


@dataclass(frozen=True)
class Texts:
    """The texts of a run's images, in their order."""

    images: tuple[ImageTexts, ...]

    @classmethod
    def plain(cls, positive: TextStates, negative: TextStates, num: int = 1) -> "Texts":
        """Return the texts of `num` images that all have these, unchanging."""
        return cls((ImageTexts((Timeline.always(positive),), Timeline.always(negative)),) * num)

    @property
    def device(self) -> device:
        """Return where the states are."""
        return self.images[0].negative.states[0].tokens.device

    def of(self, group: Sequence[int]) -> "Texts":
        """Return the texts of some of the images."""
        return Texts(tuple(self.images[i] for i in group))

    def loras(self) -> list[Loras]:
        """Return the LoRAs of the images' regions, where those have others than their image."""
        return [text.loras for image in self.images for text in image.regions if text.loras is not None]

    def composes(self) -> bool:
        """Return whether any prompt has parts or a weight."""
        return any(image.composes() for image in self.images)

    def rows(self, call: int, progress: float, with_negative: bool, with_blind: bool = False) -> list[TextRow]:
        """Return the rows of a call: of every image, part by part, then the negative ones.

        `with_blind`: then those of the negative prompts once more, not shown the picture (editing models).
        """
        rows = [
            TextRow(_row(i, text, states, progress, weight=part.weight, where=text.where), states, text.loras)
            for i, image in enumerate(self.images)
            for text in image.holding
            for part, states in zip(text.parts, text.positive_at(call), strict=True)
        ]
        if not with_negative:
            return rows
        negative = [(i, text, text.negative_at(call)) for i, image in enumerate(self.images) for text in image.opposed]
        for is_shown in (True, False) if with_blind else (True,):
            rows += [
                TextRow(_row(i, text, states, progress, positive=False, is_shown=is_shown), states, text.loras)
                for i, text, states in negative
            ]
        return rows


def _row(image: int, text: ImageTexts, states: TextStates, progress: float, positive: bool = True, **more: Any) -> Row:
    return Row(image, positive, states.keys[0], progress, loras=text.worn, **more)


def by_length(rows: Sequence[TextRow]) -> list[list[TextRow]]:
    """Return the rows in groups of one number of tokens: each can be evaluated at once. A1111 parity: its default.

    Rows of other LoRAs are groups of their own.
    """
    groups: dict[tuple[int, str], list[TextRow]] = {}
    for row in rows:
        groups.setdefault((_length(row.states), row.row.loras), []).append(row)
    return list(groups.values())
