"""A small CLIP of the world (Radford et al. 2021): whether a picture shows what a caption says, for `disegno evaluate`.

python -m recipes.diorama.clip --run RUN [--pack RUN/world.zip] [--vocabulary model.json] [--steps 1500]
disegno evaluate CONTROL --data PAIRS --clip RUN/clip/clip

It learns in the program's one loop from scenes that it composes as it goes, and ends with what it reaches on scenes
that it never saw (RUN/clip/figures.json). Ctrl-C saves; the same command goes on. The folder is a CLIP as transformers
lays it out, with OpenAI's vocabulary, so whatever takes a CLIP takes it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from disegno.core.files import write_atomically
from disegno.core.settings import Settings, load_settings
from disegno.core.teach import TeachRequest
from disegno.memory import build_empty
from disegno.text.clip import END_ID, START_ID, chunk_rows
from disegno.text.clip_vision import MEAN, STD
from disegno.training.base import Batch, Facts, TeachProgress, TeachResult, Turn
from disegno.training.clip_score import VOCABULARY, open_clip_score
from disegno.training.encoder import masters_of
from disegno.training.ground import training_memory
from disegno.training.lesson import Habits, Lesson, Opening
from disegno.training.result import told
from disegno.training.run import Run
from disegno.training.stopping import Stop
from disegno.training.trainer import train
from disegno.weights.save import save_safetensors

from .chapters import ChapterOrder, Composer, FromChapters, Numbers, Wish, to_tensor
from .clip_judge import judged
from .world.pack import Wardrobe, open_pack

NAME = "clip"
BLURRED_SHARE = 0.5  # of the pictures it learns from: a young model's have lost their fine detail
SOFTEST = 100.0  # the most that cosines are multiplied by, as the original
RATE, WARMUP, AVERAGE = 1e-3, 100, 0.995


@dataclass(frozen=True)
class Sizes:
    """How large it is. `side`: of the pictures, in pixels. `seen`, `read`: the towers' widths; `depths` likewise."""

    side: int = 128
    patch: int = 16
    seen: int = 128
    read: int = 96
    depths: tuple[int, int] = (5, 2)
    heads: int = 4
    projected: int = 96
    batch: int = 128
    chapter: int = 2_048
    uses: int = 5


TOY = Sizes(side=32, patch=8, seen=16, read=16, depths=(1, 1), heads=2, projected=8, batch=8, chapter=16, uses=2)


def config_of(sizes: Sizes) -> CLIPConfig:
    """Return transformers' configuration."""

    def tower(width: int, depth: int) -> dict[str, int]:
        own = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth}
        return own | {"num_attention_heads": sizes.heads, "projection_dim": sizes.projected}

    ids = {"vocab_size": VOCABULARY, "bos_token_id": START_ID, "eos_token_id": END_ID, "pad_token_id": END_ID}
    return CLIPConfig(
        text_config=tower(sizes.read, sizes.depths[1]) | ids,
        vision_config=tower(sizes.seen, sizes.depths[0]) | {"image_size": sizes.side, "patch_size": sizes.patch},
        projection_dim=sizes.projected,
    )


def drawn(config: CLIPConfig, seed: int) -> dict[str, Tensor]:
    """Return new weights: by the number of inputs, those that end a block smaller (section 2.4); embeddings 0.02."""
    shapes = {name: tensor.shape for name, tensor in build_empty(lambda: CLIPModel(config)).state_dict().items()}
    generator = Generator().manual_seed(seed)
    depth = sum(name.startswith("vision_model.") and name.endswith("fc2.weight") for name in shapes)

    def new(name: str, shape: torch.Size) -> Tensor:
        if name == "logit_scale":
            return torch.tensor(1 / 0.07).log()
        if name.endswith("bias") or "norm" in name:
            return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        ends = name.endswith(("out_proj.weight", "fc2.weight"))
        deviation = 0.02 if "embedding" in name and len(shape) < 4 else shape[1:].numel() ** -0.5
        return torch.randn(shape, generator=generator) * deviation * ((2 * depth) ** -0.5 if ends else 1.0)

    return {name: new(name, shape) for name, shape in shapes.items()}


class Contrasting(nn.Module):
    """Its call gives each row's loss, (b,): which caption is the picture's among the batch's, and the other way."""

    def __init__(self, net: CLIPModel) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Batch, turn: str = "") -> Tensor:
        """Return each row's loss, (b,), float32."""
        ids = batch.rows["ids"].long()
        longest = int((ids != END_ID).sum(dim=1).max()) + 1  # nothing behind the end is seen: CLIP is causal
        out = self.net(input_ids=ids[:, :longest], pixel_values=shown(batch.rows["target"], batch.seeds))
        seen, read = out.image_embeds, out.text_embeds  # b d each, of length 1
        logits = seen @ read.T * self.net.logit_scale.exp().clamp(max=SOFTEST)  # b b
        own = torch.arange(len(ids), device=ids.device)
        ways = [F.cross_entropy(each, own, reduction="none") for each in (logits, logits.T)]
        return (ways[0] + ways[1]) / 2


