"""IP-Adapter's files (Ye et al. 2023, arXiv 2308.06721): a projection of what CLIP sees, and keys and values of it.

image_proj.*                     proj, norm: 4 tokens of the embedding; latents, layers ...: a resampler ("plus");
                                 proj.0 .2 .3: every token of CLIP's ("full")
ip_adapter.1.to_k_ip.weight ...  an odd number for each cross-attention: the encoder's, the decoder's, the middle's
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from disegno.core.errors import KeyMismatch, UnknownKind
from disegno.weights.load import open_file
from disegno.weights.shapes import sides

MECHANISM, FACE_ID = "ip-adapter", "ip-adapter-faceid"
PROJECTION, ATTENTIONS = "image_proj.", "ip_adapter."
Form = Literal["plain", "plus", "full"]
_MARKS: Mapping[Form, str] = {"plain": "proj.weight", "plus": "proj_in.weight", "full": "proj.3.weight"}
# The layer that what CLIP gives goes into
_READS: Mapping[Form, str] = {"plain": "proj.weight", "plus": "proj_in.weight", "full": "proj.0.weight"}


@dataclass(frozen=True)
class IpFile:
    """A file, read. `tensors`: by their published names. `form`: what its projection is."""

    form: Form
    tensors: Mapping[str, Tensor]
    sha256: str

    @property
    def seen(self) -> int:
        """How many numbers of CLIP's its projection reads: of an embedding (plain), or of each hidden state."""
        return self.tensors[PROJECTION + _READS[self.form]].shape[1]

    @property
    def pairs(self) -> list[tuple[str, int, int]]:
        """Return each attention's number in the file, its width, and the width of the tokens that it reads."""
        found = {key.split(".")[1]: t.shape for key, t in self.tensors.items() if key.endswith(".to_k_ip.weight")}
        return [(number, found[number][0], found[number][1]) for number in sorted(found, key=int)]


def read_ip(path: Path) -> IpFile:
    """Return the adapter in this file. Raises UnknownKind for one of another kind, KeyMismatch, and as `open_file`."""
    with open_file(path) as file:
        keys = set(file.keys())
        if any("perceiver_resampler." in key or key.endswith("_lora.down.weight") for key in keys) or (
            f"{PROJECTION}proj.2.weight" in keys and PROJECTION + _MARKS["full"] not in keys
        ):
            raise UnknownKind(
                f"{path.name} is an IP-Adapter FaceID: it reads what a recogniser of faces (InsightFace) sees, which is"
                " not part of this program. Choose ip-adapter-plus-face_sd15 or ip-adapter-full-face_sd15."
            )
        form: Form | None = next((form for form, mark in _MARKS.items() if PROJECTION + mark in keys), None)
        numbers = [key.split(".")[1] for key in keys if key.endswith(".to_k_ip.weight")]
        if form is None or not numbers or not all(number.isdecimal() for number in numbers):
            raise KeyMismatch(
                f"{path.name} is an incomplete IP-Adapter, or one of a kind that is not known: {PROJECTION}proj.weight,"
                f" .proj_in.weight or .proj.3.weight, and {ATTENTIONS}1.to_k_ip.weight were expected. Fetch it again."
            )
        tensors = file.tensors()
        for key in (PROJECTION + _READS[form], *(key for key in keys if key.endswith(".to_k_ip.weight"))):
            if key in tensors:
                sides(path.name, tensors, key, 2)
        return IpFile(form, tensors, file.sha256())
