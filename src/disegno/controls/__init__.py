"""Controls: one mechanism a file; siblings never import each other."""

from disegno.core.registry import Registry

CONTROLS = Registry(
    "control mechanism",
    "disegno.controls",
    "disegno.controls",
    not_members=frozenset({"__init__", "base", "strength", "reference", "colour_fix"}),  # the last two have no file
)
