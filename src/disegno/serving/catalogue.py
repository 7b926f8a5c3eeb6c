"""What a studio can do, as the doors list it: names and what is known about them, no paths."""

from collections.abc import Iterator
from dataclasses import asdict

import torch

from disegno import __version__
from disegno.annotators import ANNOTATORS
from disegno.annotators.base import describe, read
from disegno.diffusion.schedules import SCHEDULES
from disegno.engine.studio import BUILT_IN, Studio
from disegno.samplers.catalogue import all_samplers
from disegno.serving.faults import without_paths
from disegno.serving.words import AnnotatorCard, Catalogue, ParamCard, SamplerCard, ScheduleCard, WeightsCard
from disegno.weights.card import FileCard
from disegno.weights.identify import identify


def _card(card: FileCard) -> WeightsCard:
    return WeightsCard(
        name=card.path.stem,
        kind=card.kind,
        family=card.family or None,
        mechanism=card.mechanism or None,
        annotator=card.annotator or None,
        file=card.path.name,
        num_bytes=card.num_bytes,
        problem=without_paths(card.problem) if card.problem else None,
    )


def _conditions(studio: Studio) -> Iterator[WeightsCard]:
    """Yield the conditions that the built-in model ships; it is opened for it, and so the first request need not."""
    for name, path in studio.backbone(BUILT_IN).conditions.items():
        card = identify(path)
        yield WeightsCard(name, "control", BUILT_IN, card.mechanism or None, card.annotator)


def _annotators() -> Iterator[AnnotatorCard]:
    for name in ANNOTATORS:
        module = ANNOTATORS.load(name)
        said = read(module)
        params = tuple(ParamCard(**asdict(spec)) for spec in describe(module))
        yield AnnotatorCard(name, said.title, said.summary, params, said.a1111_names)


def _samplers() -> Iterator[SamplerCard]:
    for spec in all_samplers():
        yield SamplerCard(spec.name, spec.aliases, spec.default_schedule, spec.evals_per_step, spec.stochastic)


def catalogue_of(studio: Studio) -> Catalogue:
    """Return the names that requests may use."""
    cards = [_card(card) for card in studio.library.cards()]
    policy = studio.memory.policy
    return Catalogue(
        models=(WeightsCard(BUILT_IN, "model", BUILT_IN), *(card for card in cards if card.kind == "model")),
        controls=(*_conditions(studio), *(card for card in cards if card.kind == "control")),
        files=tuple(card for card in cards if card.kind not in ("model", "control")),
        annotators=tuple(_annotators()),
        samplers=tuple(_samplers()),
        schedules=tuple(ScheduleCard(spec.name, spec.label, spec.names) for spec in SCHEDULES.values()),
        environment={
            "disegno": __version__,
            "torch": torch.__version__,
            "device": str(policy.device),
            "dtype": str(policy.dtype).removeprefix("torch."),
        },
    )
