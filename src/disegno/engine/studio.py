"""What a process opens once and keeps: models, controls, text states, shared residuals."""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, cast

import torch

from disegno.backbones import BACKBONES
from disegno.backbones.base import Backbone, TextStates
from disegno.controls import CONTROLS
from disegno.controls.base import Condition, Control, Controller
from disegno.controls.colour_fix import open_colour_fix
from disegno.controls.reference import open_reference
from disegno.core.errors import ModelFileError, RequestError, UnknownName, WrongFamily
from disegno.core.files import path_of
from disegno.core.request import COLOUR_FIX, FILELESS, OWN_VAE, REFERENCES, ControlPass, ControlUnit, LoraUse, Request
from disegno.core.settings import Settings, load_settings
from disegno.engine.held import held_bytes
from disegno.engine.kept import Kept
from disegno.engine.opened import UNTOLD_FAMILY, Opened, brings_vae, stamped, with_vae
from disegno.engine.pictures import Limits
from disegno.engine.preview import Decoder, open_decoder
from disegno.engine.residuals import ResidualCache
from disegno.loras.apply import NO_LORAS, Loras, Worn, put_on
from disegno.loras.dialects import TEXTS
from disegno.loras.files import read_lora
from disegno.memory import Memory, decide, tune_allocator
from disegno.prompts.files import PromptFiles
from disegno.room import total_bytes
from disegno.text.learnt import LearntVectors, TextOptions, read_learnt
from disegno.upscalers import UPSCALERS
from disegno.upscalers.base import Upscaler
from disegno.weights.folders import is_folder_of_weights
from disegno.weights.identify import FileCard, identify, require_family
from disegno.weights.index import stamp_of
from disegno.weights.library import Library

if TYPE_CHECKING:
    from disegno.text.captioner import Captioner
    from disegno.text.clip_vision import ClipVision

BUILT_IN = "diorama"
_VAES_BESIDE = (".vae.safetensors", ".vae.pt", ".vae.ckpt")  # A1111 parity
MAX_TEXTS = 256
MAX_TEXT_BYTES = 256 << 20  # 256 texts of SDXL's, of two chunks each, are 310 MiB; one of 256 chunks is 155
MAX_LEARNT = 4096
MAX_LORAS = 2  # merged ones: on all of SD 1.5's layers, a copy of the UNet, 1.7 GiB in half precision
MAX_LORA_BYTES = 4 << 30  # of all merged ones; one may be larger: on SDXL's UNet 4.8 GiB
MAX_LORAS_AT_ONCE = 256
MAX_CONTROLLERS = 32
CONTROLS_SHARE = 0.3  # of a device's memory: three of SDXL, 2.3 GiB each in half precision, on a card of 24 GiB
MAX_BACKBONES = 3  # of a first pass, a hires pass and a refiner
BACKBONES_SHARE = 0.6  # of a device's memory: two of SDXL, 6.5 GiB each in half precision, on a card of 24 GiB
MAX_BASES = 2
MAX_UPSCALERS = 2
MAX_CAPTIONERS = 1
MAX_VISIONS = 1  # ViT-H, which looks for IP-Adapter, has 0.63 billion weights
MAX_CONTROLS = 4  # prepared ones: a CtrLoRA condition of SD 1.5 keeps 0.2 GiB of merged weights in bfloat16


