"""Is it learning? One pure function decides, from the looks alone: `judge`.

Controllability is a condition's own measure (edge F1, mIoU, RMSE, colour difference ...) on a scale that all share:

    0   the pictures follow their drawings no better than pictures drawn without the control, from the same seeds
    1   as well as the real pictures do, brought through the model's own VAE: the best that the model could draw

A look says it, with its standard error over the pictures; each picture is compared with the one of the same seed that
was drawn without the control, so few pictures suffice. Without such figures the held-out loss decides.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from disegno.training.base import Look

CONTROLLABILITY = "controllability"
ERROR = "controllability-error"
EFFECT = "effect"  # the mean absolute difference of the pictures with and without the control, 0 to 1
AGREEMENT = "agreement"  # the real pictures themselves, annotated, on controllability's scale: 1 where all is well
SWAPPED = "swapped"  # the same with condition and target exchanged
FLOOR, CEILING = "-floor", "-ceiling"  # after a measure's name: without the control; the real pictures through the VAE

PATIENCE = 5  # looks without an improvement
LEAST = 0.02  # a smaller rise of controllability is no improvement
LEAST_LOSS = 0.002  # nor is a smaller fall of the held-out loss, as a share of it
CERTAIN = 2.0  # standard errors above 0: 98 % on one side
SOME = 20  # looks, of which one more may be CERTAIN by chance
NO_EFFECT = 0.004  # one level of 256: less cannot be seen
AGREES = 0.5  # a data set whose real pictures agree less with its conditions has a fault

_NORMAL = NormalDist()

State = Literal["early", "learning", "converged", "not-learning"]


@dataclass(frozen=True)
class Verdict:
    """Whether it learns, in a sentence; `reasons` why not, each with what to do. `best`: the step of the best look."""

    state: State
    words: str
    best: int | None = None
    reasons: tuple[str, ...] = ()

    @property
    def converged(self) -> bool:
        """Return whether a training that may stop by itself should stop now."""
        return self.state == "converged"


def judge(looks: Sequence[Look], patience: int = PATIENCE) -> Verdict:
    """Return the verdict on a training after these looks, in the order in which they were taken.

    It has converged when something was learned and none of the last `patience` looks improved on those before by more
    than LEAST. A control that does nothing yet has not converged, however long that lasts: controls are known to
    take hold suddenly (ControlNet's "sudden convergence").
    """
    measured = [look for look in looks if CONTROLLABILITY in look.metrics]
    if measured:
        return _by_controllability(measured, patience)
    lost = [look for look in looks if look.loss is not None]
    verdict = _by_loss(lost, patience) if lost else Verdict("early", "Not yet: nothing has been measured so far.")
    found = _suspects([look for look in looks if measure_of(look.metrics)], OF_DATA)
    return replace(verdict, state="not-learning", reasons=(*found, *verdict.reasons)) if found else verdict


def score(look: Look) -> float | None:
    """Return what looks are ranked by, higher being better: controllability, else the negative held-out loss."""
    value = look.metrics.get(CONTROLLABILITY, None if look.loss is None else -look.loss)
    return value if value is not None and math.isfinite(value) else None


def measure_of(metrics: Mapping[str, float]) -> str | None:
    """Return the name of the condition's own measure: the one whose floor and ceiling are there too."""
    return next((name for name in metrics if name + FLOOR in metrics and name + CEILING in metrics), None)


def certain(metrics: Mapping[str, float], num_looks: int = 1) -> bool:
    """Return whether the control acts beyond chance: controllability is CERTAIN standard errors above 0.

    `num_looks`: of how many looks this is the luckiest; by chance one of them is as good so many times as often.
    """
    least = _NORMAL.inv_cdf(1 - (1 - _NORMAL.cdf(CERTAIN)) / num_looks)  # Bonferroni 1936
    return metrics[CONTROLLABILITY] > max(least * metrics.get(ERROR, math.inf), LEAST)  # of one or two pairs: none


def acts(looks: Sequence[Look]) -> bool:
    """Return whether the control acts beyond chance, by its best look among all, or by more looks than chance gives."""
    num = sum(certain(look.metrics) for look in looks)
    return certain(_best(looks).metrics, len(looks)) or num >= 2 + len(looks) // SOME


def _stands_still(scores: Sequence[float], patience: int, least: float) -> bool:
    """Return whether none of the last `patience` scores exceeds the best before them by more than `least`."""
    return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience]) + least


def _best(looks: Sequence[Look]) -> Look:
    return max(looks, key=lambda look: -math.inf if (found := score(look)) is None else found)


def _by_controllability(looks: Sequence[Look], patience: int) -> Verdict:
    best, last = _best(looks), looks[-1]
    scores = [look.metrics[CONTROLLABILITY] for look in looks]
    if not acts(looks):
        return _not_yet(looks, patience)
    if _stands_still(scores, patience, LEAST):
        fell = "" if last.step == best.step else f" Its best was at step {best.step}; {_percent(last)} now."
        return Verdict(
            "converged", f"It has learned: {_follows(best)} Nothing was gained in {patience} looks.{fell}", best.step
        )
    before = scores[-2] if len(scores) > 1 else 0.0
    trend = "rising" if scores[-1] > before + LEAST else "falling" if scores[-1] < before - LEAST else "steady"
    return Verdict("learning", f"It is learning: {_follows(last)} It is {trend}.", best.step)


