"""What is known about a file of weights without reading a tensor of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from disegno.core.errors import WrongFamily


@dataclass(frozen=True)
class FileCard:
    """A file or diffusers folder of weights. Empty text and None: the names and shapes do not tell.

    `kind`: model, control, upscaler, captioner, unet, vae, text, lora, embedding, or broken (then `problem` says why).
    `mechanism`: of a control (controlnet, ctrlora, ctrlora-base, ...), LoRA (lora, loha, ...) or upscaler. `layout`:
    whose names the tensors have. `base_sha256`: the Base ControlNet that a CtrLoRA condition was trained on. `tasks`:
    the conditions of a control that knows several, by name.
    """

    path: Path
    kind: str
    mechanism: str = ""
    family: str = ""
    layout: str = ""
    prediction: str | None = None
    rank: int | None = None
    in_channels: int | None = None
    dtype: str = ""
    num_tensors: int = 0
    num_bytes: int = 0
    name: str = ""
    annotator: str | None = None
    base_sha256: str | None = None
    tasks: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    problem: str = ""

    @property
    def called(self) -> str:
        """Return what a person calls it: a file by its name without the ending, a folder by its own.

        One of Hugging Face's cache, whose folders are named by digits, is called owner/name.
        """
        return self.name if self.path.is_dir() else self.path.stem

    @property
    def file_name(self) -> str:
        """Return the name of its file, or of its folder, without those around it."""
        return self.name if self.path.is_dir() else self.path.name

    @cached_property
    def _digest(self) -> str:
        if self.path.is_file():
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        total = hashlib.sha256()
        for path in sorted(p for p in self.path.rglob("*") if p.is_file()):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(self.path).as_posix()} {digest}\n".encode())
        return total.hexdigest()

    def sha256(self) -> str:
        """Return the hash of the file's bytes, in hex; of a folder, of its files' names and hashes. Worked out once."""
        return self._digest


def require_family(card: FileCard, family: str) -> None:
    """Raise WrongFamily where the file is for another family than the open model. One that does not tell passes."""
    if card.family in ("", family):
        return
    raise WrongFamily(
        f"{card.path.name} is for {card.family}, the open model is {family}. "
        f"Choose {_a(family)} {card.kind} or {_a(card.family)} model."
    )


def _a(word: str) -> str:
    return f"an {word}" if word.startswith(("sd", "a", "e", "i", "o")) else f"a {word}"
