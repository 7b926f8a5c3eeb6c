"""From what is written to what is read: styles, wildcards, comments, LoRA tags, parts, schedules; and what is said."""

from pathlib import Path
from time import perf_counter

import pytest

from disegno.core.errors import RequestError, UnknownName
from disegno.core.request import LoraUse, make_request
from disegno.prompts.files import MAX_FILE_BYTES, PromptFiles
from disegno.prompts.networks import Tag, cut_tags, lora_of
from disegno.prompts.reading import Steps, Written, read, write_out
from disegno.prompts.schedule import Span, schedule
from disegno.prompts.styles import Style, read_styles
from disegno.prompts.wildcards import fill_wildcards

pytestmark = pytest.mark.unit

STYLES = '\ufeffname,prompt,negative_prompt\nPhoto,"photo of {prompt}, 35mm",drawing\n--- mine ---,,\nNoir,noir,\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "styles.csv").write_text(STYLES, "utf-8")
    cards = tmp_path / "wildcards"
    (cards / "animals").mkdir(parents=True)
    (cards / "colour.txt").write_text("# shades\nred\n\n  blue  \ngreen\n", "utf-8")
    (cards / "animals" / "cat.txt").write_text("tabby\n__colour__ cat\n", "utf-8")
    (cards / "animals" / "dog.txt").write_text("beagle\n", "utf-8")
    (cards / "loop.txt").write_text("a __loop__\n", "utf-8")
    (cards / "twice.txt").write_text("__twice____twice__\n", "utf-8")
    return tmp_path


def _filled(text: str, folder: Path, seed: int = 1) -> str:
    return fill_wildcards(text, seed, "prompt", PromptFiles((folder,)))[0]


# ---- wildcards


def test_a_seed_decides_the_lines(folder: Path) -> None:
    made = [_filled("a __colour__ car, __colour__ sky", folder, seed) for seed in range(40)]
    assert made == [_filled("a __colour__ car, __colour__ sky", folder, seed) for seed in range(40)]
    colours = ("red", "blue", "green")
    assert set(made) == {f"a {a} car, {b} sky" for a in colours for b in colours}


def test_the_choice_is_this_one_on_every_machine(folder: Path) -> None:
    made = [_filled("__colour__", folder, seed) for seed in range(8)]
    assert made == ["green", "red", "green", "red", "blue", "red", "red", "red"]


def test_lines_may_hold_wildcards_and_names_may_be_paths_and_patterns(folder: Path) -> None:
    assert _filled("__animals/dog__", folder) == "beagle"
    several = {_filled("__animals/*__", folder, seed) for seed in range(60)}
    assert several == {"tabby", "beagle", "red cat", "blue cat", "green cat"}


@pytest.mark.parametrize("text", ["__init__", "a__b", "____", "__", "_a_", "__ a__", "__a b __", "__../styles__"])
def test_what_names_no_file_stays(text: str, folder: Path) -> None:
    assert _filled(text, folder) == text


def test_an_unknown_wildcard_is_said_with_near_ones(folder: Path) -> None:
    text, warnings = fill_wildcards("__color__ and __color__", 1, "prompt", PromptFiles((folder,)))
    assert text == "__color__ and __color__"
    assert warnings == ["There is no wildcard 'color': __color__ was taken as text. Near: colour."]


@pytest.mark.parametrize("text", ["__loop__", "__twice__"])
def test_wildcards_without_end_are_an_error(text: str, folder: Path) -> None:
    with pytest.raises(RequestError, match=r"without end|more than"):
        _filled(text, folder)


def test_a_prompt_and_its_negative_choose_apart(folder: Path) -> None:
    made = [write_out("__colour__", "__colour__", (), seed, PromptFiles((folder,))) for seed in range(20)]
    assert {written.prompt == written.negative for written in made} == {True, False}


def test_files_that_are_no_text_are_said(tmp_path: Path) -> None:
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards" / "bad.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(RequestError, match="cannot be read as text"):
        _filled("__bad__", tmp_path)
    (tmp_path / "styles.csv").write_text("name,prompt\na," + "x" * 200_000, "utf-8")
    with pytest.raises(RequestError, match="no table of styles"):
        PromptFiles((tmp_path,)).chosen(["a"])


# ---- styles


def test_styles_are_read_and_dividers_are_not(folder: Path) -> None:
    photo = Style("Photo", "photo of {prompt}, 35mm", "drawing")
    assert read_styles(STYLES) == [photo, Style("Noir", "noir", "")]
    written = write_out("a cat", "ugly", PromptFiles((folder,)).chosen(["Photo", "Noir"]), 1, PromptFiles())
    assert (written.prompt, written.negative) == ("photo of a cat, 35mm, noir", "ugly, drawing")


