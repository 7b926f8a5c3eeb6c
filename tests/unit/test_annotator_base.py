"""Reading an annotator's module: its card, its parameters, and what is wrong with them."""

from types import ModuleType

import numpy as np
import pytest

from disegno.annotators import ANNOTATORS
from disegno.annotators.base import ParamSpec, annotate_at, describe, make_params, read
from disegno.core.errors import BadImage, DisegnoError, RequestError

pytestmark = pytest.mark.unit


def test_parameters_are_described_from_their_fields() -> None:
    low, high = describe(ANNOTATORS.load("canny"))
    assert low == ParamSpec("low", "int", 100, "A weaker gradient is no edge.", 1, 255)
    assert (high.name, high.default, high.values) == ("high", 200, "1 to 255")


def test_kinds_of_parameters() -> None:
    kinds = {(name, spec.name): spec for name in ANNOTATORS for spec in describe(ANNOTATORS.load(name))}
    assert kinds["line-art", "method"].choices == ("standard", "dog")
    assert kinds["line-art", "method"].values == "standard or dog"
    assert (kinds["boxes", "boxes"].kind, kinds["boxes", "boxes"].values) == ("text", "text")
    assert (kinds["blur", "sigma"].kind, kinds["shuffle", "seed"].values) == ("float", "from 0")


def test_values_from_a_command_line_are_text() -> None:
    module = ANNOTATORS.load("line-art")
    assert make_params(module, {"width": "2.5", "method": "dog"}) == make_params(
        module, {"width": 2.5, "method": "dog"}
    )


def test_errors_say_what_was_given_and_what_is_possible() -> None:
    with pytest.raises(RequestError) as caught:
        make_params(ANNOTATORS.load("canny"), {"low": 0, "high": "x"})
    for words in ("'canny'", "given: 0", "given: 'x'", "low can be 1 to 255, and is 100 by itself", "high can be"):
        assert words in str(caught.value)
    with pytest.raises(RequestError, match=r"no parameter 'highest'. It has: high"):
        make_params(ANNOTATORS.load("canny"), {"highest": 3})
    with pytest.raises(RequestError, match=r"no parameter 'x'. It has none"):
        make_params(ANNOTATORS.load("none"), {"x": 3})


def test_a_module_that_is_no_annotator_is_named() -> None:
    module = ModuleType("somewhere.half")
    module.__dict__["TITLE"] = "Half"
    with pytest.raises(DisegnoError, match=r"somewhere.half is not an annotator: it has no SUMMARY, Params, annotate"):
        read(module)


def test_annotations_are_made_at_the_resolution() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    module = ANNOTATORS.load("canny")
    small = annotate_at(module, picture, make_params(module, {}), 100, back=False)
    assert small.shape == (100, 150, 3) and set(np.unique(small)) <= {0, 255}
    back = annotate_at(module, picture, make_params(module, {}), 100)
    assert back.shape == picture.shape and set(np.unique(back)) <= {0, 255}


def test_a_resolution_that_would_fill_the_memory_is_an_error() -> None:
    module = ANNOTATORS.load("canny")
    with pytest.raises(BadImage, match="crop it first"):
        annotate_at(module, np.zeros((1, 4000, 3), np.uint8), make_params(module, {}), 2048)
