"""Pairs as tensors on disk: right, whole, found again, and not fooled by anything that changed."""

import pickle
import sqlite3
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from disegno.backbones import miniature
from disegno.backbones._latent_diffusion import LatentDiffusion
from disegno.core.errors import BadImage, RequestError, ResourceError
from disegno.memory import FULL_PRECISION, Memory
from disegno.text.learnt import TextOptions
from disegno.training.base import TeachProgress
from disegno.training.cache import Cache, CachedExamples, Canvases, Share
from disegno.training.data.buckets import make_buckets
from disegno.training.miniature import Discs
from disegno.training.pairs import Pairs, Sample
from disegno.training.store import Store

pytestmark = pytest.mark.unit

ALL = ("latent", "condition_latent", "tokens", "target", "condition")
SQUARE = Canvases(((64, 64),))


@pytest.fixture(scope="module")
def backbone() -> LatentDiffusion:
    return miniature.open_miniature()


@pytest.fixture
def store(tmp_path: Path) -> Generator[Store]:
    store = Store(tmp_path / "cache" / "teach.sqlite")
    yield store
    store.close()


@dataclass
class Counting:
    """A backbone that counts what it is asked."""

    own: LatentDiffusion
    images: int = 0
    texts: list[str] = field(default_factory=list[str])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return self.own.encode_image(images)

    def encode_text(self, prompts: list[str], clip_skip: int = 1) -> Any:
        self.texts += prompts
        return self.own.encode_text(prompts, clip_skip)

    def read_prompt(self, text: str, options: TextOptions) -> Any:
        self.texts.append(text)
        return self.own.read_prompt(text, options)


@dataclass(frozen=True)
class Changing(Discs):
    """Discs of which some are other than they were: index -> what is read instead."""

    changed: Mapping[int, Sample | Exception] = field(default_factory=dict[int, Any])

    def read(self, index: int) -> Sample:
        given = self.changed.get(index)
        if isinstance(given, Exception):
            raise given
        return given or super().read(index)

    def digest(self, index: int) -> str:
        return f"broken {index}" if isinstance(self.changed.get(index), Exception) else super().digest(index)


def ended(filling: Generator[TeachProgress, None, CachedExamples]) -> tuple[CachedExamples, list[TeachProgress]]:
    said = []
    while True:
        try:
            said.append(next(filling))
        except StopIteration as end:
            return end.value, said


def filled(backbone: Any, store: Store, pairs: Mapping[str, Pairs] | Pairs, **fields: Any) -> CachedExamples:
    given = pairs if isinstance(pairs, Mapping) else {"": pairs}
    return ended(Cache(store, backbone, **{"wants": ALL, "canvases": SQUARE, **fields}).fill(given))[0]


def test_captions_that_are_cut_off_are_named(backbone: LatentDiffusion, store: Store) -> None:
    pairs = Discs(4, (64, 64))
    long = replace(pairs.read(2), caption="very " * 90 + "long")
    changing = Changing(4, (64, 64), changed={2: long})
    assert filled(backbone, store, changing).cut == ("0002",)
    counting = Counting(backbone)
    assert filled(counting, store, changing).cut == ("0002",)  # also where all is there already
    assert counting.images == 0
    assert filled(backbone, store, changing, wants=("target",)).cut == ()


def test_an_example_is_what_the_models_encoders_make_of_the_pair(backbone: LatentDiffusion, store: Store) -> None:
    pairs = Discs(3, (64, 64))
    examples = filled(backbone, store, pairs)
    assert len(examples) == 3 and examples.shape(1) == (8, 8) and examples.task(1) == "" and examples.key(1) == "0001"
    sample, example = pairs.read(1), examples[1]
    target, condition = (torch.from_numpy(p).permute(2, 0, 1) for p in (sample.target, sample.condition))
    torch.testing.assert_close(example["latent"], backbone.encode_image(target[None] / 127.5 - 1)[0])
    torch.testing.assert_close(example["condition_latent"], backbone.encode_image(condition[None] / 255)[0])
    assert torch.equal(example["tokens"], backbone.encode_text([sample.caption]).tokens[0])
    assert torch.equal(example["target"], target) and torch.equal(example["condition"], condition)
    assert torch.equal(examples.empty, backbone.encode_text([""]).tokens[0])  # pyright: ignore[reportArgumentType]


def test_what_is_there_is_not_made_again(backbone: LatentDiffusion, store: Store) -> None:
    first, again = Counting(backbone), Counting(backbone)
    one = filled(first, store, Discs(3))
    two = filled(again, Store(store.path), Discs(3))
    assert first.images == 6 and again.images == 0 and again.texts == [""]
    assert all(torch.equal(one[i][name], two[i][name]) for i in range(3) for name in ALL)
    two.store.close()


