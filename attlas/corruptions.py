"""Images as noise, bad optics, weather or compression leave them: 15 corruptions in 5 severities each (Hendrycks and
Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019).

The package `imagecorruptions` computes them (the maintained fork, imagecorruptions-imaug, which mmdet brings along).
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .data import build_transforms, check_seed, one_of, seeded
from .registry import TRANSFORMS

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (0, 1, 2, 3, 4, 5)
LEAST_SIDE = 32  # pixels; smaller images are refused by the package
OWN_GENERATOR = ("impulse_noise", "glass_blur")  # these do not draw from NumPy's global generator


def package() -> Any:
    """The package that computes them, which is imported by whoever needs it.

    Raises:
        ImportError: it is not installed; says how to.
    """
    try:
        import imagecorruptions
    except ImportError as error:
        raise ImportError(f"corruptions need a package: pip install 'attlas[robustness]' ({error})") from error
    return imagecorruptions


def corrupt(image: np.ndarray, corruption: str, severity: int, seed: int = 0) -> np.ndarray:
    """An image under a corruption. It depends on the arguments alone: the noise is drawn from the seed and the pixels,
    so that the same image gets the same noise in every process and every order.

    Args:
        image: uint8 (H, W, 3), red, green, blue, at least 32 pixels wide and high.
        corruption: one of `CORRUPTIONS`.
        severity: 1 (least) to 5 (most); 0 leaves the image as it is.
        seed: seed of the noise (>= 0).

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: an argument is none of these; names it.
        ImportError: as of `package`.
    """
    one_of("corruption", corruption, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity!r}; it may be {', '.join(map(str, SEVERITIES))}.")
    check_seed(seed)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        form = f"{getattr(image, 'dtype', type(image).__name__)} {tuple(getattr(image, 'shape', ()))}"
        raise ValueError(f"corruptions are of images uint8 (H, W, 3), and this one is {form}.")
    height, width = image.shape[:2]
    if min(height, width) < LEAST_SIDE:
        raise ValueError(f"an image of {width} x {height} pixels; corruptions need {LEAST_SIDE} along each side.")
    if severity == 0:
        return image
    library = package()
    with seeded(seed, zlib.crc32(image.tobytes()), CORRUPTIONS.index(corruption), severity):
        own = dict(seed=int(np.random.randint(2**31))) if corruption in OWN_GENERATOR else {}
        return library.corrupt(image, severity, corruption, **own)


@TRANSFORMS.register_module()
class Corrupted:
    """Transforms, with the image corrupted as soon as it has been read: before the first of them if the data set reads
    it (`image`, red first), else behind the one that does (`img`, blue first, as mmdet and mmseg have it).

    Args:
        transforms: the transforms of the data set, as its config has them.
        corruption, severity, seed: as of `corrupt`.

    Raises:
        ValueError: none of them reads an image, or not one that can be corrupted; names its file.
    """

    def __init__(self, transforms: Sequence[Any], corruption: str, severity: int, seed: int = 0):
        self.transforms = build_transforms(transforms).transforms
        self.corruption = one_of("corruption", corruption, CORRUPTIONS)
        self.severity, self.seed = severity, seed

    def __call__(self, data: Any) -> Any:
        read = self._read(data)
        for step in self.transforms:
            data = step(data)
            if data is None:  # of mm transforms: this item is to be left out
                return None
            read = read or self._read(data)
        if not read:
            raise ValueError("these data have no image that could be corrupted, neither `image` nor `img`.")
        return data

    def _read(self, data: Any) -> bool:
        """Whether there is an image now, which is corrupted then."""
        key = next((key for key in ("image", "img") if isinstance(data, Mapping) and key in data), None)
        if key is None:
            return False
        order = slice(None, None, -1) if key == "img" else slice(None)
        try:
            image = np.ascontiguousarray(data[key][..., order])
            data[key] = np.ascontiguousarray(corrupt(image, self.corruption, self.severity, self.seed)[..., order])
        except ValueError as error:
            raise ValueError(f"{data['img_path']}: {error}" if data.get("img_path") else str(error)) from None
        return True


def with_corruption(dataset: Mapping, corruption: str, severity: int, seed: int = 0) -> dict:
    """The config of a data set whose images are corrupted, of the config of the data set (or of a wrapper of some).

    Raises:
        ValueError: it has no `transforms` or `pipeline`.
    """
    how: dict[str, Any] = dict(corruption=corruption, severity=severity, seed=seed)
    if isinstance(inner := dataset.get("dataset"), Mapping):
        return {**dataset, "dataset": with_corruption(inner, **how)}
    if several := dataset.get("datasets"):
        return {**dataset, "datasets": [with_corruption(inner, **how) for inner in several]}
    for key in ("transforms", "pipeline"):
        if isinstance(steps := dataset.get(key), (list, tuple)):
            return {**dataset, key: [dict(type="attlas.Corrupted", transforms=list(steps), **how)]}
    raise ValueError(f"the config of the data set ({dataset.get('type')}) has neither transforms nor a pipeline.")
