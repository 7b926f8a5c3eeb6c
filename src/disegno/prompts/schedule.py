"""Prompts that change over the steps: [from:to:when], [to:when], [from::when] and, at every step, [a|b|c].

`when` with a point is a share of the steps, without one a step. The grammar (Earley's, upstream) comes to this:

    text       anything but \\ [ ] ( ) : | , or a backslash and any character
    group      ( text )   ( text : text )   [ text ]            emphasis: kept as it is written
    schedule   [ text : text : number ]     [ text : number ]
    alternate  [ text | text | ... ]        texts may be empty

where a text may hold further groups, schedules and alternates. Brackets and colons that fit nowhere are text, but a bar
or a backslash that fits nowhere makes the whole prompt literal. Read here in one pass, with a stack. Where brackets do
not match, upstream's answer can change from run to run (its parser walks a set); here, what can be a schedule is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

_TOKEN = re.compile(r"(?P<text>(?:[^\\\[\]():|]|\\.)+)|(?P<mark>[\[\]():|])|(?P<stray>\\)")
_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_OPENS = {")": "(", "]": "["}


class Span(NamedTuple):
    """The text of a prompt up to and including a step."""

    until: int
    text: str


@dataclass(frozen=True)
class Scheduled:
    """One text up to a step, another one after it."""

    before: list[Node]
    after: list[Node]
    when: str


@dataclass(frozen=True)
class Alternate:
    """A text at each step, in turn."""

    options: list[list[Node]]


Node: TypeAlias = "str | Scheduled | Alternate | list[Node]"  # a list: brackets are never copied into what holds them


@dataclass(frozen=True)
class Clock:
    """How `when` is counted: the pass's steps, and what of it belongs to the passes before."""

    steps: int
    first_step: int = 0
    first_share: float = 0.0
    old: bool = False

    def step_of(self, when: str) -> int:
        """Return the last step before the change, at most the last of all; below 1 there is none before it."""
        value = float(when)
        if self.old:
            value = value * self.steps if value < 1 else value
        elif "." in when:
            value = (value - self.first_share) * self.steps
        else:
            value = value - self.first_step
        return int(max(min(value, self.steps), -1))


def schedule(prompt: str, steps: int, hires_steps: int | None = None, old: bool = False) -> list[Span]:
    """Return the prompt's texts in order, the last one until the last step; at least one.

    `hires_steps`: of a second pass, in which shares count from 1 to 2 and steps go on. `old`: as A1111 before 1.6: a
    number below 1 is a share, however it is spelt, and both passes count alike.
    """
    clock = Clock(steps, old=old) if hires_steps is None or old else Clock(hires_steps, steps, 1.0)
    nodes = _parse(prompt)
    if nodes is None:
        return [Span(clock.steps, prompt)]
    return [Span(step, _text_at(nodes, step, clock)) for step in _changes(nodes, clock)]


def span_at(spans: Sequence[Span], call: int) -> int:
    """Return which span holds at a call of the model, counted from 0.

    A1111 parity: a span holds while call <= until, so that the first one lasts a call longer than its steps; after the
    last one, the first holds again.
    """
    return next((n for n, span in enumerate(spans) if call <= span.until), 0)


# ---- reading


@dataclass
class _Open:
    """A bracket that is open, "" for the whole prompt: what stands in it so far, cut at its colons and bars."""

    bracket: str
    parts: list[list[Node]] = field(default_factory=lambda: [[]])
    marks: list[str] = field(default_factory=list)

    def written(self) -> list[Node]:
        """Return what stands in it as a sequence, its colons and bars included."""
        nodes: list[Node] = [self.parts[0]]
        for mark, part in zip(self.marks, self.parts[1:], strict=True):
            nodes += [mark, part]
        return nodes

    def closed(self, closer: str) -> Node | None:
        """Return the node that the bracket makes with its closer, or None."""
        if self.bracket != _OPENS[closer]:
            return None
        bars, colons = self.marks.count("|"), self.marks.count(":")
        if bars:
            return Alternate(self.parts) if self.bracket == "[" and not colons else None
        if not colons or (self.bracket == "(" and colons == 1):
            return [self.bracket, *self.written(), closer]
        when = _when(self.parts[-1]) if self.bracket == "[" and colons <= 2 else None
        return None if when is None else Scheduled(self.parts[0] if colons == 2 else [], self.parts[-2], when)


def _when(part: Sequence[Node]) -> str | None:
    """Return the number that a part is, or None."""
    text = part[0] if len(part) == 1 else None
    found = _NUMBER.fullmatch(text) if isinstance(text, str) else None
    return found[1] if found else None


def _parse(prompt: str) -> list[Node] | None:
    """Return the prompt's nodes, or None where it is literal."""
    stack = [_Open("")]
    for token in _TOKEN.finditer(prompt):
        mark = token["mark"]
        if token["stray"]:
            return None
        if not mark:
            stack[-1].parts[-1].append(token[0])
        elif mark in "([":
            stack.append(_Open(mark))
        elif mark in ":|":
            stack[-1].marks.append(mark)
            stack[-1].parts.append([])
        else:
            _close(stack, mark)
    _unwind(stack)
    return None if "|" in stack[0].marks else stack[0].written()


def _close(stack: list[_Open], closer: str) -> None:
    """Close the innermost bracket. Where it makes no node, it and all around it fit nowhere: they are text."""
    node = stack[-1].closed(closer) if len(stack) > 1 else None
    if node is None:
        _unwind(stack)
        stack[0].parts[-1].append(closer)
    else:
        stack.pop()
        stack[-1].parts[-1].append(node)


def _unwind(stack: list[_Open]) -> None:
    """Take every open bracket as text of the prompt."""
    whole = stack[0]
    for inner in stack[1:]:
        whole.parts[-1] += [inner.bracket, inner.parts[0]]
        whole.marks += inner.marks
        whole.parts += inner.parts[1:]
    del stack[1:]


# ---- telling


def _all(nodes: Sequence[Node]) -> Iterator[str | Scheduled | Alternate]:
    """Yield every text, schedule and alternate, also those inside others, in no order; without recursion."""
    waiting: list[Node] = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
            continue
        yield node
        if isinstance(node, Scheduled):
            waiting += [node.before, node.after]
        elif isinstance(node, Alternate):
            waiting += node.options


def _changes(nodes: Sequence[Node], clock: Clock) -> list[int]:
    """Return the last step of each span, in order."""
    found = {clock.steps}
    for node in _all(nodes):
        if isinstance(node, Scheduled):
            found.add(clock.step_of(node.when))
        elif isinstance(node, Alternate):
            found.update(range(1, clock.steps + 1))
    return sorted(step for step in found if step >= 1)


def _text_at(nodes: Sequence[Node], step: int, clock: Clock) -> str:
    """Return the text at a step, counted from 1."""
    texts, waiting = list[str](), list[Node](reversed(nodes))
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            texts.append(node)
        elif isinstance(node, list):
            waiting += reversed(node)
        elif isinstance(node, Scheduled):
            waiting.append(node.before if step <= clock.step_of(node.when) else node.after)
        else:
            waiting.append(node.options[(step - 1) % len(node.options)])
    return "".join(texts)