def test_one_picture_under_two_conditions_is_encoded_once(backbone: LatentDiffusion, store: Store) -> None:
    counting = Counting(backbone)
    examples = filled(counting, store, {"disc": Discs(3), "rim": Discs(3, outline=True)})
    assert counting.images == 3 + 3 + 3
    assert [examples.task(i) for i in range(6)] == ["disc"] * 3 + ["rim"] * 3
    assert torch.equal(examples[0]["latent"], examples[3]["latent"])
    assert not torch.equal(examples[0]["condition_latent"], examples[3]["condition_latent"])


def test_a_changed_picture_is_encoded_anew_and_only_it(backbone: LatentDiffusion, store: Store) -> None:
    filled(backbone, store, Discs(3))
    changed = replace(Discs(3).read(1), target=np.full((64, 64, 3), 128, np.uint8))
    counting = Counting(backbone)
    examples = filled(counting, store, Changing(3, changed={1: changed}))
    assert counting.images == 1
    grey = backbone.encode_image(torch.full((1, 3, 64, 64), 128.0) / 127.5 - 1)[0]
    torch.testing.assert_close(examples[1]["latent"], grey)


def test_a_changed_caption_costs_no_picture(backbone: LatentDiffusion, store: Store) -> None:
    filled(backbone, store, Discs(2))
    counting = Counting(backbone)
    examples = filled(counting, store, Changing(2, changed={0: replace(Discs(2).read(0), caption="a moon")}))
    assert counting.images == 0 and counting.texts == ["a moon", ""]
    assert torch.equal(examples[0]["tokens"], backbone.encode_text(["a moon"]).tokens[0])


def test_other_weights_are_other_tensors(backbone: LatentDiffusion, store: Store) -> None:
    one = filled(backbone, store, Discs(1))
    other = filled(miniature.open_miniature(made=miniature.Miniature(seed=5)), store, Discs(1))
    assert not torch.equal(one[0]["latent"], other[0]["latent"])
    assert not torch.equal(one[0]["tokens"], other[0]["tokens"])


def test_bad_rows_cost_themselves_and_are_named(backbone: LatentDiffusion, store: Store) -> None:
    pairs = Changing(4, changed={2: BadImage("0002 cannot be read as a picture.")})
    examples = filled(backbone, store, {"disc": pairs})
    assert [examples.key(i) for i in range(3)] == ["0000", "0001", "0003"]
    assert examples.dropped == ("disc: 0002: 0002 cannot be read as a picture.",)
    assert filled(backbone, store, {"disc": pairs}).dropped == examples.dropped


def test_latents_that_are_no_numbers_are_dropped(backbone: LatentDiffusion, store: Store) -> None:
    class Overflowing(Counting):
        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            return super().encode_image(images) * (float("nan") if self.images == 2 else 1)

    examples = filled(Overflowing(backbone), store, Discs(2), wants=("latent",))
    assert len(examples) == 1 and "NaN" in examples.dropped[0] and examples.dropped[0].startswith("0001")


def test_a_damaged_tensor_is_made_again(backbone: LatentDiffusion, store: Store) -> None:
    whole = filled(backbone, store, Discs(2))[0]["latent"]
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE tensors SET data = zeroblob(length(data)) WHERE dtype = 'torch.float32'")
    connection.close()
    counting = Counting(backbone)
    examples = filled(counting, store, Discs(2))
    assert counting.images == 4 and torch.equal(examples[0]["latent"], whole)


def test_damage_during_a_training_is_said(backbone: LatentDiffusion, store: Store) -> None:
    examples = filled(backbone, store, Discs(1))
    with sqlite3.connect(store.path) as connection:
        connection.execute("DELETE FROM tensors")
    connection.close()
    with pytest.raises(ResourceError, match="Start it again"):
        _ = examples[0]


def test_a_file_that_is_no_cache_is_said(tmp_path: Path, backbone: LatentDiffusion) -> None:
    (tmp_path / "teach.sqlite").write_bytes(b"something else entirely, longer than a header" * 9)
    with pytest.raises(ResourceError, match="Delete it"):
        filled(backbone, Store(tmp_path / "teach.sqlite"), Discs(1))


