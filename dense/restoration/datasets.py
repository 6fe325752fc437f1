"""Pictures to learn restoration from: pairs in two folders, or true pictures that are degraded when they are drawn.

Every data set serves dict(image, truth, name, index) after its `transforms`; before them the pictures are uint8 or
uint16 (H, W, 3), red, green, blue (of noise float32), and the transform `PackPair` makes them tensors in [0, 1]. Draws
are repeatable (`attlas.data.Items`): patches, symmetries and noise are functions of (seed, epoch, item).

A picture of DIV2K takes a twentieth of a second to decode, for a patch of which a hundredth is used. With `cache`, each
file is decoded once, into an array file, and later draws read the rows of the patch alone (memory-mapped: workers
share them, and a picture is never whole in memory). Patches of 64 pixels by 2, of PNGs of 2040 x 1356 pixels (7 MB), on
one core: pairs 16 a second without it and 1,250 with it; degraded on the fly 19 and 800.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from ...data import NOT_DATA, Items, drawn, existing_root, one_of, positive
from ...files import printable, replacing
from ...images import MAX_PIXELS, SUFFIXES, read_pixels
from ...registry import DATASETS, TRANSFORMS
from .degradations import Degradation, as_floats, build_degradation

# --- files -----------------------------------------------------------------------------------------------------------


def read_picture(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A picture to learn from: uint8, or of 16 bits uint16, (H, W, 3), red, green, blue. Grey is given three times, a
    palette gives its colors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole image of at most `max_pixels`, or some of its pixels are not opaque, whose colors
            nothing tells. The message names the file.
    """
    image = read_pixels(path, max_pixels)
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    if image.shape[2] == 4 and not (image[..., 3] == np.iinfo(image.dtype).max).all():
        raise ValueError(
            f"{path} has pixels that are not opaque, and nothing tells their colors: put the picture on a ground first."
        )
    return np.ascontiguousarray(image[..., :3])


def pictures_below(dataset: str, folder: Path) -> list[str]:
    """Paths of the pictures in a folder and those below, in order; without hidden ones."""
    found = []
    for top, inside, names in os.walk(folder, followlinks=True):
        inside[:] = sorted(name for name in inside if not name.startswith(NOT_DATA))
        found += [f"{top}/{name}" for name in sorted(names) if _is_picture(name)]
    if not found:
        raise FileNotFoundError(f"{dataset}: {printable(folder)} holds no picture ({' '.join(SUFFIXES)}).")
    return found


def _is_picture(name: str) -> bool:
    return name[0] != "." and name.lower().endswith(SUFFIXES)


# --- the base --------------------------------------------------------------------------------------------------------


