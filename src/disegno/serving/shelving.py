"""What a worker does with files of the library: it reads one whole, or writes one in another form, with its card."""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disegno.core.errors import CorruptFile, UnknownName
from disegno.core.result import Progress
from disegno.serving.faults import without_paths
from disegno.serving.runners import Bench, Running
from disegno.serving.shelf import ExportRequest, FileKind, VerifyRequest
from disegno.serving.words import Outcome, StoredFile
from disegno.weights.built_in import shipped_file
from disegno.weights.card import FileCard
from disegno.weights.card_text import card_text
from disegno.weights.convert import convert
from disegno.weights.finite import not_finite
from disegno.weights.identify import identify
from disegno.weights.library import SUFFIXES
from disegno.weights.load import open_file
from disegno.weights.tensor_file import TensorFile
from disegno.weights.verify import require_parts

_AT_ONCE = 32  # tensors that are looked at between two words of progress


def find_card(bench: Bench, name: str, kind: FileKind | None) -> FileCard:
    """Return the card of a file of the library, or of one that the built-in model ships. Raises UnknownName."""
    if (shipped := shipped_file(name, kind)) is not None:
        return identify(shipped)
    cards = [card for card in bench.studio.library.cards(kind) if card.kind != "unknown"]
    library = bench.studio.library
    if (found := library.pick(name, cards)) is None:
        raise UnknownName.of("file", name, library.called(cards))
    if found.problem:
        raise CorruptFile(found.problem)
    return found


def _parts(path: Path) -> list[Path]:
    """Return the files of weights of a card's path, a diffusers folder's one after another."""
    return sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]


# ---- verify


def verify(request: VerifyRequest, bench: Bench) -> Running:
    """Read all of a file: facts name each part's hash. Fails where something is wrong with it."""
    card = find_card(bench, request.name, request.kind)
    told: list[dict[str, Any]] = []
    require_parts(card)
    for path in _parts(card.path):
        with open_file(path) as opened:
            yield from _require_finite(opened)
            told.append({"file": path.name, "sha256": opened.sha256(), "tensors": len(opened.keys())})
    if request.sha256 is not None and not (digest := card.sha256()).startswith(request.sha256.lower()):
        raise CorruptFile(f"{card.path.name} has the sha256 {digest}, not {request.sha256}. Fetch it again.")
    facts: dict[str, Any] = {"name": request.name, "kind": card.kind, "bytes": card.num_bytes, "parts": told}
    return Outcome((), (), facts)


def _require_finite(opened: TensorFile) -> Iterator[Progress]:
    """Yield progress over a file's tensors. Raises CorruptFile naming those that hold NaN or an infinity."""
    keys, bad = opened.keys(), list[str]()
    for begin in range(0, len(keys), _AT_ONCE):
        yield Progress(begin, len(keys), "verifying")
        bad += [name for name in keys[begin : begin + _AT_ONCE] if not_finite({name: opened.tensor(name)})]
    if bad:
        shown = ", ".join(bad[:4]) + (", ..." if len(bad) > 4 else "")
        told = f"{len(bad)} of {len(keys)} tensors hold NaN or infinite numbers: {shown}."
        raise CorruptFile(f"{opened.path.name}: {told} Use an earlier checkpoint, or fetch it again.")


# ---- export


def export(request: ExportRequest, bench: Bench) -> Running:
    """Give a file away: NAME.safetensors (or .ckpt, or .zip of a folder), and NAME.md, its card."""
    card = find_card(bench, request.name, request.kind)
    yield Progress(0, 2, "writing")
    stays = request.layout in (None, card.layout)
    left_out: tuple[str, ...] = ()
    if stays and request.format in (None, card.path.suffix.lower().lstrip(".")):
        written, source = card, card.path
    else:
        source = bench.folder / f"{card.path.stem}.{request.format or 'safetensors'}"
        done = convert(card.path, source, request.layout)
        written, left_out = done.card, done.left_out
    yield Progress(1, 2, "writing")
    file = _given(source, bench)
    text = card_text(written, written.sha256())
    note = bench.write(f"{card.path.stem}.md", "card", text.encode(), "text/markdown; charset=utf-8")
    facts: dict[str, Any] = {"name": request.name, "kind": written.kind, "layout": written.layout}
    warnings = (f"Left out: {', '.join(left_out[:8])}{' ...' if len(left_out) > 8 else ''}",) if left_out else ()
    return Outcome((file, note), tuple(without_paths(warning) for warning in warnings), facts)


def _given(source: Path, bench: Bench) -> StoredFile:
    """Return a file or a folder as one file of the job; a folder as a zip that packs nothing."""
    if not source.is_dir():
        return bench.copy(source, "weights", "application/octet-stream")
    packed = bench.folder / f"{source.stem}.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as out:
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            out.write(path, Path(source.stem) / path.relative_to(source))
    if source.is_relative_to(bench.folder):
        shutil.rmtree(source)
    return bench.copy(packed, "weights", "application/zip")
