"""How large everything is: the real thing, and the same as a toy for a rehearsal on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from disegno.core.teach import OptimiserName, RateSchedule, TimeDraw

Config = Mapping[str, object]
_CROSS = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"


@dataclass(frozen=True)
class Course:
    """How long a stage learns at most, and how fast: at a constant rate, with an average that may be taken at any time.

    `chapter`: scenes composed at a time; `uses`: how often each is seen; `window`, `lead`, `most`: how many chapters
    are drawn from, are there at first, and in all (`ChapterOrder`). `side`: of the squares that are shown, 0: whole.
    `decay`: of the rate, over all of the steps: for a stage whose length is known before. `timesteps`: which noise
    levels are drawn more often (a drawing is followed where there is much noise). `optimiser`: the program's.
    """

    steps: int
    batch: int
    rate: float
    warmup: int
    chapter: int
    uses: int
    ema: float = 0.999
    caption_dropout: float = 0.1
    rank: int = 16
    window: int = 1
    lead: int = 1
    most: int = 2**31
    side: int = 0
    decay: RateSchedule = "constant"
    timesteps: TimeDraw = "auto"
    optimiser: OptimiserName = "adamw"


@dataclass(frozen=True)
class Scale:
    """The sizes of the nets, and each stage's course. `size`: of the pictures, in pixels.

    `stocked`: scenes in a chapter that all stages share (stock.py). `decoder`: widths that the stage of this name gives
    the autoencoder's decoder; () leaves them.
    """

    name: str
    size: int
    stocked: int
    unet: Config
    vae: Config
    courses: Mapping[str, Course] = field(default_factory=dict)
    decoder: tuple[int, ...] = ()


def unet(size: int, widths: tuple[int, ...], heads: int, groups: int) -> Config:
    """Return a UNet's configuration: attention on every level but the deepest, as in Stable Diffusion 1."""
    more = len(widths) - 1
    return {
        "sample_size": size // 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": [*[_CROSS[0]] * more, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *[_CROSS[1]] * more],
        "block_out_channels": list(widths),
        "layers_per_block": 1,
        "attention_head_dim": heads,
        "cross_attention_dim": 384,
        "norm_num_groups": groups,
        "use_linear_projection": False,
    }


def vae(size: int, widths: tuple[int, int, int, int], groups: int) -> Config:
    """Return an autoencoder's configuration: 8 times smaller, 4 channels."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": list(widths),
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 1,
        "norm_num_groups": groups,
        "sample_size": size,
        "mid_block_add_attention": True,
        "scaling_factor": 1.0,
    }


SHARED = 4_608  # 9 conditions, 512 scenes each
TURNED = 4_620  # the 42 turns of "obey" (two without a drawing, one of 14 kinds), 110 scenes each
FULL = Scale(
    "full",
    256,
    SHARED,
    unet(256, (96, 192, 384), 3, 32),
    vae(256, (16, 32, 64, 128), 8),
    {
        "vae": Course(12_000, 32, 2e-4, 100, SHARED, uses=2, window=6, most=6, ema=0.995, side=128),
        "half": Course(40_000, 512, 8e-4, 300, SHARED, uses=32, window=40, lead=4, most=40),
        "net": Course(40_000, 256, 6e-4, 300, SHARED, uses=16, window=40, lead=4, most=40),
        "base": Course(16_000, 128, 1e-4, 100, SHARED, uses=8, window=12, lead=2, most=12, caption_dropout=0.3),
        "obey": Course(12_000, 128, 6e-4, 50, TURNED, uses=8, window=12, lead=12, most=12, optimiser="muon"),
        "few": Course(6_000, 128, 3e-4, 50, SHARED, uses=8, window=12, lead=12, most=12, ema=0.99, rank=32,
                      caption_dropout=0.0),
        "decoder": Course(6_000, 32, 2e-4, 100, SHARED, uses=2, window=2, most=4, ema=0.995),
        "tiny": Course(6_000, 32, 5e-4, 100, SHARED, uses=2, window=2, most=4),
        "detector": Course(8_000, 128, 1.5e-3, 100, SHARED, uses=3, window=6, lead=6, most=12, ema=0.99),
    },
    decoder=(32, 64, 128, 256),
)  # fmt: skip
TOY = Scale(
    "toy",
    64,
    18,
    unet(64, (32, 64), 4, 8),
    vae(64, (8, 8, 16, 16), 4),
    {
        "vae": Course(3, 2, 2e-4, 1, chapter=18, uses=1, ema=0.9, side=32),
        "half": Course(4, 4, 4e-4, 1, chapter=18, uses=1, ema=0.9, window=3, lead=2, most=3),
        "net": Course(4, 4, 4e-4, 1, chapter=18, uses=1, ema=0.9, window=3, lead=2, most=3),
        "base": Course(9, 2, 2e-4, 1, chapter=18, uses=1, ema=0.9, rank=4),
        "obey": Course(3, 2, 2e-4, 1, chapter=42, uses=1, ema=0.9, optimiser="muon"),
        "few": Course(2, 2, 1e-4, 1, chapter=18, uses=1, ema=0.9),
        "decoder": Course(2, 2, 2e-4, 1, chapter=18, uses=1, ema=0.9),
        "tiny": Course(2, 2, 5e-4, 1, chapter=18, uses=1, ema=0.9),
        "detector": Course(3, 4, 1e-3, 1, chapter=18, uses=1, ema=0.9),
    },
    decoder=(16, 16, 32, 32),
)
# What judges version 0 of the model, on a CPU: a detector of its own nouns, at its size.
SMALL = Scale(
    "small",
    128,
    1_024,
    FULL.unet,
    FULL.vae,
    {"detector": Course(1_200, 32, 1.5e-3, 40, chapter=1_024, uses=4, ema=0.99)},
)
# What two cores of a CPU learn in an evening: version 0's nets, its nouns, and pictures of 128 pixels.
HOME = Scale(
    "home",
    128,
    SHARED,
    unet(128, (64, 128, 256), 4, 32),
    FULL.vae,
    {
        "vae": Course(2_000, 32, 1e-4, 50, SHARED, uses=4, window=4, ema=0.995),
        "half": Course(900, 64, 3e-4, 30, SHARED, uses=10, window=4, lead=2, ema=0.99, decay="cosine"),
        "net": Course(900, 64, 3e-4, 30, SHARED, uses=10, window=4, lead=2, ema=0.99, decay="cosine"),
        "base": Course(
            2_800,
            64,
            5e-4,
            50,
            2_304,
            uses=12,
            window=8,
            ema=0.99,
            caption_dropout=0.3,
            decay="cosine",
            timesteps="high-noise",
        ),
        "obey": Course(
            3_000,
            64,
            1.5e-3,
            40,
            TURNED,
            uses=5,
            window=12,
            lead=12,
            most=12,
            ema=0.998,
            decay="cosine",
            optimiser="muon",
        ),
        "few": Course(
            700, 32, 5e-4, 30, 1_536, uses=6, window=4, ema=0.98, rank=32, caption_dropout=0.0, decay="cosine"
        ),
        "decoder": Course(2_400, 8, 2e-4, 50, 1_152, uses=4, window=2, ema=0.995, decay="cosine"),
        "tiny": Course(1_500, 32, 5e-4, 50, SHARED, uses=4, window=2),
        "detector": Course(1_500, 32, 1.5e-3, 40, chapter=1_152, uses=4, ema=0.99),
    },
)
SCALES = {scale.name: scale for scale in (FULL, TOY, SMALL, HOME)}
