"""A folder with the image tower of a CLIP, as transformers lays it out, in miniature."""

from pathlib import Path

from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from disegno.backbones import miniature

SEEN = 12  # numbers that it gives of a picture


def write_clip(folder: Path) -> Path:
    """Write it, and return the folder."""
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16,
        projection_dim=SEEN,
    )  # fmt: skip
    clip = CLIPVisionModelWithProjection(config)
    clip.load_state_dict(miniature.draw(clip, 11), strict=False)
    clip.save_pretrained(folder)
    return folder
