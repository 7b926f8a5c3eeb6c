"""Annotators: one a file, each turning a picture into the drawing that a control wants to see.

`base.py` says what an annotator is, `maps.py` how a finished drawing is resized; the other files are the annotators.
"""

from disegno.core.registry import Registry

ANNOTATORS = Registry(
    "annotator", "disegno.annotators", "disegno.annotators", not_members=frozenset({"__init__", "base", "maps"})
)
