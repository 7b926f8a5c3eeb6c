"""The command line's small languages."""

import unicodedata
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from disegno.cli.fields import request_options
from disegno.cli.main import main
from disegno.cli.output import output_paths, require_out, words_of
from disegno.cli.request import build_request, parse_control, parse_outpaint, parse_size
from disegno.cli.sections import OTHERS, Sectioned
from disegno.cli.serve import parse_accounts
from disegno.cli.teach import command as teach
from disegno.core.errors import RequestError, ResourceError
from disegno.core.request import Hires, InitImage, Outpaint, Request, Tiles

pytestmark = pytest.mark.unit


def test_a_control_is_read_with_its_keys_and_the_annotators() -> None:
    unit = parse_control("canny=a, b=c.png,strength=0.5,annotate=none,low=80,fast=true,base=b.ckpt")
    assert unit == {
        "name": "canny", "image": "a, b=c.png", "strength": 0.5, "annotate": "none", "base": "b.ckpt",
        "params": {"low": 80, "fast": True},
    }  # fmt: skip


@pytest.mark.parametrize("bad", ["=a.png", "canny=a.png,strength=much", "canny=a.png,curve=1", "canny=,layers=1:x"])
def test_a_bad_control_is_refused(bad: str) -> None:
    with pytest.raises(RequestError, match="--control"):
        parse_control(bad)


def test_curves_and_layers_of_a_control() -> None:
    unit = parse_control("canny=a.png,curve=0.2@0.1,0.5@0.3,layers=1:0.5,crop=false,region=m.png")
    assert (unit["curve"], unit["layers"], unit["crop"]) == ("0.2@0.1,0.5@0.3", (1.0, 0.5), False)


def _request(*controls: str, **given: object) -> Request:
    return build_request("a cat", None, controls, None, given)[0]


def test_a_control_without_a_picture_looks_at_the_one_that_is_changed() -> None:
    assert _request("canny", init__image="a.png").controls[0].image is None
    for bad in ("canny", "canny=", "canny=,strength=0.5"):
        with pytest.raises(RequestError, match=r"canny has no picture: .*NAME=IMAGE"):
            _request(bad)


def test_flags_of_a_part_make_the_part() -> None:
    request = _request(init__image="a.png", init__denoise=0.6, init__outpaint=parse_outpaint("left=64,top=8"))
    assert request.init == InitImage(image="a.png", denoise=0.6, outpaint=Outpaint(left=64, top=8))
    assert _request(hires__scale=2.0, hires__upscaler="Lanczos").hires == Hires(scale=2, upscaler="Lanczos")
    assert _request(tiles=True).tiles == Tiles() and _request(tiles=True, tiles__size=64).tiles == Tiles(size=64)
    assert _request(tiles__overlap=0.5).tiles == Tiles(overlap=0.5) and _request(tiles=False).tiles is None
    with pytest.raises(RequestError, match=r"denoise, mask: .*--from PICTURE"):
        _request(init__denoise=0.6, init__mask="m.png")


@pytest.mark.parametrize("bad", ["64", "left", "left=64,up=3", "left=64,,right=8"])
def test_a_bad_outpaint_is_refused(bad: str) -> None:
    with pytest.raises(RequestError, match="--outpaint"):
        parse_outpaint(bad)


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
    varied = replace(result, seeds=(7, 7, 7))  # variations of one seed
    wanted = [tmp_path / f"a-red-car-7-{n}.png" for n in (2, 3, 4)]
    assert output_paths(tmp_path, varied, [0, 1, 2]) == wanted
    (long,) = output_paths(tmp_path, Result(images=(), request=Request(prompt="a" * 300), seeds=(7,)), [0])
    long.touch()


def test_what_cannot_be_written_is_said_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_out(tmp_path / "new" / "folder" / "a.png")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("os.access", lambda path, _mode: path != tmp_path)
    with pytest.raises(ResourceError, match="cannot be written to"):
        require_out(tmp_path / "new" / "a.png")


def test_commands_that_are_told_are_quoted(tmp_path: Path) -> None:
    (folder := tmp_path / "my run").mkdir()
    done = CliRunner().invoke(teach, ["--resume", str(folder)])
    assert f"--run '{folder}'" in str(done.exception)


@pytest.mark.parametrize(
    "words, said",
    [(["--resume", ".", "--run", "other"], "leave out --run"), (["x", "--estimate", "--find-rate"], "one of them")],
)
def test_flags_of_teach_that_would_do_nothing_are_refused(words: list[str], said: str) -> None:
    assert said in str(CliRunner().invoke(teach, words).exception)


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


def test_every_flag_of_generate_has_a_section_and_words() -> None:
    from disegno.cli.generate import command

    assert isinstance(command, Sectioned)
    shown = CliRunner().invoke(command, ["--help"], terminal_width=110).output
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help and parameter.opts[0] in shown, parameter.name
            assert command.section_of(parameter.name or "") != OTHERS, (
                f"add {parameter.name} to SECTIONS in cli/generate.py"
            )
    assert shown.index("How prompts are read:") < shown.index("--clip-skip") < shown.index("Noise, guidance")


def test_keys_of_a_server_may_hold_equals_signs() -> None:
    given = ("c2VjcmV0LWtleQ==", "c2VjcmV0LWtleTE=", "anna=c2VjcmV0LWtleTEyMw==", "ben=a=b", "plain")
    assert [(account.name, account.secret) for account in parse_accounts((), given)] == [
        ("key", given[0]), ("key", given[1]), ("anna", "c2VjcmV0LWtleTEyMw=="), ("ben", "a=b"), ("key", "plain"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("A red, red car! In the_city of don't (night:1.2) and more words", "a-red-red-car-in-the"),
        ("一只红色的狐狸，在森林里", "一只红色的狐狸-在森林里"),
        ("Красная лиса в лесу", "красная-лиса-в-лесу"),
        ("लाल लोमड़ी", "लाल-लोमड़ी"),
        ("café ＡＢＣ", "café-abc"),
        ("../../etc/passwd", "etc-passwd"),
        ("CON: a\\b|c?*\0", "con-a-b-c"),
        ("狐" * 200, "狐" * 33),
        ("x" * 300, "x" * 100),
        ("🦊 ...", "picture"),
        ("", "picture"),
    ],
)
def test_a_files_name_begins_with_words_of_any_script(prompt: str, wanted: str, tmp_path: Path) -> None:
    found = words_of(Request(prompt=prompt))
    assert found == unicodedata.normalize("NFKC", wanted)
    assert len(found.encode()) <= 100
    (tmp_path / f"{found}-{2**64 - 1}-sheet-10.png").touch()


def test_in_a_locale_without_the_letters_it_is_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsencode", lambda text: text.encode("ascii"))
    assert words_of(Request(prompt="狐狸")) == "picture" and words_of(Request(prompt="a fox")) == "a-fox"


def test_too_little_memory_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other errors, which are our own faults, stay what they are."""
    errors: list[Exception] = [
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
        RuntimeError("a fault"),
    ]

    def failing(*_: object) -> None:
        raise errors.pop(0)

    monkeypatch.setattr("disegno.cli.generate.with_bar", failing)
    words = ["generate", "a cat", "-o", str(tmp_path / "a.png")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == ResourceError.exit_code
    assert "ResourceError: There was not enough memory (CUDA out of memory. Tried to allocate)." in done.stderr
    assert "--size" in done.stderr
    assert str(CliRunner().invoke(main, words).exception) == "a fault"
