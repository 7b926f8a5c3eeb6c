"""What a model that sees depth is shown beside x: a depth map of latent cells, from -1 (far) to 1 (near).

Stable Diffusion 2's depth model. The map is a person's own, an annotator's drawing of a picture, or what the model's
own estimator says of the picture that is changed.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from disegno.backbones.base import Backbone, DepthReader, ReadsDepth
from disegno.core.errors import RequestError
from disegno.core.request import ControlUnit, Request, ResizeMode
from disegno.engine.units import Scene, shown_to

_AS_IT_IS = "none"  # as an annotator's name


def sees_depth(backbone: Backbone) -> bool:
    """Return whether the net is shown a depth map: one channel more than the latents have."""
    return backbone.in_channels == backbone.latent_channels + 1


def check_depth(request: Request, backbone: Backbone) -> None:
    """Raise RequestError where a model that sees depth would be shown none."""
    if not sees_depth(backbone) or request.depth is not None:
        return
    if request.init is None:
        raise RequestError(
            f"{backbone.name} draws by depth: give it a depth map (--depth MAP, white is near), or a picture to change"
            " (--from PICTURE)."
        )
    if request.depth_annotate is None and _estimator(backbone) is None:
        raise RequestError(
            f"{backbone.name} draws by depth, and came without what tells the depth of a picture (depth_estimator in a"
            " folder, depth_model in a file). Give it a depth map (--depth MAP, white is near), or say which annotator"
            " draws one from the picture (--depth-annotate NAME)."
        )


def depth_channel(request: Request, scene: Scene, backbone: Backbone) -> Tensor:
    """Return what the net is shown beside x, (1 1 h w). Raises RequestError where there is no depth."""
    check_depth(request, backbone)
    is_map = request.depth is not None or request.depth_annotate is not None
    unit = ControlUnit(
        name="depth", image=request.depth, annotate=request.depth_annotate or _AS_IT_IS, resize=_resize(request)
    )
    shown = shown_to(unit, scene, None).condition().image  # 1 3 h w
    estimator = None if is_map else _estimator(backbone)
    depth = shown.mean(dim=1, keepdim=True) if estimator is None else estimator(shown)
    return in_cells(depth, scene.height // backbone.downscale, scene.width // backbone.downscale)


def in_cells(depth: Tensor, height: int, width: int) -> Tensor:
    """Return a depth map (1 1 h w) of latent cells, stretched to [-1, 1]. diffusers parity: in this order.

    Raises RequestError where there is no depth in it.
    """
    cells = F.interpolate(depth, size=(height, width), mode="bicubic", align_corners=False)
    low, high = torch.aminmax(cells)
    if low == high:
        raise RequestError("The depth map is one grey everywhere: nothing in it is nearer. Give another one.")
    return 2 * (cells - low) / (high - low) - 1


def _estimator(backbone: Backbone) -> DepthReader | None:
    return backbone.depth if isinstance(backbone, ReadsDepth) else None


def _resize(request: Request) -> ResizeMode:
    """Return how a map of another shape is fitted: as the picture that is changed is."""
    wanted = "crop" if request.init is None else request.init.resize
    return "stretch" if wanted == "latent" else wanted