def _not_yet(looks: Sequence[Look], patience: int) -> Verdict:
    last = looks[-1]
    words = (
        f"Not yet: at step {last.step} the pictures follow their drawings no better than without the control"
        f" ({_figures(last.metrics)})."
    )
    fatal = _suspects(looks, OF_DATA) + _suspects(looks, OF_NUMBERS)
    waited = len(looks) > patience or fatal
    return Verdict("not-learning" if waited else "early", words, None, fatal + _suspects(looks, OF_PATIENCE))


def _by_loss(looks: Sequence[Look], patience: int) -> Verdict:
    best, first, last = _best(looks), looks[0], looks[-1]
    losses = [look.loss for look in looks if look.loss is not None]
    words = f"the held-out loss is {losses[-1]:.4f}, and was {losses[0]:.4f} at step {first.step}."
    if _diverged(looks):
        return Verdict("not-learning", f"Not yet: {words}", best.step, (_TOO_FAST,))
    if _stands_still([-loss for loss in losses], patience, LEAST_LOSS * abs(losses[0])):
        words += f" Nothing was gained in {patience} looks; the best was at step {best.step}."
        return Verdict("converged", f"It has learned what it can: {words}", best.step)
    if len(losses) > 1 and losses[-1] < losses[0] * (1 - LEAST_LOSS):
        return Verdict("learning", f"It is learning, by its loss alone: {words}", best.step)
    return Verdict("early", f"Not yet: at step {last.step} {words}", best.step)


def _percent(look: Look) -> str:
    return f"{100 * look.metrics[CONTROLLABILITY]:.0f} %"


def _follows(look: Look) -> str:
    return (
        f"at step {look.step} the pictures follow their drawings {_percent(look)} of the way from no control to the"
        f" real pictures ({_figures(look.metrics)})."
    )


def _figures(metrics: Mapping[str, float]) -> str:
    name = measure_of(metrics)
    if name is None:
        return f"{100 * metrics[CONTROLLABILITY]:.0f} %"
    floor, ceiling = metrics[name + FLOOR], metrics[name + CEILING]
    return f"{name} {metrics[name]:.3g}; without the control {floor:.3g}, the real pictures {ceiling:.3g}"


def _swapped(looks: Sequence[Look]) -> bool:
    metrics = looks[-1].metrics
    return metrics.get(AGREEMENT, 1.0) < AGREES <= metrics.get(SWAPPED, 0.0)


def _foreign(looks: Sequence[Look]) -> bool:
    return looks[-1].metrics.get(AGREEMENT, 1.0) < AGREES and not _swapped(looks)


def _unmeasurable(looks: Sequence[Look]) -> bool:
    metrics = looks[-1].metrics
    return CONTROLLABILITY not in metrics and not _swapped(looks) and not _foreign(looks)


def _diverged(looks: Sequence[Look]) -> bool:
    losses = [look.loss for look in looks if look.loss is not None]
    return bool(losses) and (not math.isfinite(losses[-1]) or losses[-1] > 1.1 * losses[0])


def _no_effect(looks: Sequence[Look]) -> bool:
    return looks[-1].metrics.get(EFFECT, 1.0) < NO_EFFECT


def _astray(looks: Sequence[Look]) -> bool:
    return len(looks) > 2 and not any(s(looks) for s in (_swapped, _foreign, _diverged, _no_effect))


_TOO_FAST = "The held-out loss rises: the learning rate is too high. Start again with a third of it."

Suspect = tuple[Callable[[Sequence[Look]], bool], str]
"""What a control that does not learn may suffer from, and what to do."""

OF_DATA: tuple[Suspect, ...] = (
    (
        _swapped,
        "Conditions and pictures are exchanged: annotating the conditions gives the pictures. Swap the folders.",
    ),
    (
        _foreign,
        "The data's conditions are not what this annotator draws: annotating the real pictures gives something else."
        " Name the annotator and the parameters that made them, or build the conditions anew.",
    ),
    (
        _unmeasurable,
        "It cannot be measured whether pictures follow these conditions: not even the real pictures do so better than"
        " pictures drawn without the control, once the model's VAE has been at them. Look at the pictures instead.",
    ),
)
"""More steps will not help."""

OF_NUMBERS: tuple[Suspect, ...] = ((_diverged, _TOO_FAST),)
"""Nor here."""

OF_PATIENCE: tuple[Suspect, ...] = (
    (
        _no_effect,
        "The control does not change the pictures yet: it needs more steps, or a higher learning rate."
        " CtrLoRA's 1e-5 is for models of the size of Stable Diffusion; small ones need more.",
    ),
    (
        _astray,
        "The control changes the pictures, but not towards the drawings. Controls can take hold suddenly, after"
        " thousands of steps; if not, check the pairs (`disegno dataset check`), or try a higher learning rate, a"
        " higher rank or more pairs.",
    ),
)
"""In the order in which to think of them."""


def _suspects(looks: Sequence[Look], of: Sequence[Suspect]) -> tuple[str, ...]:
    return tuple(why for seems, why in of if looks and seems(looks))
