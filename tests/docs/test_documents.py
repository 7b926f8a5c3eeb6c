"""Documents and code agree: examples run, the README's commands exist, every registered name is documented."""

import re
import runpy
from dataclasses import fields
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parent.parent.parent
READMES = ("README.md", "README.zh-CN.md")
EXAMPLES = sorted((ROOT / "examples").glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs_and_says_where_its_picture_is(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(example.read_text("utf-8").splitlines()) <= 40
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    written = re.findall(r"out/\S+\.png", capsys.readouterr().out)
    assert written and all((tmp_path / name).is_file() for name in written)


def _commands(text: str) -> set[str]:
    return set(re.findall(r"^ +disegno ([a-z]+)", text, re.MULTILINE))


@pytest.mark.parametrize("readme", READMES)
def test_the_readmes_commands_and_flags_exist(readme: str) -> None:
    from click.testing import CliRunner

    from disegno.cli.main import COMMANDS, main

    text = (ROOT / readme).read_text("utf-8")
    assert _commands(text) and _commands(text) <= set(COMMANDS)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("    disegno ")]
    for line in lines:
        command, second = line.split()[1:3]
        shown = CliRunner().invoke(main, [command, "--help"]).output
        if "COMMAND [ARGS]" in shown:
            shown = CliRunner().invoke(main, [command, second, "--help"]).output
        for flag in re.findall(r" (--?[a-z][a-z-]*)", line.partition("#")[0]):
            assert flag in shown, f"{line.strip()}: there is no {flag}"


def test_the_readmes_have_the_same_commands_links_and_sections() -> None:
    def told(readme: str) -> tuple[list[str], list[str], int]:
        text = (ROOT / readme).read_text("utf-8")
        commands = [line.partition("#")[0].rstrip() for line in re.findall("^    .+", text, re.MULTILINE)]
        linked = re.findall(r"\]\(([^)#:]+)\)", text)
        return commands, [link for link in linked if link not in READMES], text.count("\n## ")

    assert told(READMES[0]) == told(READMES[1])


@pytest.mark.parametrize("readme", READMES)
def test_the_makefile_has_the_readmes_targets(readme: str) -> None:
    text = (ROOT / readme).read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"`?make ([a-z]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("readme", READMES)
def test_what_the_readme_links_to_exists(readme: str) -> None:
    text = (ROOT / readme).read_text("utf-8")
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("kind", ["sampler", "annotator", "control", "backbone"])
def test_there_is_a_how_to_for_every_extension_point(kind: str) -> None:
    text = (ROOT / f"docs/howto/add-{'an' if kind[0] in 'aeiou' else 'a'}-{kind}.md").read_text("utf-8")
    assert "entry-points" in text


def test_every_setting_and_its_default_is_in_the_reference() -> None:
    from disegno.core.settings import Settings

    text = (ROOT / "docs/reference/settings.md").read_text("utf-8")
    for field in fields(Settings):
        assert f"| `{field.name}` | `DISEGNO_{field.name.upper()}` | " in text, field.name
        if isinstance(field.default, str | int):
            assert f"`DISEGNO_{field.name.upper()}` | `{field.default}` |" in text, field.name


def test_every_sampler_and_schedule_is_in_the_reference() -> None:
    from disegno.diffusion.schedules import SCHEDULES
    from disegno.samplers.catalogue import SAMPLERS

    text = (ROOT / "docs/reference/samplers.md").read_text("utf-8")
    for name in (*(spec.name for spec in SAMPLERS), *(spec.label for spec in SCHEDULES.values())):
        assert f"| {name} |" in text, name