def test_old_files_call_the_prompt_text() -> None:
    assert read_styles("name,text\nold,oil painting\n") == [Style("old", "oil painting")]


def test_an_unknown_style_is_an_error_with_near_ones(folder: Path) -> None:
    with pytest.raises(UnknownName, match=r"There is no style named 'photos'\. Choose one of: Photo"):
        PromptFiles((folder,)).chosen(["photos"])


# ---- reading


def test_what_is_written_out_stays_when_written_out_again(folder: Path) -> None:
    files = PromptFiles((folder,))
    once = write_out("a __animals/*__ # comment\nin [rain:snow:0.5]", "__none__", files.chosen(["Photo"]), 3, files)
    again = write_out(once.prompt, once.negative, (), 99, PromptFiles())
    assert (again.prompt, again.negative) == (once.prompt, once.negative)


def test_a_prompt_is_read_into_parts_spans_and_loras() -> None:
    wording = read(Written("a [cat:dog:0.5] <lora:ink:0.8> AND rain:0.5", "[blur:]"), Steps(10))
    first, second = wording.parts
    assert first.spans == (Span(5, "a cat"), Span(10, "a dog"))
    assert (second.spans, second.weight) == ((Span(10, " rain"),), 0.5)
    assert wording.negative.spans == (Span(10, "[blur:]"),)
    assert wording.loras == (LoraUse(name="ink", strength=0.8, text_strength=0.8),)
    assert wording.warnings == ()


def test_doubts_are_said() -> None:
    wording = read(Written("a clock at 10:30 <hypernet:x:1>", "<lora:a:1>"), Steps(4))
    assert [part.weight for part in wording.parts] == [30]
    assert len(wording.warnings) == 3
    assert (
        "kind 'hypernet'" in wording.warnings[0] and ":30" in wording.warnings[1] and "negative" in wording.warnings[2]
    )
    escaped = read(Written(r"a clock at 10\:30", ""), Steps(4))
    assert [(part.spans[0].text, part.weight) for part in escaped.parts] == [(r"a clock at 10\:30", 1.0)]
    assert escaped.warnings == ()


@pytest.mark.parametrize(
    ("tag", "net", "text", "rank"),
    [
        ("<lora:x>", 1.0, 1.0, None),
        ("<lora:x:0.5>", 0.5, 0.5, None),
        ("<lora:x:0.5:0.7>", 0.7, 0.5, None),
        ("<lora:x:te=0.5:unet=0.7:dyn=8>", 0.7, 0.5, 8),
        ("<lora:x:unet=0.7>", 0.7, 1.0, None),
        ("<lyco:x:-1:0:4>", 0.0, -1.0, 4),
    ],
)
def test_weights_of_a_lora(tag: str, net: float, text: float, rank: int | None) -> None:
    (only,) = cut_tags(tag)[1]
    assert lora_of(only) == LoraUse(name="x", strength=net, text_strength=text, rank=rank)


@pytest.mark.parametrize(
    "items", [("x", "strong"), ("x", "99"), ("x", "nan"), ("x", "te=a"), ("",), ("x", "1", "1", "0")]
)
def test_a_lora_that_cannot_be_read_is_an_error(items: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        lora_of(Tag("lora", items))


def test_numbers_beyond_all_reason_are_no_error() -> None:
    assert schedule("[a:b:1e999]", 4) == [Span(4, "a")]
    assert schedule("[a:b:-1e999]", 4) == [Span(4, "b")]


def test_a_second_pass_goes_on_where_the_first_ended() -> None:
    steps = Steps(20, 10)
    assert steps.spans("[a:b:1.5]") == (Span(5, "a"), Span(10, "b"))
    assert steps.spans("[a:b:25]") == (Span(5, "a"), Span(10, "b"))


def test_one_prompt_for_each_image() -> None:
    make_request({"prompts": ("a", "b"), "batch": 2})
    with pytest.raises(RequestError, match="2 prompts for a batch of 3"):
        make_request({"prompts": ("a", "b"), "batch": 3})


def test_large_files_of_wildcards_take_a_moment_and_larger_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "wildcards").mkdir()
    file = tmp_path / "wildcards" / "big.txt"
    file.write_text("a word of a large file\n" * 450_000)  # 10 MB
    began = perf_counter()
    assert _filled("__big__ " * 1000, tmp_path) == "a word of a large file " * 1000
    assert perf_counter() - began < 5  # measured: 0.2 s
    file.write_bytes(b"a\n" * (MAX_FILE_BYTES // 2 + 1))
    with pytest.raises(RequestError, match=r"big\.txt has \d+ bytes; at most"):
        _filled("__big__", tmp_path)


def test_a_prompt_has_a_largest_length(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="more than 1048576 characters"):
        _filled("a" * (1 << 20) + "b", tmp_path)
