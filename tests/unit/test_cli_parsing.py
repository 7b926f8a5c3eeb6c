"""The command line's small languages."""

from pathlib import Path

import click
import pytest

from disegno.cli.fields import request_options
from disegno.cli.generate import output_paths, parse_control, parse_size
from disegno.core.errors import RequestError

pytestmark = pytest.mark.unit


def test_a_control_is_read_with_its_keys_and_the_annotators() -> None:
    unit = parse_control("canny=a, b=c.png,strength=0.5,annotate=none,low=80,fast=true,base=b.ckpt")
    assert unit == {
        "name": "canny", "image": "a, b=c.png", "strength": 0.5, "annotate": "none", "base": "b.ckpt",
        "params": {"low": 80, "fast": True},
    }  # fmt: skip


@pytest.mark.parametrize("bad", ["canny", "=a.png", "canny=", "canny=a.png,strength=much"])
def test_a_bad_control_is_refused(bad: str) -> None:
    with pytest.raises(RequestError, match="--control"):
        parse_control(bad)


@pytest.mark.parametrize("text, size", [("512x768", (512, 768)), ("64×64", (64, 64))])
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


def test_a_bad_size_is_refused() -> None:
    with pytest.raises(RequestError, match="WIDTHxHEIGHT"):
        parse_size("512")


def test_names_without_out_never_overwrite(tmp_path: Path) -> None:
    from disegno.core.request import Request
    from disegno.core.result import Result

    result = Result(images=(), request=Request(prompt="A red car!"), seeds=(7,))
    first = output_paths(tmp_path, result, [0])
    assert first == [tmp_path / "a-red-car-7.png"]
    first[0].touch()
    assert output_paths(tmp_path, result, [0]) == [tmp_path / "a-red-car-7-2.png"]


def test_options_of_lists_repeat_and_claims_are_flags() -> None:
    seen: dict[str, object] = {}

    @click.command()
    @request_options(exclude={"loras"})
    def command(**given: object) -> None:
        seen.update(given)

    command.main(["--style", "a", "--style", "b", "--no-pad-texts"], standalone_mode=False)
    assert (seen["styles"], seen["prompts"], seen["pad_texts"], seen["old_timelines"]) == (
        ("a", "b"),
        None,
        False,
        None,
    )
