"""A folder with the image tower of a CLIP, as transformers lays it out, in miniature."""

from pathlib import Path

from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from disegno.backbones import miniature

SEEN, HIDDEN = 12, 16  # numbers that it gives of a picture, and of a state
SIDE = 32


def write_clip(folder: Path, layers: int = 1) -> Path:
    """Write it, and return the folder."""
    config = CLIPVisionConfig(
        hidden_size=HIDDEN, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2, image_size=SIDE,
        patch_size=16, projection_dim=SEEN,
    )  # fmt: skip
    clip = CLIPVisionModelWithProjection(config)
    clip.load_state_dict(miniature.draw(clip, 11), strict=False)
    clip.save_pretrained(folder)
    return folder