def shown(target: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return pictures (b 3 h w), uint8, as CLIP is shown them; half of them are blurred, by their seeds."""
    x = target.float() / 255
    small = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    blurred = torch.tensor([seed % 1000 < 1000 * BLURRED_SHARE for seed in seeds], device=x.device)
    x = torch.where(blurred.view(-1, 1, 1, 1), small, x)
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (x - mean) / std


@dataclass(frozen=True)
class Captioned:
    """Chapters (`Chapters`) as pictures and the ids of their captions."""

    composer: Composer
    device: torch.device

    def tensors(self, number: int) -> Mapping[str, Tensor]:
        """Return `target`, (n 3 h w) uint8, and `ids`, (n 77)."""
        scenes = self.composer.chapter(number)
        ids = torch.tensor(chunk_rows(scenes.captions)[0], dtype=torch.int32)
        return {"target": to_tensor(scenes.images, self.device), "ids": ids.to(self.device)}


@dataclass(frozen=True)
class ClipLearner:
    """A CLIP in training."""

    module: FromChapters
    turns: tuple[Turn, ...]
    config: CLIPConfig

    def save(self, path: Path, facts: Facts, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the folder: config.json, then model.safetensors, without which it is no CLIP."""
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / "config.json", lambda file: file.write_text(self.config.to_json_string(), "utf-8"))
        tensors = {name: t.detach().half() for name, t in (weights or self.turns[0].parameters).items()}
        save_safetensors(path / "model.safetensors", tensors, {"format": "pt", **told(facts, None, "world")})


@dataclass(frozen=True)
class Place:
    """Where it is trained, and on what. `wardrobe`: what scenes are made of."""

    run: Path
    settings: Settings
    wardrobe: Wardrobe
    sizes: Sizes = Sizes()

    @property
    def result(self) -> Path:
        return self.run / NAME / NAME


def request_of(place: Place, steps: int) -> TeachRequest:
    """Return all that decides its weights beside the world."""
    side = place.sizes.side if place.sizes.side >= 64 else None  # a toy's is smaller than a request may say
    return TeachRequest(
        name=NAME, data=("world",), recipe="text_to_image", width=side, height=side, steps=steps,
        batch=place.sizes.batch, rate=RATE, warmup=min(WARMUP, steps // 10), rate_schedule="cosine", ema=AVERAGE,
        holdout=0, validate_every=0, save_every=10**9, licence="Apache-2.0",
    )  # fmt: skip


def open_clip(place: Place, request: TeachRequest) -> Opening:
    """Yield nothing, and return the lesson."""
    yield from ()
    sizes, memory = place.sizes, training_memory(place.settings)
    config = config_of(sizes)
    net = masters_of(memory).build(lambda: CLIPModel(config), drawn(config, request.seed), "The new CLIP")
    net.requires_grad_(True)

    composer = Composer(Wish(sizes.side), sizes.chapter, wardrobe=place.wardrobe)
    order = ChapterOrder(request.seed, request.batch, sizes.chapter, sizes.uses)
    module = FromChapters(Contrasting(net).train(), Captioned(composer, memory.policy.device), order)
    turn = Turn(NAME, dict(net.named_parameters()), RATE)
    return Lesson(
        request=request,
        learner=ClipLearner(module, (turn,), config),
        examples=Numbers(sizes.chapter),
        held_out=None,
        facts=Facts(name=NAME, training_pairs=order.scenes(request.steps), licence="Apache-2.0"),
        fingerprint=f"{sizes} {len(place.wardrobe.looks)}",
        order=order,
    )


def taught(place: Place, steps: int) -> TeachResult:
    """Teach it, and return what came of that."""
    request, run, stop = request_of(place, steps), Run(place.run / NAME, NAME, ""), Stop()
    result: TeachResult | None = None
    with stop.on_signals():
        events = train(request, run, open_clip(place, request), (), stop, habits=Habits(workers=0, save_minutes=5))
        for event in events:
            if isinstance(event, TeachProgress) and event.loss is not None and event.step % 25 == 0:
                print(f"{event.step}/{event.num_steps} loss {event.loss:.3f}", flush=True)
            if isinstance(event, TeachResult):
                result = event
    assert result is not None
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Train it, and say how well it tells scenes apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--pack", type=Path, help="the data pack; unset: RUN/world.zip")
    parser.add_argument("--vocabulary", type=Path, help="a model.json: only nouns that it knows")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--judge", type=int, default=1000, help="held-out scenes; multiples of 100")
    args = parser.parse_args(arguments)
    wardrobe = open_pack(args.pack or args.run / "world.zip")
    if args.vocabulary is not None:
        wardrobe = wardrobe.only(json.loads(args.vocabulary.read_text("utf-8"))["vocabulary"]["nouns"])
    place = Place(args.run, load_settings(), wardrobe)
    if taught(place, args.steps).why == "stopped":
        return
    figures = asdict(judged(open_clip_score(place.result), wardrobe, args.judge, place.sizes.side))
    (place.run / NAME / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