def test_a_stop_in_the_middle_loses_nothing_that_was_made(backbone: LatentDiffusion, store: Store) -> None:
    filling = Cache(store, backbone, ALL, SQUARE).fill({"": Discs(4)})
    said = [next(filling) for _ in range(2)]
    assert [event.step for event in said] == [1, 2] and said[0].num_steps == 4 and said[0].stage == "caching"
    filling.close()
    counting = Counting(backbone)
    filled(counting, store, Discs(4))
    assert counting.images == 4


def test_two_processes_fill_one_store_together(backbone: LatentDiffusion, store: Store) -> None:
    counting = [Counting(backbone), Counting(backbone)]
    other = Store(store.path)
    fillings = [
        Cache(own_store, own, ALL, SQUARE, Share(rank, 2)).fill({"": Discs(5)})
        for rank, (own, own_store) in enumerate(zip(counting, (store, other), strict=True))
    ]
    for _ in range(3):
        next(fillings[0])
    second, _ = ended(fillings[1])
    first, said = ended(fillings[0])
    assert (counting[0].images, counting[1].images) == (6, 4)
    assert first.rows == second.rows and len(first) == 5 and said[-1].step == 5
    other.close()


def test_a_share_that_nobody_fills_is_filled_here(
    backbone: LatentDiffusion, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("disegno.training.cache.PATIENCE_SECONDS", 0.0)
    counting = Counting(backbone)
    assert len(filled(counting, store, Discs(4), share=Share(1, 2))) == 4 and counting.images == 8


def test_pictures_of_many_shapes_go_to_their_buckets(backbone: LatentDiffusion, store: Store) -> None:
    canvases = Canvases(((128, 64), (64, 64), (64, 128)))
    pairs = {"wide": Discs(1, (200, 96)), "tall": Discs(1, (70, 130)), "far": Discs(1, (400, 64))}
    examples = filled(backbone, store, pairs, canvases=canvases, wants=("latent", "target"))
    assert [examples.shape(i) for i in range(2)] == [(8, 16), (16, 8)]
    assert examples[0]["target"].shape == (3, 64, 128)
    assert "over a third would be cut off" in examples.dropped[0]


def test_canvases_are_those_of_the_model(backbone: LatentDiffusion) -> None:
    assert Canvases.of(backbone, None, None, buckets=False).sizes == ((64, 64),)
    assert (64, 64) in Canvases.of(backbone, None, None, buckets=True).sizes
    assert Canvases.of(backbone, 72, 64, buckets=True).sizes == ((72, 64),)
    assert Canvases.of(backbone, 72, 64, buckets=True).unmet and not Canvases.of(backbone, 72, 64, buckets=False).unmet
    assert Canvases.of(backbone, 64, 64, buckets=True).unmet is None
    for side in (128, 512):  # as `dataset check` and `dataset build` have them
        assert Canvases.of(backbone, side, side, buckets=True).sizes == make_buckets(side, side)
    net: Any = SimpleNamespace(config={"block_out_channels": (320, 640, 1280, 1280)})  # one cell of 64 pixels at last
    assert Canvases.of(replace(backbone, net=net), 128, 128, buckets=True).sizes == ((128, 128),)
    with pytest.raises(RequestError):
        Canvases.of(backbone, 100, 64, buckets=False)


def test_examples_travel_to_other_processes(backbone: LatentDiffusion, store: Store) -> None:
    examples = filled(backbone, store, Discs(2))
    there = pickle.loads(pickle.dumps(examples))
    assert torch.equal(there[1]["latent"], examples[1]["latent"])
    there.store.close()


def _opened(net: torch.dtype, vae: torch.dtype) -> LatentDiffusion:
    return miniature.open_miniature(Memory(replace(FULL_PRECISION, dtype=net, vae_dtype=vae)))


def test_text_states_are_kept_as_the_net_wants_them(store: Store) -> None:
    examples = filled(_opened(torch.bfloat16, torch.bfloat16), store, Discs(1))
    assert examples[0]["tokens"].dtype == torch.bfloat16 and examples[0]["latent"].dtype == torch.float32


def test_another_nets_dtype_costs_no_picture_and_another_vaes_costs_all(store: Store) -> None:
    """A recipe that trains the net itself opens it in float32; its pictures are those of the other recipes."""
    half, full = torch.bfloat16, torch.float32
    first = filled(_opened(half, half), store, Discs(2))
    counting = Counting(_opened(full, half))
    examples = filled(counting, store, Discs(2))
    assert counting.images == 0 and examples[0]["tokens"].dtype == full
    assert all(
        torch.equal(examples[i][name], first[i][name]) for i in range(2) for name in ("latent", "condition_latent")
    )
    counting = Counting(_opened(half, full))
    filled(counting, store, Discs(2))
    assert counting.images == 4
