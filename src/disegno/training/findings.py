"""What an evaluation found: in a sentence, as a table, as JSON."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from disegno.training.convergence import CERTAIN, LEAST, State
from disegno.training.evaluation import Evaluation
from disegno.training.redraw import TO_REAL
from disegno.training.scores import AGAINST, CONTROL, GIVEN, REAL, WITHOUT, Score
from disegno.training.trial import FEW, Summary, summary

WAYS = (CONTROL, AGAINST, WITHOUT, GIVEN, REAL)
"""In the order of a table."""


def names_of(found: Evaluation) -> dict[str, str]:
    """Return what each way is called, for people."""
    named = {
        CONTROL: Path(found.request.control).stem,
        AGAINST: Path(found.request.against or "").stem,
        WITHOUT: "without",
        GIVEN: "as given",
        REAL: "real, by the VAE",
    }
    return {way: named[way] for way in WAYS if way in found.drawn}


def score_of(found: Evaluation, name: str) -> Score | None:
    """Return the score of this name, where it was measured."""
    return next((score for score in found.scores if score.name == name), None)


def judged(found: Evaluation) -> tuple[State, str]:
    """Return the verdict: whether the control does what it should, with the figures that say so."""
    own = _deciding(found)
    state, words = _mended(found, own) if found.request.restore else _followed(found, own)
    return state, " ".join([words, *_compared(found, own)])


def _deciding(found: Evaluation) -> Score:
    """Return the score that the verdict goes by: the condition's own, or the likeness to the real pictures."""
    names = (f"lpips{TO_REAL}", f"ssim{TO_REAL}") if found.request.restore else (found.criterion.figure,)
    return next(score for name in names if (score := score_of(found, name)) is not None)


def _few(found: Evaluation) -> str:
    """Return why nothing can be told from so few pairs; "" where there are enough."""
    num = len(found.rows)
    if num >= FEW:
        return ""
    return f"{num} {'pair is' if num == 1 else 'pairs are'} too few to tell; {FEW} are the least, --num 20 is better"


def _followed(found: Evaluation, own: Score) -> tuple[State, str]:
    name, share = names_of(found)[CONTROL], score_of(found, "controllability")
    figures = (
        f"{own.title} {_plain(own.of[CONTROL])}; without the control {_plain(own.of[WITHOUT])}, the real pictures"
        f" {_plain(own.of[REAL])}"
    )
    if share is None:
        return "early", (
            f"Whether {name} is followed cannot be told by this measure: not even the real pictures, brought through"
            f" the model's VAE, agree better with their drawings than pictures drawn without it ({figures})."
        )
    if few := _few(found):
        return "early", f"Whether {name} is followed is not known yet: {few} ({figures})."
    reached = share.of[CONTROL]
    if reached.mean <= max(CERTAIN * reached.error, LEAST):
        return (
            "not-learning",
            f"Pictures drawn with {name} follow their drawings no better than without it ({figures}).",
        )
    return "learning", (
        f"Pictures drawn with {name} follow their drawings {100 * reached.mean:.0f} % of the way from no control to the"
        f" real pictures, give or take {100 * reached.error:.0f} ({figures})."
    )


def _mended(found: Evaluation, score: Score) -> tuple[State, str]:
    """Return whether the pictures are nearer to the real ones than what was given: by LPIPS, or else SSIM."""
    name = names_of(found)[CONTROL]
    figures = (
        f"{score.title} {_plain(score.of[CONTROL])}, given {_plain(score.of[GIVEN])}, the best that the model's VAE can"
        f" do {_plain(score.of[REAL])}"
    )
    if few := _few(found):
        return (
            "early",
            f"Whether pictures drawn with {name} are nearer to the real ones is not known yet: {few} ({figures}).",
        )
    sign = 1.0 if score.better == "higher" else -1.0
    gain = summary(sign * (score.rows[CONTROL] - score.rows[GIVEN]))
    better = gain.mean > CERTAIN * gain.error
    return ("learning" if better else "not-learning"), (
        f"Pictures drawn with {name} are {'' if better else 'not '}nearer to the real ones than those that were given:"
        f" {figures}."
    )


def _compared(found: Evaluation, score: Score) -> Iterator[str]:
    """Yield how the control stands to the other one, pair by pair, by the score of the verdict."""
    if AGAINST not in found.drawn:
        return
    names = names_of(found)
    sign = 1.0 if score.better == "higher" else -1.0
    gain = summary(sign * (score.rows[CONTROL] - score.rows[AGAINST]))
    if abs(gain.mean) <= CERTAIN * gain.error:
        yield f"Between it and {names[AGAINST]} no difference can be told from {len(found.rows)} pairs."
    else:
        word = "better" if gain.mean > 0 else "worse"
        yield f"It does so {word} than {names[AGAINST]}, by {abs(gain.mean):.2g} give or take {gain.error:.1g}."


def _plain(value: Summary) -> str:
    return f"{value.mean:.3g}"


def cell(score: Score, way: str) -> str:
    """Return a score of one way: `0.345 ± 0.02`; "" where it has none."""
    value = score.of.get(way)
    if value is None:
        return ""
    known = math.isfinite(value.error)
    if score.name == "controllability":
        return f"{100 * value.mean:.0f} %" + (f" ± {100 * value.error:.0f}" if known else "")
    return f"{value.mean:.3g}" + (f" ± {value.error:.1g}" if score.rows and known else "")


def rows_of_table(found: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of the table of all scores; an arrow says which way is better."""
    names = names_of(found)
    lines = [
        [f"{score.title} {'↑' if score.better == 'higher' else '↓'}", *(cell(score, way) for way in names)]
        for score in found.scores
    ]
    return ["", *names.values()], lines


def to_json(found: Evaluation) -> dict[str, Any]:
    """Return everything that was found, as JSON has it."""
    state, words = judged(found)
    return {
        "verdict": words,
        "works": state == "learning",
        "control": found.request.control,
        "against": found.request.against,
        "num": len(found.rows),
        "criterion": {"annotator": found.criterion.name, "measure": found.criterion.figure},
        "agreement": found.agreement,
        "scores": {score.name: _score_json(score) for score in found.scores},
        "pairs": [
            {"key": row.key, "caption": row.caption, "seed": row.seed, "values": _values_json(found, n)}
            for n, row in enumerate(found.rows)
        ],
        "notes": list(found.notes),
        "request": asdict(found.request),
        "environment": found.environment,
        "seconds": round(found.seconds, 1),
    }


def _score_json(score: Score) -> dict[str, Any]:
    of_rows = score.rows or score.name == "controllability"
    ways = {way: _summary_json(value) if of_rows else value.mean for way, value in score.of.items()}
    return {"title": score.title, "better": score.better, "ways": ways}


def _summary_json(value: Summary) -> dict[str, float | None]:
    """Return mean and error; null where there are too few pairs to know one."""
    return {"mean": value.mean, "error": value.error if math.isfinite(value.error) else None}


def _values_json(found: Evaluation, row: int) -> dict[str, dict[str, float]]:
    return {
        score.name: {way: float(values[row]) for way, values in score.rows.items()}
        for score in found.scores
        if score.rows
    }
