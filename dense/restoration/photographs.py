"""The built-in photographs: those that scikit-image and scikit-learn ship, without a download.

PHOTOGRAPHS.md beside this file says who made them, and under which licenses.
"""

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...data import one_of
from ...images import MAX_PIXELS
from ...registry import DATASETS
from .datasets import Pictures, read_picture
from .degradations import Degradation, build_degradation


class Photograph(NamedTuple):
    """A file inside a package, with the first half of its SHA-256: figures are of just these pixels."""

    package: str
    path: str
    sha256: str


def _photographs(package: str, folder: str, sums: Mapping[str, str]) -> dict[str, Photograph]:
    return {name: Photograph(package, f"{folder}/{name}", digest) for name, digest in sums.items()}


_SKIMAGE, _SKLEARN = ("skimage", "data"), ("sklearn", "datasets/images")
# Both pictures of the motorcycle are in one part, because they show one scene.
PHOTOGRAPHS: dict[str, dict[str, Photograph]] = dict(
    train=_photographs(
        *_SKIMAGE,
        {
            "brick.png": "7966caf324f6ba843118d98f7a07746d",
            "coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a078",
            "grass.png": "b6b6022426b38936c43a4ac09635cd78",
            "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0",
            "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711",
            "ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b23",
            "motorcycle_left.png": "db18e9c4157617403c3537a6ba355dfe",
            "motorcycle_right.png": "5fc913ae870e42a4b662314bc904d178",
            "page.png": "341a6f0a61557662b02734a9b6e56ec3",
            "rocket.jpg": "c2dd0de7c538df8d111e479619b12946",
        },
    )
    | _photographs(*_SKLEARN, {"china.jpg": "8378025ad2519d649d02e32bd98990db"}),
    test=_photographs(
        *_SKIMAGE,
        {
            "astronaut.png": "88431cd9653ccd539741b555fb0a46b6",
            "camera.png": "b0793d2adda0fa6ae899c03989482bff",
            "chelsea.png": "596aa1e7cb875eb79f437e310381d26b",
            "coffee.png": "cc02f8ca188b167c775a7101b5d767d1",
        },
    )
    | _photographs(*_SKLEARN, {"flower.jpg": "a77f6ec41e353afdf8bdff2ea981b295"}),
)
DISTRIBUTIONS = dict(skimage="scikit-image", sklearn="scikit-learn")


def find(photograph: Photograph) -> Path:
    """Where a photograph lies; its package is not imported.

    Raises:
        FileNotFoundError: the package is not installed, or lacks the file.
        ValueError: the file is not the one that figures were measured with.
    """
    name = DISTRIBUTIONS[photograph.package]
    spec = find_spec(photograph.package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"Photographs: {photograph.path} is of {name}, which is not installed: pip install {name}"
        )
    path = Path(spec.origin).parent / photograph.path
    if not path.is_file():
        raise FileNotFoundError(
            f"Photographs: the installed {name} lacks {photograph.path} ({path}): pip install --force-reinstall {name}"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(photograph.sha256):
        raise ValueError(
            f"{path} is another picture than the one that Attlas means (its SHA-256 begins with {digest[:8]}, not with "
            f"{photograph.sha256[:8]}): the installed {name} has changed it."
        )
    return path


@DATASETS.register_module()
class Photographs(Pictures):
    """The built-in photographs, 11 to train with and 5 to test with, made worse at each draw; see `DegradedImages`.

    Args:
        degradation: dict of a degradation, such as dict(type='Bicubic', scale=2).
        split: 'train' or 'test'.
        patch, symmetries, transforms, seed: as of `Pictures`.

    Raises:
        FileNotFoundError, ValueError: a photograph is not there, or is another one; see `find`.
    """

    def __init__(
        self,
        degradation: Mapping | Degradation,
        split: str = "train",
        patch: int | None = None,
        symmetries: bool = False,
        transforms=(),
        seed: int = 0,
    ):
        photographs = PHOTOGRAPHS[one_of("Photographs.split", split, tuple(PHOTOGRAPHS))]
        made = build_degradation(degradation)
        super().__init__(
            split,
            [str(find(photograph)) for photograph in photographs.values()],
            images=(),
            scale=made.scale,
            degradation=made,
            patch=patch,
            symmetries=symmetries,
            cache=None,
            max_pixels=MAX_PIXELS,
            transforms=transforms,
            seed=seed,
        )
        self._decoded: dict[str, np.ndarray] = {}  # 15 MB, of all

    def _read(self, path: str) -> np.ndarray:
        if path not in self._decoded:
            self._decoded[path] = read_picture(path, self.max_pixels)
        return self._decoded[path]