class Studio:
    """Everything that is opened once. One generation at a time may use it; `lock` says which.

    `limits`: what pictures from outside may cost; without `paths`, requests name files by the library's names only.
    """

    def __init__(self, settings: Settings | None = None, limits: Limits | None = None) -> None:
        self.settings = settings or load_settings()
        self.limits = limits or Limits()
        tune_allocator()
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        self.memory = Memory(decide(self.settings))
        self.library = Library(self.settings)
        self.residuals = ResidualCache(self.settings.residual_cache_mib << 20)
        self.lock = RLock()
        most = self._most_bytes(CONTROLS_SHARE)
        self._backbones: Kept[Opened] = Kept(
            MAX_BACKBONES, self._forget, lambda kept: self._held(kept.all), self._most_bytes(BACKBONES_SHARE)
        )
        self._bases: Kept[Any] = Kept(MAX_BASES, self._forget_base, self._held, most)
        self._controllers: Kept[Controller] = Kept(MAX_CONTROLLERS, self._forget_controls, self._held, most)
        self._controls: Kept[tuple[Controller, Control]] = Kept(MAX_CONTROLS)
        self._previews: Kept[Decoder] = Kept(MAX_BACKBONES)
        self._upscalers: Kept[Upscaler] = Kept(MAX_UPSCALERS)
        self._visions: Kept[ClipVision] = Kept(MAX_VISIONS)
        self._captioners: Kept[Captioner] = Kept(MAX_CAPTIONERS)
        self._texts: Kept[TextStates] = Kept(MAX_TEXTS, num_bytes=_text_bytes, most_bytes=MAX_TEXT_BYTES)
        self._learnt: Kept[LearntVectors] = Kept(MAX_LEARNT)
        self._loras: Kept[tuple[Backbone, Loras]] = Kept(
            MAX_LORAS, num_bytes=lambda kept: kept[1].num_bytes, most_bytes=MAX_LORA_BYTES
        )

    def backbone(self, name: str, prediction: str | None = None, vae: str | None = None) -> Backbone:
        """Return the model of this name: the built-in one, a file or folder, or one of the library. Opened once.

        `prediction`: what its output means, instead of what its file says. Raises RequestError where it cannot be.
        `vae`: see `find_vae`. Raises ModelFileError, WrongFamily where the model cannot have it.
        """
        card = self.find_model(name)
        other = self.find_vae(vae, card)
        bare = card is not None and other is not None and not brings_vae(card)
        opened = self._opened(card, other if bare else None)
        backbone = opened.own
        if other is not None and not bare:
            backbone = opened.other(("vae", stamped(other)), lambda: with_vae(opened.own, other))
        if prediction is None:
            return backbone
        key = ("prediction", backbone.fingerprint, prediction)
        return opened.other(key, lambda: backbone.predicting(prediction))

    def _opened(self, card: FileCard | None, vae: FileCard | None) -> Opened:
        """Return the open model of a card; what its file held before it was replaced is dropped.

        `vae`: for a model that brings none.
        """
        path, stamp = (card.path, stamped(card)) if card else (None, None)
        self._backbones.drop(lambda key, one: _owner(key) == path and one.stamp != stamp)
        key = (path, None if vae is None else stamped(vae))

        def make() -> Opened:
            kept = set[str]().union(*(one.names for _, one in self._backbones.items()))
            self._drop_of(lambda name: name not in kept)  # since opened for a model that went while a job drew with it
            return Opened(self.open_model(card, self.memory, vae), stamp)

        return self._backbones.get(key, make)

    def _forget(self, opened: Opened) -> None:
        """Drop all that was opened for a model that is no longer kept, and would keep its nets in memory."""
        self._drop_of(lambda name: name in opened.names)

    def _drop_of(self, wanted: Callable[[object], bool]) -> None:
        """Drop what was opened for the models whose fingerprints `wanted` says yes to."""
        self._loras.drop(lambda key, value: wanted(value[0].fingerprint))
        for kept in (self._controllers, self._bases, self._previews):
            kept.drop(lambda key, value: wanted(_owner(key)))

    def _forget_base(self, base: object) -> None:
        """Drop the controls that stand on a Base ControlNet that is no longer kept."""
        self._controllers.drop(lambda key, value: getattr(value, "base", None) is base)

    def _forget_controls(self, controller: Controller) -> None:
        """Drop what was prepared of a control that is no longer kept."""
        self._controls.drop(lambda key, value: value[0] is controller)

    def _held(self, value: object) -> int:
        return held_bytes(value, self.memory.policy.device)

    def _most_bytes(self, share: float) -> int:
        """Return how many bytes a share of the device's memory is; without end where the device does not say."""
        total = total_bytes(self.memory.policy.device)
        return 2**63 if total is None else int(share * total)

    def backbone_of(self, request: Request) -> Backbone:
        """Return the model that a request names, with the VAE and the meaning of its output that it says."""
        return self.backbone(request.model, request.prediction, request.vae)

    def in_one_spelling(self, request: Request) -> Request:
        """Return the request without its hires pass's model where that is the first's by another name.

        Raises UnknownName, ModelFileError.
        """
        hires = request.hires
        if hires is None or hires.model in (None, request.model):
            return request
        same = self.find_model(hires.model) == self.find_model(request.model)
        return replace(request, hires=replace(hires, model=None)) if same else request

    def find_vae(self, name: str | None, model: FileCard | None) -> FileCard | None:
        """Return the card of the VAE that a model is to have; None: its own. Raises UnknownName, ModelFileError.

        `name`: a file or folder, or one of the library; "own"; None: the file beside the model's that has its name.
        """
        if name == OWN_VAE:
            return None
        if name is not None:
            return self._find(name, "vae", "VAE", [OWN_VAE])
        if model is None or model.path.is_dir():
            return None
        beside = (model.path.with_name(model.path.stem + end) for end in _VAES_BESIDE)
        return next((identify(path) for path in beside if path.is_file()), None)

    def find_model(self, name: str) -> FileCard | None:
        """Return the card of the model of this name; None is the built-in one. Raises UnknownName, ModelFileError."""
        return None if name == BUILT_IN else self._find(name, "model", "model", [BUILT_IN])

    @staticmethod
    def open_model(card: FileCard | None, memory: Memory, vae: FileCard | None = None) -> Backbone:
        """Return the model of this card (None: the built-in one), opened now with this memory. It is not kept here.

        `vae`: for a model that brings none.
        """
        if card is None:
            return BACKBONES.load(BUILT_IN).open(None, memory)
        family = card.family or UNTOLD_FAMILY
        if family not in BACKBONES:
            known = ", ".join(BACKBONES.names())
            raise WrongFamily(f"{card.path.name} is a model of {family}; the families that can be opened are: {known}.")
        if vae is None or brings_vae(card):
            return BACKBONES.load(family).open(card.path, memory)
        require_family(vae, family)
        return BACKBONES.load(family).open(card.path, memory, vae.path)

    def _find(self, name: str, kind: str, what: str, others: Iterable[str] = ()) -> FileCard:
        if not self.limits.paths and name.startswith(("/", "~")):
            raise UnknownName.of(what, Path(name).name, [*others, *self.library.called(self.library.cards(kind))])
        if self.limits.paths and (path := _path_of(name)) is not None:
            card = identify(path)
            if card.kind != kind:
                more = ", ".join(filter(None, (card.mechanism, card.family)))
                article = "an" if card.kind in ("embedding", "upscaler") else "a"
                is_what = f"{article} {card.kind}" + (f" ({more})" if more else "")
                raise ModelFileError(f"{path.name} holds {is_what}, not a {what}. Give a {what}.")
            return card
        try:
            return self.library.find(name, kind)
        except UnknownName:
            if any(name.lower() in (card.path.name.lower(), card.path.stem.lower()) for card in self.library.cards()):
                raise  # it is there, but something else
            folders = ", ".join(str(folder) for folder in self.settings.model_dirs)
            if Path(name).suffix or "/" in name:
                raise UnknownName(
                    f"There is no {what} {name!r}: it is no file here, and none in the model folders ({folders})."
                    " Put it there, or name other folders in DISEGNO_MODEL_DIRS."
                ) from None
            known = self.library.called(self.library.cards(kind))
            remedy = f"Put its file into a model folder ({folders}); DISEGNO_MODEL_DIRS names others."
            raise UnknownName.of(what, name, [*others, *known], remedy) from None

    def _find_all(self, names: Iterable[str], kind: str, what: str) -> dict[str, FileCard]:
        """Return the card of each name: as `_find`, but the folders are looked at once."""
        names = list(names)
        plain = [n for n in names if not n.startswith(("/", "~")) and not (self.limits.paths and _path_of(n))]
        found: dict[str, FileCard] = {}
        with suppress(UnknownName):  # `_find` has more to say about it
            found = self.library.find_all(plain, kind)
        return {name: found.get(name) or self._find(name, kind, what) for name in names}

    def prompt_files(self) -> PromptFiles:
        """Return the styles and wildcards, as they lie on the disk now."""
        return PromptFiles(self.settings.prompt_dirs)

    def prompt_states(self, backbone: Backbone, text: str, options: TextOptions, loras: Loras = NO_LORAS) -> TextStates:
        """Return the text states of one prompt, (1 kn d), computed once, with the LoRAs on the text encoder."""
        key = (backbone.fingerprint, loras.key if loras.change(*TEXTS) else "", text, options.key())

        def read() -> TextStates:
            with loras.on(*TEXTS):
                return backbone.read_prompt(text, options)

        return self._texts.get(key, read)

    def learnt(self, backbone: Backbone) -> tuple[list[LearntVectors], dict[str, str]]:
        """Return the library's learnt vectors that may be this model's, each read once; and why others are not.

        A file that cannot be read is one of the others: a prompt that does not name it is drawn all the same.
        """
        vectors, others = list[LearntVectors](), dict[str, str]()
        for card in self.library.cards("embedding"):
            if card.family not in ("", backbone.family):
                others[card.path.stem] = f"is for {card.family}, the open model is {backbone.family}"
                continue
            try:
                vectors.append(self._learnt.get(stamped(card), lambda card=card: read_learnt(card.path)))
            except ModelFileError as error:
                others[card.path.stem] = f"cannot be read ({str(error).rstrip('.')})"
        return vectors, others

    def loras(self, backbone: Backbone, uses: Sequence[LoraUse]) -> Loras:
        """Return these LoRAs on this model, merged once. Raises UnknownName, WrongFamily, KeyMismatch."""
        if not uses:
            return NO_LORAS
        if len(uses) > MAX_LORAS_AT_ONCE:
            raise RequestError(f"The prompt names {len(uses)} LoRAs; at most {MAX_LORAS_AT_ONCE} work at once.")
        found = self._find_loras(backbone, dict.fromkeys(use.name for use in uses))
        cards = [found[use.name] for use in uses]
        for card in cards:
            require_family(card, backbone.family)
        # they stand in for layers of these very nets: another file of the same content has nets of its own
        key = (id(backbone.net), *((stamped(card), use) for card, use in zip(cards, uses, strict=True)))

        def put() -> tuple[Backbone, Loras]:
            files = {name: read_lora(card) for name, card in found.items()}
            worn = [Worn(files[use.name], use) for use in uses]
            return backbone, put_on(backbone.lora_nets, worn)

        return self._loras.get(key, put)[1]

    def require_loras(self, backbone: Backbone, uses: Sequence[LoraUse]) -> None:
        """Raise what `loras` would of LoRAs that are not there or another family's, without opening them."""
        for card in self._find_loras(backbone, dict.fromkeys(use.name for use in uses)).values():
            require_family(card, backbone.family)

    def _find_loras(self, backbone: Backbone, names: Iterable[str]) -> dict[str, FileCard]:
        """Return the card of each LoRA: the one that the model brings, before the library's."""
        few = backbone.few_steps
        lora = few and few.lora
        own = {lora.stem: identify(lora)} if lora is not None and lora.stem in names else {}
        others = [name for name in names if name not in own]
        return own | (self._find_all(others, "lora", "LoRA") if others else {})  # without a look at the folders

    def control_card(self, unit: ControlUnit, backbone: Backbone) -> FileCard:
        """Return the card of the control that a unit names: one of the model's own, or of the library's."""
        if unit.name in backbone.conditions:
            return identify(backbone.conditions[unit.name])
        return self._find(unit.name, "control", "control", [*sorted(backbone.conditions), *FILELESS])

    def controller(self, unit: ControlUnit, backbone: Backbone, which: ControlPass = "first") -> Controller:
        """Return the open control that a unit names, for this backbone and a pass. Raises WrongFamily, UnknownName.

        Those without a file come before a file of such a name, which is meant by its path or with its ending.
        """
        if unit.name in REFERENCES:
            reference = open_reference(unit, backbone, which)
            return self._controllers.get((backbone.fingerprint, unit.name, reference.fidelity), lambda: reference)
        if unit.name == COLOUR_FIX:
            fix, how = open_colour_fix(unit, backbone, which), backbone.prediction.name
            return self._controllers.get((backbone.fingerprint, unit.name, how, fix.radius, fix.sharpness), lambda: fix)
        card = self.control_card(unit, backbone)
        require_family(card, backbone.family)
        module = self._mechanism(card)
        base = self._base_of(module, card, unit, backbone)
        files = tuple((str(path), stamp_of(path)) for path in (card.path, base) if path)
        key = (backbone.fingerprint, id(backbone.net), *files)  # some read the weights of this very net
        return self._controllers.get(key, lambda: self._open_controller(module, card, base, backbone))

    def wants_base(self, unit: ControlUnit, backbone: Backbone) -> bool:
        """Return whether a unit's control stands on a Base ControlNet of another file."""
        card = self.control_card(unit, backbone)
        module = self._mechanism(card)
        return hasattr(module, "open_base") and not module.brings_base(card)

    def control(self, controller: Controller, condition: Condition) -> Control:
        """Return the controller's control for a condition, prepared once: later seeds do not encode it again."""
        key = (id(controller), tuple(condition.image.shape), condition.key)
        return self._controls.get(key, lambda: (controller, controller.prepare(condition)))[1]

    def close_controls(self) -> None:
        """Forget every open control and all that they added; models and Base ControlNets stay open."""
        self._controllers.clear()
        self._controls.clear()
        self.residuals.clear()

    def close(self) -> None:
        """Forget everything that is open: what is wanted again is opened again."""
        self.close_controls()
        for kept in (self._backbones, self._bases, self._previews, self._upscalers, self._texts,
                     self._learnt, self._loras, self._visions, self._captioners):  # fmt: skip
            kept.clear()

    def vision(self, path: Path) -> "ClipVision":
        """Return the CLIP in a folder or a file that looks at pictures. Opened once, for all that look by it."""
        from disegno.text.clip_vision import open_clip_vision  # transformers, which others do without

        key = (path, stamp_of(path))
        return self._visions.get(key, lambda: open_clip_vision(path, self.memory, self.memory.policy.dtype))

    def preview_decoder(self, backbone: Backbone) -> Decoder:
        """Return what shows this model's latents while they are drawn. Opened once."""
        return self._previews.get(backbone.fingerprint, lambda: open_decoder(backbone, self.settings, self.memory))

    def upscaler(self, name: str) -> Upscaler:
        """Return the network of this name that enlarges pictures. Opened once. Raises UnknownName."""
        card = self._find(name, "upscaler", "upscaler")
        return self._upscalers.get(stamped(card), lambda: self._open_upscaler(card))

    def captioner(self, name: str | None = None) -> "Captioner":
        """Return the network of this name that says what pictures show; None: the library's first. Opened once.

        Raises UnknownName, ModelFileError.
        """
        from disegno.text.captioner import open_captioner  # transformers, which others do without

        if name is None:
            found = self.library.cards("captioner")
            if not found:
                raise UnknownName(
                    "There is no captioner: put the folder of one, such as Salesforce/blip-image-captioning-base,"
                    f" into a model folder ({', '.join(str(folder) for folder in self.settings.model_dirs)})."
                )
            card = found[0]
        else:
            card = self._find(name, "captioner", "captioner")
        return self._captioners.get(stamped(card), lambda: open_captioner(card.path, self.memory))

    def _open_upscaler(self, card: FileCard) -> Upscaler:
        for name in UPSCALERS:
            module = UPSCALERS.load(name)
            if module.recognises(card):
                return module.open(card.path, self.memory)
        known = ", ".join(UPSCALERS.names())
        raise ModelFileError(f"{card.path.name} is an upscaler of the kind {card.mechanism!r}; known are: {known}.")

    def _open_controller(self, module: Any, card: FileCard, base: Path | None, backbone: Backbone) -> Controller:
        if base is None:
            parts = {name: getattr(self.settings, name) for name in getattr(module, "settings", ())}
            parts |= {name: getattr(self, name) for name in getattr(module, "wants", ())}
            return module.open(card.path, backbone, self.memory, **parts)
        opened = self._bases.get(
            (backbone.fingerprint, str(base), stamp_of(base)),
            lambda: module.open_base(base, backbone, self.memory),
        )
        return module.open(card.path, backbone, self.memory, base=opened)

    @staticmethod
    def _mechanism(card: FileCard) -> Any:
        for name in CONTROLS:
            module = CONTROLS.load(name)
            if getattr(module, "recognises", None) and module.recognises(card):
                return module
        if card.mechanism == "ctrlora-base":
            raise ModelFileError(
                f"{card.path.name} is a Base ControlNet, which controls nothing alone. Name a CtrLoRA condition, and"
                " this file as its base: --control CONDITION=IMAGE,base=FILE."
            )
        raise ModelFileError(
            f"{card.path.name} is a control of the kind {card.mechanism!r}, which cannot be used yet."
            f" The kinds that can: {', '.join(CONTROLS.names())}."
        )

    def find_control(self, name: str) -> FileCard:
        """Return the card of the control of this name: a file or folder, or one of the library. Raises UnknownName."""
        return self._find(name, "control", "control")

    def find_base(self, name: str | None, backbone: Backbone) -> Path:
        """Return the Base ControlNet of this name, or else the model's own, or the library's only one of its family.

        Raises UnknownName, RequestError where there is none or a choice.
        """
        if name is not None:
            return self._find(name, "control", "Base ControlNet").path
        if backbone.base_control is not None:
            return backbone.base_control
        bases = self._bases_for(backbone)
        if len(bases) == 1:
            return bases[0].path
        raise RequestError(
            f"{backbone.name} brings no Base ControlNet; found in the library: {_names_of(bases)}. Name one (base)."
        )

    def _bases_for(self, backbone: Backbone) -> list[FileCard]:
        bases = self.library.cards("control")
        return [c for c in bases if c.mechanism == "ctrlora-base" and c.family == backbone.family]

    def _base_of(self, module: Any, card: FileCard, unit: ControlUnit, backbone: Backbone) -> Path | None:
        """Return the file of a control's Base ControlNet, as it is found now; None: its mechanism has none."""
        if not hasattr(module, "open_base"):
            return None
        if module.brings_base(card):
            return card.path
        if unit.base:
            return self._find(unit.base, "control", "Base ControlNet").path
        if unit.name in backbone.conditions and backbone.base_control is not None:
            return backbone.base_control
        bases = self._bases_for(backbone)
        bases += [identify(path) for path in (backbone.base_control,) if path is not None]
        named = [c for c in bases if card.base_sha256 and self.library.sha256(c) == card.base_sha256]
        if len(named or bases) == 1:
            return (named or bases)[0].path
        raise RequestError(
            f"{card.path.name} is a CtrLoRA condition and needs its Base ControlNet; found: {_names_of(bases)}."
            f" Name one with base=FILE, as in --control {card.path.stem}=IMAGE,base=ctrlora_sd15_basecn700k.ckpt."
        )


def _text_bytes(states: TextStates) -> int:
    return states.tokens.nbytes + (0 if states.pooled is None else states.pooled.nbytes)


def _owner(key: Hashable) -> object:
    """Return what a key names first, a model's fingerprint or path: the key itself, or its first part."""
    return cast("tuple[object, ...]", key)[0] if isinstance(key, tuple) else key


def _path_of(name: str) -> Path | None:
    """Return the path that a name is; None for a folder of other things that happens to have a name of the library."""
    path = path_of(name)
    return None if path is not None and path.is_dir() and not is_folder_of_weights(path) and "/" not in name else path


def _names_of(cards: Iterable[FileCard]) -> str:
    return ", ".join(card.path.name for card in cards) or "none"


def content_key(content: bytes) -> str:
    """Return the sha256 of some bytes, hexadecimal."""
    return hashlib.sha256(content).hexdigest()
