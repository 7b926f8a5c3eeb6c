"""IP-Adapter (Ye et al. 2023, arXiv 2308.06721): a picture as a prompt.

What CLIP sees in the picture becomes tokens, which every cross-attention of the model reads apart from the text, by
keys and values of their own; both outputs are added. Tokens, keys and values depend on the picture only: they are made
once. The rows of the negative prompt read those of nothing seen: a zero embedding, or what CLIP sees in a zero picture.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig

from disegno.controls._depths import depths_of
from disegno.controls._ip_nets import IpNet
from disegno.controls._net import weight_of
from disegno.controls.base import (
    Body,
    Condition,
    Control,
    Host,
    Layers,
    add_image_prompts,
    attention_layers,
    in_order,
    key_of,
)
from disegno.core.errors import KeyMismatch, ModelFileError, WrongFamily
from disegno.diffusion.call import Call, ImagePrompt
from disegno.memory import Memory
from disegno.text.clip_vision import ClipVision, find_clip_vision, open_clip_vision
from disegno.weights.card import FileCard
from disegno.weights.ip_adapter_files import FACE_ID, MECHANISM, Form, IpFile, read_ip

families = ("sd1", "sd2", "sdxl", "diorama")
settings = ("clip", "model_dirs")  # what `open` wants of the settings
wants = ("vision",)  # what `open` wants of the process

# What reads pictures for an adapter, by the numbers that its projection reads: of an embedding, of a hidden state
_EMBEDDING = {768: "CLIP ViT-L/14", 1024: "CLIP ViT-H/14", 1280: "CLIP ViT-bigG/14"}
_HIDDEN = {1024: "CLIP ViT-L/14", 1280: "CLIP ViT-H/14", 1664: "CLIP ViT-bigG/14"}
# Where h94/IP-Adapter keeps the one that is asked for, by its name above
_FROM = {"CLIP ViT-H/14": "models/image_encoder", "CLIP ViT-bigG/14": "sdxl_models/image_encoder"}
_BESIDE = ("image_encoder", "clip_vision", "models/image_encoder", "models/clip_vision", "sdxl_models/image_encoder")
_DOWNLOADS = "annotator/downloads/clip_vision"
_A1111 = (_DOWNLOADS, f"extensions/sd-webui-controlnet/{_DOWNLOADS}", "models/ControlNetPreprocessor/clip_vision")


def recognises(card: FileCard) -> bool:
    """Return whether the file is an IP-Adapter; `open` says that FaceID's cannot be used."""
    return card.mechanism in (MECHANISM, FACE_ID)


@dataclass(frozen=True)
class Places:
    """Where an adapter is read in a net: its cross-attentions by name, and the residual that each counts as."""

    names: tuple[str, ...]
    depths: tuple[int, ...]
    num_residuals: int


def places_of(backbone: Body) -> Places:
    """Return a backbone's cross-attentions: the encoder's, the decoder's, the middle's last, as files have them."""
    depths = depths_of(backbone.net)
    names = in_order(name for name, _ in backbone.net.named_modules() if name.endswith(".attn2"))
    return Places(tuple(names), tuple(depths.of(name) for name in names), depths.num_residuals)


@dataclass(frozen=True, eq=False)
class IpControl:
    """A prepared picture. `positive`, `negative`: what the rows of the prompt and of the negative prompt read."""

    net: IpNet
    positive: ImagePrompt
    negative: ImagePrompt
    key: str
    sees_x: bool = True  # nothing to share: keys and values are made once
    positive_only: bool = False

    def __call__(self, call: Call) -> Call:
        """Return the call with the picture beside every row's text."""
        return add_image_prompts(call, [self.positive if row.positive else self.negative for row in call.rows])

    def mixed(self, others: Sequence[Control], weights: Sequence[float]) -> Control | None:
        """Return the mean of several pictures' tokens, by these weights: their keys' and values', which are linear.

        A1111 parity: several pictures of a unit. None where they are of another file.
        """
        each = [self, *(other for other in others if isinstance(other, IpControl) and other.net is self.net)]
        if len(each) <= len(others):
            return None
        shares = [weight / sum(weights) for weight in weights]
        key = key_of(*(f"{one.key} {share}" for one, share in zip(each, shares, strict=True)))
        return IpControl(self.net, _mean([one.positive for one in each], shares), self.negative, key)


def _mean(prompts: Sequence[ImagePrompt], shares: Sequence[float]) -> ImagePrompt:
    def mean(name: str, which: int) -> Tensor:
        parts = [prompt.read[name][which] for prompt in prompts]
        weighed = [part.float() * share for part, share in zip(parts, shares, strict=True)]
        return torch.stack(weighed).sum(0).to(parts[0])

    return replace(prompts[0], read={name: (mean(name, 0), mean(name, 1)) for name in prompts[0].read})


