"""How well a CLIP tells scenes apart that it never saw: retrieval, and captions in which one word is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from disegno.training.clip_score import ClipScore

from .compose import SEEDS
from .world.labels import COLOUR_NAMES
from .world.pack import Wardrobe
from .world.render import Scene, compose

GROUP = 100  # scenes that are told apart at a time: chance is 1 %


@dataclass(frozen=True)
class Retrieval:
    """Shares in [0, 1]. `caption`: the right caption of a picture is the nearest of 100; `picture`: the other way.

    `caption5`, `picture5`: it is among the five nearest. `thing`, `colour`: the true caption is nearer than one that
    names another thing, or another colour, in one place; chance is a half. `mean`: of the right pair's cosine, `wrong`:
    of the others'.
    """

    scenes: int
    caption: float
    caption5: float
    picture: float
    picture5: float
    thing: float
    colour: float
    mean: float
    wrong: float


@torch.inference_mode()
def judged(clip: ClipScore, wardrobe: Wardrobe, count: int, side: int, group: int = GROUP) -> Retrieval:
    """Return what it reaches on scenes of the stream that nothing learns from."""
    scenes = [compose(wardrobe, SEEDS["test"], index, side) for index in range(count // group * group)]
    seen, read = clip.features([scene.image for scene in scenes], [scene.caption for scene in scenes])
    cosines = torch.stack([a @ b.T for a, b in zip(seen.split(group), read.split(group), strict=True)])  # g n n
    ranks = [_ranks(each) for each in (cosines, cosines.transpose(1, 2))]
    right = cosines.diagonal(dim1=1, dim2=2)
    first, five = ([float((rank < most).float().mean()) for rank in ranks] for most in (1, 5))
    others = (cosines.sum() - right.sum()) / (cosines.numel() - right.numel())
    return Retrieval(
        scenes=len(scenes),
        caption=first[0],
        caption5=five[0],
        picture=first[1],
        picture5=five[1],
        thing=_told_apart(clip, scenes, list(_other_things(scenes))),
        colour=_told_apart(clip, scenes, list(_other_colours(scenes))),
        mean=float(right.mean()),
        wrong=float(others),
    )


def _ranks(cosines: Tensor) -> Tensor:
    """Return how many are nearer than the right one, (g n)."""
    return (cosines > cosines.diagonal(dim1=1, dim2=2)[:, :, None]).sum(dim=2)


def _told_apart(clip: ClipScore, scenes: Sequence[Scene], false: Sequence[tuple[int, str]]) -> float:
    """Return the share of scenes whose true caption is nearer than the false one that is given with their number."""
    pictures = [scenes[number].image for number, _ in false]
    ways = [[scenes[number].caption for number, _ in false], [caption for _, caption in false]]
    true, wrong = (torch.tensor(clip.scores(pictures, captions)) for captions in ways)
    return float((true > wrong).float().mean())


def _other_things(scenes: Sequence[Scene]) -> Iterator[tuple[int, str]]:
    """Yield a scene's number, and its caption with one thing of another scene in the place of its first thing."""
    for number, scene in enumerate(scenes):
        own = scene.facts.mentions[0]
        others = scenes[(number + 1) % len(scenes)].facts.mentions
        other = next((m for m in others if m.name not in {n.name for n in scene.facts.mentions}), None)
        if other is not None and own.words in scene.caption:
            yield number, scene.caption.replace(own.words, other.words, 1)


def _other_colours(scenes: Sequence[Scene]) -> Iterator[tuple[int, str]]:
    """Yield a scene's number, and its caption with another colour for the first thing whose colour it names."""
    for number, scene in enumerate(scenes):
        for own in scene.facts.mentions:
            if own.colour is not None and f"{own.colour} " in own.words and own.words in scene.caption:
                free = [colour for colour in COLOUR_NAMES if colour not in scene.caption]
                false = own.words.replace(own.colour, free[number % len(free)], 1)
                yield number, scene.caption.replace(own.words, false, 1)
                break
