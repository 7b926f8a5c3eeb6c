"""What a server is asked about the files of its library: to verify one, and to give one away."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from disegno.serving.bounds import check_names
from disegno.serving.settings import Limits

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)
FileKind = Literal["model", "control", "lora", "embedding", "vae", "upscaler", "captioner", "unet", "text"]


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class VerifyRequest:
    """All of a file, read: its structure, its hash, and whether every weight is a finite number."""

    name: str
    """A file of the library, by its name or its file's, or a condition or LoRA that the built-in model ships."""
    kind: FileKind | None = None
    """What kind of file, where several have the name."""
    sha256: Annotated[str | None, Field(pattern="^[0-9a-fA-F]{8,64}$")] = None
    """The hash that it should have, or its first digits."""


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class ExportRequest:
    """A file of the library as it is, or in another form, and its card beside it."""

    name: str
    """A file of the library, by its name or its file's, or a condition or LoRA that the built-in model ships."""
    kind: FileKind | None = None
    """What kind of file, where several have the name."""
    layout: Literal["ldm", "diffusers"] | None = None
    """Whose names the tensors get: the original programs', or diffusers'; unset: those that they have."""
    format: Literal["safetensors", "ckpt"] | None = None
    """In which form it is written; unset: as it is, byte for byte, where the layout stays."""


def check_verify(request: VerifyRequest, limits: Limits) -> None:
    """Refuse what is no name. Raises Refused."""
    check_names((("name", request.name),))


def check_export(request: ExportRequest, limits: Limits) -> None:
    """Refuse what is no name. Raises Refused."""
    check_names((("name", request.name),))