class Pictures(Items):
    """Base of the data sets of restoration (see `Items`).

    Args:
        truths: paths of the true pictures.
        images: paths of the pictures to restore, in the same order; () where `degradation` makes them.
        scale: factor of the sides.
        patch: side, in pixels of the picture to restore, of a patch at a random place; None for whole pictures. What is
            left over of a true picture is cut off at the right and at the bottom.
        symmetries: whether one of the eight flips and turns of the pair is drawn.
        cache: folder for decoded pictures, of 3 bytes a pixel (DF2K: 30 GB); None to decode at every draw.
        max_pixels: most pixels of a picture.
        transforms, seed: as of `Items`.
    """

    grey = False  # see `DegradedImages`

    def __init__(
        self,
        split: str,
        truths: Sequence[str],
        images: Sequence[str],
        scale: int,
        degradation: Degradation | None,
        patch: int | None,
        symmetries: bool,
        cache: str | Path | None,
        max_pixels: int,
        transforms,
        seed: int,
    ):
        kind = type(self).__name__
        self.scale = positive(f"{kind}.scale", scale)
        self.patch = None if patch is None else positive(f"{kind}.patch", patch)
        self.max_pixels = positive(f"{kind}.max_pixels", max_pixels)
        self.symmetries, self.degradation = symmetries, degradation
        self.cache = None if cache is None else Path(cache).expanduser()
        # arrays of bytes: Python strings would be copied into every worker, touched as they are counted
        self.truths = np.array([os.fsencode(path) for path in truths])
        self.images = np.array([os.fsencode(path) for path in images])
        super().__init__(split, len(truths), (), transforms, seed)

    @property
    def metainfo(self) -> dict:
        """What MMEngine hands to metrics, and saves beside the weights: scale, and what made the pictures worse."""
        return dict(classes=(), scale=self.scale, degradation=self.degraded_by())

    def degraded_by(self) -> dict:
        """The degradation as a dict."""
        return {} if self.degradation is None else self.degradation.config

    def name(self, item: int) -> str:
        return os.fsdecode(self.images[item] if len(self.images) else self.truths[item])

    def get(self, item: int) -> dict:
        data: dict[str, Any] = dict(truth=self._read(os.fsdecode(self.truths[item])), name=self.name(item), index=item)
        height, width = (side // self.scale for side in data["truth"].shape[:2])
        if len(self.images):
            data["image"] = self._read(self.name(item))
            if data["image"].shape[:2] != (height, width):
                self._refuse(item, data["image"].shape, data["truth"].shape)
        return data | dict(truth=data["truth"][: height * self.scale, : width * self.scale])

    def _refuse(self, item: int, small: Sequence[int], large: Sequence[int]) -> None:
        factors = [large[axis] // max(small[axis], 1) for axis in (0, 1)]
        fits = factors[0] == factors[1] and all(large[a] // max(factors[0], 1) == small[a] for a in (0, 1))
        hint = f" They look like scale={factors[0]}." if fits and factors[0] else ""
        raise ValueError(
            f"{self.name(item)} has {small[1]} x {small[0]} pixels, and its true picture "
            f"{os.fsdecode(self.truths[item])} {large[1]} x {large[0]}, which is not scale={self.scale}.{hint}"
        )

    def _read(self, path: str) -> np.ndarray:
        if self.cache is None:
            return read_picture(path, self.max_pixels)
        status = os.stat(path)
        key = f"{os.path.realpath(path)}\n{status.st_size}\n{status.st_mtime_ns}"
        kept = self.cache / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.npy"
        if not kept.exists():
            image = read_picture(path, self.max_pixels)
            with replacing(kept) as temporary:
                np.save(temporary, image, allow_pickle=False)
        return np.load(kept, mmap_mode="r", allow_pickle=False)

    def draw(self, epoch: int, item: int) -> Any:
        return drawn(self._drawn, self.get(item), self.name(item), self.seed, epoch, item)

    def _drawn(self, data: dict) -> Any:
        keys = [key for key in ("image", "truth") if key in data]
        factor = dict(image=1, truth=self.scale)
        if self.patch is not None:
            height, width = (side // self.scale for side in data["truth"].shape[:2])
            if min(height, width) < self.patch:
                raise ValueError(f"{width} x {height} pixels are no patch of {self.patch} x {self.patch}.")
            top, left = (np.random.randint(side - self.patch + 1) for side in (height, width))
            for key in keys:
                rows, columns = (slice(factor[key] * a, factor[key] * (a + self.patch)) for a in (top, left))
                data[key] = data[key][rows, columns]
        number = np.random.randint(8) if self.symmetries else 0
        for key in keys:
            data[key] = np.array(_symmetry(data[key], number), order="C")  # a copy: here the cache is read
        if self.degradation is not None:
            if self.grey:
                data["truth"] = cv2.cvtColor(data["truth"], cv2.COLOR_RGB2GRAY)
            data["image"] = self.degradation(data["truth"])
        return self.transform(data)


def _symmetry(image: np.ndarray, number: int) -> np.ndarray:
    image = image[:: -1 if number & 2 else 1, :: -1 if number & 1 else 1]
    return image.swapaxes(0, 1) if number & 4 else image


@TRANSFORMS.register_module()
class PackPair:
    """Pictures (H, W, 3) or (H, W) of a sample, `image` and, where it is there, `truth`, to float32 tensors (C, H, W),
    with 0 and 1 for black and white."""

    def __call__(self, data: Mapping) -> dict:
        packed = {}
        for key in ("image", "truth"):
            if data.get(key) is not None:
                packed[key] = torch.from_numpy(np.atleast_3d(as_floats(data[key]))).permute(2, 0, 1).contiguous()
        return {**data, **packed}


# --- degraded on the fly ---------------------------------------------------------------------------------------------


@DATASETS.register_module()
class DegradedImages(Pictures):
    """True pictures that a degradation makes worse at each draw: behind patch and symmetry, so that of a large picture
    no more than the patch is degraded. At test (whole pictures, one epoch) noise is always the same.

    DFWB, on which denoisers are trained, is root=[...] of the folders of DIV2K, Flickr2K, WED and BSD500.

    Args:
        root: folder of pictures, or several; all below it are read.
        degradation: dict of a degradation, such as dict(type='Bicubic', scale=2) or dict(type='GaussianNoise',
            sigma=25).
        grey: whether pictures are made grey (H, W), luma of BT.601 from 0 to 255, before they get worse.
        enlarge: whether sides of a picture that are too short for a patch are stretched, bilinearly, as in HAT's
            pre-training on ImageNet; else such a picture is an error.
        split: name of the part.
        patch, symmetries, cache, max_pixels, transforms, seed: as of `Pictures`.
    """

    def __init__(
        self,
        root: str | Path | Sequence[str | Path],
        degradation: Mapping | Degradation,
        grey: bool = False,
        enlarge: bool = False,
        split: str = "train",
        patch: int | None = None,
        symmetries: bool = False,
        transforms=(),
        seed: int = 0,
        cache: str | Path | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        roots = [root] if isinstance(root, (str, os.PathLike)) else root
        truths: list[str] = []
        for folder in roots:
            truths += pictures_below("DegradedImages", existing_root("DegradedImages", folder, "pictures."))
        if enlarge and patch is None:
            raise ValueError("DegradedImages.enlarge is True, and there is no patch (patch=None).")
        self.grey, self.enlarge = grey, enlarge
        made = build_degradation(degradation)
        super().__init__(split, truths, (), made.scale, made, patch, symmetries, cache, max_pixels, transforms, seed)

    def get(self, item: int) -> dict:
        data = super().get(item)
        height, width = data["truth"].shape[:2]
        least = self.scale * (self.patch or 0)
        if self.enlarge and min(height, width) < least:
            data["truth"] = cv2.resize(np.array(data["truth"]), (max(width, least), max(height, least)))
        return data


# --- pairs -----------------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """Where pairs lie below a root.

    Args:
        truths: pattern of the paths of true pictures; {scale} stands for the number. Of several the first is taken that
            any picture has.
        pattern, image: what `re.sub` makes of the path of a true picture, without its ending, into that of its partner.
    """

    truths: tuple[str, ...]
    pattern: str
    image: str


_DIV2K = r"^DIV2K_(\w+?)_HR/(.+)"
_SUB = r"^(.+?)_HR_sub/(.+)"
DIV2K_SUB = Rule(("DIV2K_train_HR_sub/*",), _SUB, r"\1_LR_bicubic/X{scale}_sub/\2")
FLICKR2K = Rule(
    ("Flickr2K_HR/*", "Flickr2K/Flickr2K_HR/*"), r"Flickr2K_HR/(.+)", r"Flickr2K_LR_bicubic/X{scale}/\1x{scale}"
)
FLICKR2K_SUB = Rule(("Flickr2K_HR_sub/*",), _SUB, r"\1_LR_bicubic/X{scale}_sub/\2")
DIV2K = Rule(("DIV2K_train_HR/*",), _DIV2K, r"DIV2K_\1_LR_bicubic/X{scale}/\2x{scale}")

# By name, the rules of a layout, each of which must find pictures.
LAYOUTS: dict[str, tuple[Rule, ...]] = {
    "DIV2K": (DIV2K,),
    "DIV2K_valid": (DIV2K._replace(truths=("DIV2K_valid_HR/*",)),),
    "Flickr2K": (FLICKR2K,),
    "DF2K": (DIV2K, FLICKR2K),
    # the sub-images that BasicSR's scripts cut
    "DIV2K_sub": (DIV2K_SUB,),
    "DF2K_sub": (DIV2K_SUB, FLICKR2K_SUB),
    # Set5, Set14, BSD100, Urban100 and Manga109, a folder each: as BasicSR has them, as EDSR's benchmark.tar has them,
    # and as the authors of Urban100 have them
    "GTmod": (Rule(("GTmod12/*", "GTmod{scale}/*"), r"^GTmod\d+/(.+)", r"LRbicx{scale}/\1"),),
    "benchmark": (Rule(("HR/*",), r"^HR/(.+)", r"LR_bicubic/X{scale}/\1x{scale}"),),
    "SRF": (Rule(("image_SRF_{scale}/*_HR.*",), r"_HR$", "_LR"),),
    # noisy and clean: SIDD as it is published (Small, Medium), and cut into pieces
    "SIDD": (Rule(("Data/*/*GT_SRGB*", "*/*GT_SRGB*"), r"GT_SRGB(?!.*/)", "NOISY_SRGB"),),
    "SIDD_crops": (Rule(("gt_crops/*", "target_crops/*"), r"^(gt|target)_crops/", "input_crops/"),),
}


@DATASETS.register_module()
class PairedImages(Pictures):
    """Pairs of files: true pictures and pictures to restore, `scale` times smaller (1: noisy and clean).

    Args:
        root: folder of the data set.
        scale: factor of the sides.
        layout: name of a published layout, one of `LAYOUTS`; None for two folders.
        truth, image: of two folders, their names below root.
        image_name: of two folders, the name of a picture to restore, without its ending, of the {name} of the true one
            and the {scale}, such as '{name}x{scale}'.
        split: name of the part.
        patch, symmetries, cache, max_pixels, transforms, seed: as of `Pictures`.

    Raises:
        FileNotFoundError: there is no folder or picture, or a picture without a partner (names it).
        ValueError: two files have one name; at a draw, a pair whose sizes do not fit (names both files).
    """

    def __init__(
        self,
        root: str | Path,
        scale: int,
        layout: str | None = None,
        truth: str = "HR",
        image: str = "LR",
        image_name: str = "{name}",
        split: str = "train",
        patch: int | None = None,
        symmetries: bool = False,
        transforms=(),
        seed: int = 0,
        cache: str | Path | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        if layout is None:
            partner = image_name.replace("{name}", r"\g<1>")
            rules: tuple[Rule, ...] = (Rule((f"{truth}/*",), rf"^{re.escape(truth)}/(.+)", f"{image}/{partner}"),)
        else:
            rules = LAYOUTS[one_of("PairedImages.layout", layout, tuple(LAYOUTS))]
        self.layout = layout or "two folders"
        positive("PairedImages.scale", scale)
        folder = existing_root("PairedImages", root, " and ".join(rule.truths[0] for rule in rules) + ".")
        truths, images = [], []
        for rule in rules:
            pairs = find_pairs(folder, rule, scale)
            truths += list(pairs)
            images += list(pairs.values())
        super().__init__(split, truths, images, scale, None, patch, symmetries, cache, max_pixels, transforms, seed)

    def degraded_by(self) -> dict:
        return dict(type="PairedImages", layout=self.layout, scale=self.scale)


def find_pairs(root: Path, rule: Rule, scale: int) -> dict[str, str]:
    """The paths of the pictures to restore, by those of their true ones, in order. Errors as of `PairedImages`."""
    patterns = [pattern.replace("{scale}", str(scale)) for pattern in rule.truths]
    found: list[Path] = []
    for pattern in patterns:
        found = found or sorted(path for path in root.glob(pattern) if _is_picture(path.name) and path.is_file())
    if not found:
        raise FileNotFoundError(f"PairedImages: {printable(root)} holds no picture {' or '.join(patterns)}.")
    truths = {path.relative_to(root).with_suffix("").as_posix(): path for path in found}
    if len(truths) < len(found):
        twice = next(path for path in found if truths[path.relative_to(root).with_suffix("").as_posix()] != path)
        raise ValueError(f"PairedImages: there are two pictures of the name {printable(twice.with_suffix(''))}.")
    image = rule.image.replace("{scale}", str(scale))
    partners = {name: root / re.sub(rule.pattern, image, name) for name in truths}
    there: dict[Path, Path] = {}
    for folder in sorted({path.parent for path in partners.values()}):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"PairedImages: there is no folder {printable(folder)}, of the pictures to restore."
            )
        for path in sorted(path for path in folder.iterdir() if _is_picture(path.name)):
            if there.setdefault(path.with_suffix(""), path) != path:
                raise ValueError(f"PairedImages: there are two pictures of the name {printable(path.with_suffix(''))}.")
    missing = [name for name, path in partners.items() if path not in there]
    if missing:
        raise FileNotFoundError(
            f"PairedImages: {len(missing)} of {len(truths)} pictures have no partner. First: of "
            f"{printable(truths[missing[0]])} it would be {printable(partners[missing[0]])}.*"
        )
    known = {*partners.values(), *(path.with_suffix("") for path in found)}
    if alone := sorted(set(there) - known):
        raise FileNotFoundError(
            f"PairedImages: {len(alone)} pictures to restore have no true picture. First: {printable(there[alone[0]])}"
        )
    return {str(truths[name]): str(there[path]) for name, path in partners.items()}
