"""What makes a condition from a picture: an annotator of the registry, or a function in a file of one's own."""

import ast
import hashlib
import importlib.util
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import TypeAdapter

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import annotate_at, make_params
from disegno.core.errors import BadImage, RequestError
from disegno.core.request import Scalar
from disegno.engine.pictures import to_rgb
from disegno.training.pairs import Picture


@dataclass(frozen=True)
class Annotate:
    """An annotator with all its parameters. `resolution`: of the short side it is shown; None is the picture's own."""

    name: str
    params: Mapping[str, Scalar]
    resolution: int | None = None

    @classmethod
    def of(cls, name: str, params: Mapping[str, Scalar], resolution: int | None = None) -> "Annotate":
        """Return it with checked parameters, those not given at their defaults. Raises RequestError."""
        module = ANNOTATORS.load(name)
        checked = make_params(module, params)
        every = cast("dict[str, Scalar]", TypeAdapter(type(checked)).dump_python(checked))
        return cls(name.lower().replace("_", "-"), every, resolution)

    @property
    def identity(self) -> str:
        """Return all that decides a drawing, as text."""
        return json.dumps([self.name, dict(self.params), self.resolution], sort_keys=True)

    @cached_property
    def _checked(self) -> object:
        return make_params(ANNOTATORS.load(self.name), self.params)

    def prepare(self) -> None:
        """Load the annotator."""
        assert self._checked is not None

    def __call__(self, picture: Picture) -> Picture:
        return annotate_at(ANNOTATORS.load(self.name), picture, self._checked, self.resolution)


@dataclass(frozen=True)
class Script:
    """A Python file with `def condition(image) -> image`: uint8 RGB (h w 3) in, the same size out.

    It is the person's own code, named by them: it is run, unlike anything that a data set or a file of weights holds.
    """

    path: Path
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Script":
        """Return the script, read but not run. Raises RequestError where it is no Python, or lacks the function."""
        try:
            text = path.read_bytes()
            tree = ast.parse(text, path.name)
        except OSError as error:
            raise RequestError(f"{path} cannot be read ({error.strerror}). Give a Python file.") from error
        except (SyntaxError, ValueError) as error:
            raise RequestError(f"{path.name} is not Python: {error}.") from error
        if not any(isinstance(node, ast.FunctionDef) and node.name == "condition" for node in tree.body):
            raise RequestError(f"{path.name} has no function `def condition(image)`. Write one that returns an image.")
        return cls(path.resolve(), hashlib.sha256(text).hexdigest())

    @property
    def identity(self) -> str:
        """Return what decides a drawing, as text."""
        return f"{self.path.name} {self.sha256}"

    @cached_property
    def _function(self) -> Callable[[Picture], object]:
        """The function, from the file as it was when it was first read. Raises RequestError."""
        if Script.of(self.path).sha256 != self.sha256:
            raise RequestError(f"{self.path.name} was changed while it was used. Begin again.")
        spec = importlib.util.spec_from_file_location("_condition_of_ones_own", self.path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # somebody's own code may raise anything
            raise RequestError(f"{self.path.name} cannot be loaded: {_where(error, self.path)}") from error
        return module.condition

    def prepare(self) -> None:
        """Load the function. Raises RequestError."""
        assert callable(self._function)

    def __call__(self, picture: Picture) -> Picture:
        """Return the condition. Raises BadImage, saying what the function did."""
        try:
            drawing = np.asarray(self._function(picture.copy()))
        except Exception as error:  # somebody's own code may raise anything
            raise BadImage(f"{self.path.name} failed: {_where(error, self.path)}") from error
        if drawing.dtype == np.bool_:
            drawing = drawing.astype(np.uint8) * 255
        if drawing.dtype != np.uint8 or drawing.ndim not in (2, 3) or drawing.shape[:2] != picture.shape[:2]:
            raise BadImage(
                f"{self.path.name} returned {drawing.dtype} of shape {drawing.shape}; for this picture it must return "
                f"uint8 of shape {picture.shape[:2]} or {picture.shape}."
            )
        return to_rgb(drawing)


def _where(error: Exception, path: Path) -> str:
    """Return an error in a script as one line, with the script's line that it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{type(error).__name__}: {error}{f' (line {lines[-1]})' if lines else ''}"[:500]