@dataclass(frozen=True)
class Eye:
    """What an adapter needs of a CLIP: `hidden` states of this width, or else embeddings; and where it may lie.

    `open`: opens it; where one is open already, gives that.
    """

    name: str
    hidden: bool
    width: int
    places: tuple[Path, ...]
    open: Callable[[Path], ClipVision]

    def fits(self, config: CLIPVisionConfig) -> bool:
        """Return whether a CLIP gives what the adapter reads."""
        return self.width == (config.hidden_size if self.hidden else config.projection_dim)

    def found(self) -> ClipVision:
        """Return the CLIP. Raises ModelFileError where none is found."""
        path = find_clip_vision(self.places, self.fits)
        if path is not None:
            return self.open(path)
        known = (_HIDDEN if self.hidden else _EMBEDDING).get(self.width, "the CLIP that it was trained with")
        what = "hidden states" if self.hidden else "embeddings"
        raise ModelFileError(
            f"{self.name} sees pictures by {known} ({what} of {self.width} numbers), which was not found. Put it beside"
            f" the adapter: as the folder image_encoder (h94/IP-Adapter's {_FROM.get(known, 'models/image_encoder')},"
            " with config.json), or as a file in the folder clip_vision; or name it in the setting clip (DISEGNO_CLIP)."
        )


@dataclass(frozen=True, eq=False)
class IpController:
    """An adapter, open. `places`: where it is read."""

    name: str
    form: Form
    net: IpNet
    places: Places
    eye: Eye
    fingerprint: str
    annotator: str | None = None
    looks: bool = True

    @cached_property
    def vision(self) -> ClipVision:
        """The CLIP that looks, found when it is first asked. Raises ModelFileError."""
        return self.eye.found()

    def layers(self, task: str) -> Layers:
        """Return what a unit's layers weigh: the cross-attentions."""
        return attention_layers(self.places.names)

    @torch.no_grad()
    def prepare(self, condition: Condition) -> IpControl:
        """Return the control for one picture, of any size. Raises ModelFileError where no CLIP is found that fits."""
        positive = self._prompt(self._seen(self.vision.shown(condition.image)))
        return IpControl(self.net, positive, self.nothing, key_of(MECHANISM, self.fingerprint, condition.key))

    @cached_property
    def nothing(self) -> ImagePrompt:
        """What the rows of the negative prompt read."""
        if self.form == "plain":
            return self._prompt(torch.zeros(1, self.eye.width))
        size = self.vision.size
        return self._prompt(self._seen(torch.zeros(1, 3, size, size)))

    def _seen(self, shown: Tensor) -> Tensor:
        """Return what CLIP gives for a picture, (1 e), or (1 n e)."""
        return self.vision.penultimate(shown) if self.eye.hidden else self.vision.embedding(shown)

    def _prompt(self, seen: Tensor) -> ImagePrompt:
        pairs = self.net.read(seen.to(weight_of(self.net)))
        read = {name: (keys[0], values[0]) for name, (keys, values) in zip(self.places.names, pairs, strict=True)}
        return ImagePrompt(read, self.places.depths, self.places.num_residuals)


def open(
    path: Path,
    backbone: Host,
    memory: Memory,
    clip: Path | None = None,
    model_dirs: Sequence[Path] = (),
    vision: Callable[[Path], ClipVision] | None = None,
) -> IpController:
    """Return the adapter in this file. `clip`, `model_dirs`: where a CLIP may lie, apart from the places beside it.

    `vision`: opens one; unset, it is opened for this adapter alone. Raises WrongFamily, UnknownKind, KeyMismatch,
    CorruptFile.
    """
    file, places = read_ip(path), places_of(backbone)
    _check_fits(path.name, file, places, backbone)
    shapes = {name: tuple(tensor.shape) for name, tensor in file.tensors.items()}

    def make() -> IpNet:
        try:
            return IpNet(file.form, shapes, file.pairs)
        except (KeyError, IndexError) as error:
            raise KeyMismatch(f"{path.name} is an incomplete IP-Adapter: it lacks {error}. Fetch it again.") from error

    net = memory.build(make, file.tensors, path.name)
    where = tuple(_places(path, clip, model_dirs))
    opened = vision or partial(open_clip_vision, memory=memory, dtype=memory.policy.dtype)
    eye = Eye(path.stem, file.form != "plain", file.seen, where, opened)
    return IpController(path.stem, file.form, net, places, eye, file.sha256)


def _check_fits(name: str, file: IpFile, places: Places, backbone: Body) -> None:
    """Raise WrongFamily where the adapter was made for a net of other cross-attentions."""
    layers = [backbone.net.get_submodule(f"{place}.to_k") for place in places.names]
    given = [(out, width) for _, out, width in file.pairs]
    wanted = [(int(str(layer.out_features)), int(str(layer.in_features))) for layer in layers]
    if given != wanted:
        told = [f"{len(pairs)} cross-attentions, text of {pairs[0][1] if pairs else 0}" for pairs in (given, wanted)]
        raise WrongFamily(
            f"{name} does not fit the open model {backbone.name} ({backbone.family}): it was made for {told[0]}, with"
            f" widths {sorted({out for out, _ in given})}; the model has {told[1]}, with widths"
            f" {sorted({out for out, _ in wanted})}. Choose an adapter that was made for {backbone.family}."
        )


def _places(path: Path, clip: Path | None, model_dirs: Sequence[Path]) -> Iterator[Path]:
    """Yield where a CLIP may lie: the setting's, beside the adapter and above it, in the model folders, in A1111's."""
    if clip is not None:
        yield clip.expanduser()
    yield from sorted(file for file in path.parent.iterdir() if file.name.lower().startswith("clip"))
    for folder in (path.parent, path.parent.parent, *model_dirs):
        yield from (folder / name for name in _BESIDE)
    for folder in (*path.parents[1:4], *model_dirs, *(each.parent for each in model_dirs)):
        yield from (folder / name for name in _A1111)
