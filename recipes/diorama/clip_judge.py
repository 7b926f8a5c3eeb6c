"""What a CLIP finds in pictures: retrieval, and captions in which one word is wrong.

Of scenes that it never saw, that is how well it tells them apart. Of pictures that a model drew to the scenes'
captions, it is how well they show what was asked; the figures of the scenes themselves are what can be reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from disegno.training.clip_score import ClipScore

from .compose import SEEDS
from .world.labels import COLOUR_NAMES
from .world.pack import Wardrobe
from .world.render import Scene, compose
from .world.vocabulary import nouns

Picture = NDArray[np.uint8]
GROUP = 100  # scenes that are told apart at a time: chance is 1 %


@dataclass(frozen=True)
class Retrieval:
    """Shares in [0, 1]. `caption`: the right caption of a picture is the nearest of 100; `picture`: the other way.

    `caption5`, `picture5`: it is among the five nearest. `thing`, `colour`: the true caption is nearer than one that
    names another thing, or another colour, in one place; chance is a half. `noun`: the first thing's name is the
    nearest of all things'. `mean`: of the right pair's cosine, `wrong`: of the others'.
    """

    scenes: int
    caption: float
    caption5: float
    picture: float
    picture5: float
    thing: float
    colour: float
    noun: float
    mean: float
    wrong: float


@torch.inference_mode()
def judged(clip: ClipScore, wardrobe: Wardrobe, count: int, side: int, group: int = GROUP) -> Retrieval:
    """Return what it reaches on scenes of the stream that nothing learns from."""
    scenes = [compose(wardrobe, SEEDS["test"], index, side) for index in range(count // group * group)]
    return judged_pictures(clip, scenes, [scene.image for scene in scenes], group)


@torch.inference_mode()
def judged_pictures(
    clip: ClipScore, scenes: Sequence[Scene], pictures: Sequence[Picture], group: int = GROUP
) -> Retrieval:
    """Return what it finds in pictures of these scenes' captions. Their number is a multiple of `group`."""
    seen, read = clip.features(list(pictures), [scene.caption for scene in scenes])
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
        thing=_told_apart(clip, scenes, pictures, list(_other_things(scenes))),
        colour=_told_apart(clip, scenes, pictures, list(_other_colours(scenes))),
        noun=_named(clip, scenes, seen),
        mean=float(right.mean()),
        wrong=float(others),
    )


def _ranks(cosines: Tensor) -> Tensor:
    """Return how many are nearer than the right one, (g n)."""
    return (cosines > cosines.diagonal(dim1=1, dim2=2)[:, :, None]).sum(dim=2)


def _told_apart(
    clip: ClipScore, scenes: Sequence[Scene], pictures: Sequence[Picture], false: Sequence[tuple[int, str]]
) -> float:
    """Return the share of pictures whose true caption is nearer than the false one that is given with their number."""
    shown = [pictures[number] for number, _ in false]
    ways = [[scenes[number].caption for number, _ in false], [caption for _, caption in false]]
    true, wrong = (torch.tensor(clip.scores(shown, captions)) for captions in ways)
    return float((true > wrong).float().mean())


def _named(clip: ClipScore, scenes: Sequence[Scene], seen: Tensor) -> float:
    """Return how often the first thing's name is the nearest of all that scenes show, the rest of the caption given."""
    shown = {mention.name for scene in scenes for mention in scene.facts.mentions}
    names = sorted(noun.name for noun in nouns() if shown & set(noun.names))
    right: list[bool] = []
    for scene, picture in zip(scenes, seen, strict=True):
        own = scene.facts.mentions[0]
        if own.name not in names or not own.words.endswith(own.name) or own.words not in scene.caption:
            continue  # several of a kind, or called by another of its names
        before, after = own.words.removesuffix(own.name), scene.caption.partition(own.words)
        read = clip.read([after[0] + before + name + after[2] for name in names])
        right.append(names[int((read @ picture).argmax())] == own.name)
    return sum(right) / max(1, len(right))


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
