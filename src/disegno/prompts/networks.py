"""Extra networks: <lora:name:0.8> in a prompt, cut out of the text."""

import re
from dataclasses import dataclass

from pydantic import ValidationError

from disegno.core.errors import RequestError
from disegno.core.request import LoraUse, describe

_TAG = re.compile(r"<(\w+):([^>]+)>")
LORA_KINDS = ("lora", "lyco")


@dataclass(frozen=True)
class Tag:
    """One tag: what kind, and its arguments, split at the colons; one with a single = is named."""

    kind: str
    items: tuple[str, ...]

    def __str__(self) -> str:
        return f"<{':'.join((self.kind, *self.items))}>"

    @property
    def positional(self) -> list[str]:
        """Return the arguments without a name, in order."""
        return [item for item in self.items if item.count("=") != 1]

    @property
    def named(self) -> dict[str, str]:
        """Return the arguments with a name."""
        pairs = (item.partition("=") for item in self.items if item.count("=") == 1)
        return {name: value for name, _, value in pairs}


def cut_tags(prompt: str) -> tuple[str, list[Tag]]:
    """Return the prompt without its tags, and the tags in order."""
    end = prompt.rfind(">") + 1  # none can close after the last one: without this, each "<" would look to the end
    tags = [Tag(found[1], tuple(found[2].split(":"))) for found in _TAG.finditer(prompt, 0, end)]
    return _TAG.sub("", prompt[:end]) + prompt[end:], tags


def lora_of(tag: Tag) -> LoraUse:
    """Return what a LoRA's tag asks for: <lora:name:text weight:net weight:rank>, or te=, unet= and dyn= by name.

    A1111 parity: the first weight is the text encoder's, and the net's where it has none of its own. Raises
    RequestError where a weight is no number.
    """
    given = dict(zip(("name", "te", "unet", "dyn"), tag.positional, strict=False)) | tag.named
    text = _number(tag, given.get("te", "1"))
    net = _number(tag, given["unet"]) if "unet" in given else text
    rank = int(_number(tag, given["dyn"])) if given.get("dyn") else None
    try:
        return LoraUse(name=given.get("name", "").strip(), strength=net, text_strength=text, rank=rank)
    except ValidationError as error:
        raise RequestError(f"{tag} cannot be read. {describe(error)}") from error


def _number(tag: Tag, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(
            f"{tag} cannot be read: {text!r} is no number. Write <lora:name:0.8>, or <lora:name:te=0.5:unet=0.8>."
        ) from None
