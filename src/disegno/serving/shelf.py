"""What a server is asked about the files of its library: to fetch one, to verify one, and to give one away."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from disegno.serving.bounds import check_names
from disegno.serving.faults import Refused
from disegno.serving.settings import Limits
from disegno.weights.sources import host_of, plain_name

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


@dataclass(frozen=True, kw_only=True, config=_CONFIG)
class DownloadRequest:
    """A model, LoRA or control by address, into the first of the server's model folders."""

    source: Annotated[str, Field(min_length=1, max_length=2000)]
    """https://host/path/FILE, hf:ORG/REPO/FILE, hf:ORG/REPO (a folder of diffusers'), civitai:VERSION, or the address
    of a page of Hugging Face or Civitai."""
    name: Annotated[str | None, Field(min_length=1, max_length=200)] = None
    """What to call it, without folders; unset: as it is called there."""
    sha256: Annotated[str | None, Field(pattern="^[0-9a-fA-F]{64}$")] = None
    """The hash that the file should have; Hugging Face and Civitai say it themselves."""
    half: bool = False
    """Of a folder that has its weights twice, those of half precision."""


def check_download(request: DownloadRequest, limits: Limits) -> None:
    """Refuse what the server may not fetch, before anything is asked of anybody. Raises Refused, RequestError."""
    if not limits.download_hosts:
        told, helps = "This server fetches no models.", "Its owner can let it: disegno serve --allow-download HOST."
        raise Refused(403, "not_allowed", told, "source", helps)
    if (host := host_of(request.source)) not in limits.download_hosts:
        told = f"This server fetches nothing from {host}, but from {', '.join(limits.download_hosts)}."
        raise Refused(403, "not_allowed", told, "source", f"Its owner can let it: --allow-download {host}.")
    if request.name is not None:
        plain_name(request.name)


def check_verify(request: VerifyRequest, limits: Limits) -> None:
    """Refuse what is no name. Raises Refused."""
    check_names((("name", request.name),))


def check_export(request: ExportRequest, limits: Limits) -> None:
    """Refuse what is no name. Raises Refused."""
    check_names((("name", request.name),))
