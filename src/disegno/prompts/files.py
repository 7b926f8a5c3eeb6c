"""The files that prompts may name, in folders that a person chose: `styles.csv`, and wildcards below `wildcards/`."""

import csv
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from disegno.core.errors import RequestError, UnknownName
from disegno.prompts.styles import Style, read_styles

MAX_FILE_BYTES = 32 << 20
STYLES_FILE = "styles.csv"
# Where wildcards lie in a folder of A1111: of the program, and of its two well-known extensions.
WILDCARD_FOLDERS = (
    "wildcards",
    "extensions/stable-diffusion-webui-wildcards/wildcards",
    "extensions/sd-dynamic-prompts/wildcards",
)


@dataclass(frozen=True)
class PromptFiles:
    """The styles and wildcards below some folders; read when they are first asked for. The first folder wins."""

    folders: tuple[Path, ...] = ()
    _lines: dict[str, list[str]] = field(default_factory=dict[str, list[str]], repr=False, compare=False)

    @cached_property
    def styles(self) -> Mapping[str, Style]:
        """Return every style by its name. Raises RequestError where a file cannot be read."""
        found: dict[str, Style] = {}
        for folder in self.folders:
            if (file := folder / STYLES_FILE).is_file():
                found = {style.name: style for style in _styles(file)} | found
        return found

    def chosen(self, names: Iterable[str]) -> list[Style]:
        """Return the styles of these names, in this order. Raises UnknownName."""
        for name in (names := list(names)):
            if name not in self.styles:
                raise UnknownName.of("style", name, self.styles, self._remedy())
        return [self.styles[name] for name in names]

    def _remedy(self) -> str:
        folders = ", ".join(str(folder) for folder in self.folders) or "there is none"
        return f"Styles are lines of {STYLES_FILE} in a prompt folder ({folders}); DISEGNO_PROMPT_DIRS names others."

    @cached_property
    def wildcards(self) -> Mapping[str, Path]:
        """Return the file of every wildcard by its name: its path below the folder, with /, without .txt."""
        found: dict[str, Path] = {}
        for root in (folder / below for folder in self.folders for below in WILDCARD_FOLDERS):
            for file in sorted(root.rglob("*.txt")):
                found.setdefault(file.relative_to(root).with_suffix("").as_posix(), file)
        return found

    def lines(self, name: str) -> list[str]:
        """Return what a wildcard may become; `*` in its name stands for anything. Empty where there is none.

        Empty lines and lines that begin with # are left out.
        """
        if name not in self._lines:
            names = fnmatch.filter(self.wildcards, name) if "*" in name else [name] if name in self.wildcards else []
            lines = (line.strip() for each in names for line in _text(self.wildcards[each]).splitlines())
            self._lines[name] = [line for line in lines if line and not line.startswith("#")]
        return self._lines[name]


def _styles(file: Path) -> list[Style]:
    try:
        return read_styles(_text(file))
    except csv.Error as error:
        raise RequestError(
            f"{file} is no table of styles ({error}). Its columns: name,prompt,negative_prompt."
        ) from error


def _text(file: Path) -> str:
    try:
        if (size := file.stat().st_size) > MAX_FILE_BYTES:
            raise RequestError(f"{file} has {size} bytes; at most {MAX_FILE_BYTES} are read. Make it smaller.")
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} cannot be read as text ({error}). Write it in UTF-8.") from error
