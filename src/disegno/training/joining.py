"""Several conditions of one picture as one row: what a control that sees them together learns from."""

from dataclasses import replace

from disegno.training.cache import CachedExamples, Row

CONDITION = "condition"


def name_of(task: str) -> str:
    """Return what a task's picture is called among a joined row's tensors."""
    return f"{CONDITION}.{task}"


def joined(examples: CachedExamples) -> CachedExamples:
    """Return the examples with the pairs of one target and caption as one row, in the order of their first pairs.

    The row's task is the list of its conditions: rows of one list can share a batch.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in examples.rows:
        shared = [row.tensors[name] for name in sorted(row.tensors) if name != CONDITION]
        groups.setdefault((*shared, repr(row.shape)), []).append(row)
    return replace(examples, rows=tuple(_one(rows) for rows in groups.values()))


def _one(rows: list[Row]) -> Row:
    first = rows[0]
    conditions = {name_of(row.task): row.tensors[CONDITION] for row in sorted(rows, key=lambda row: row.task)}
    shared = {name: key for name, key in first.tensors.items() if name != CONDITION}
    tasks = " ".join(sorted({row.task for row in rows}))
    return Row(tasks, first.key, first.shape, shared | conditions)
