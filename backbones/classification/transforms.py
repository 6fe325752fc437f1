"""What a pipeline does to one image: crop, flip, augment, and pack it as a tensor.

Transforms are named in a config, in this order: `transforms=[dict(type='RandomResizedCrop', size=224),
dict(type='RandomFlip'), dict(type='PackImage'), dict(type='RandomErasing')]`. Up to `PackImage`, which makes it a
normalised tensor, the image is uint8 (H, W, 3), red, green, blue. A size is a number, for a square, or a pair (height,
width).

Random transforms draw from NumPy's global generator (RandomErasing's noise from torch's), which the data sets seed for
every draw (`attlas.data.seeded`).
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine import registry as root

from ...data import one_of, positive
from ...registry import TRANSFORMS

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, in levels of 0 to 255
INTERPOLATIONS = ("bilinear", "bicubic")
BORDERS = {
    "constant": cv2.BORDER_CONSTANT,
    "reflect": cv2.BORDER_REFLECT_101,
    "symmetric": cv2.BORDER_REFLECT,
    "edge": cv2.BORDER_REPLICATE,
}


def register(transform: type) -> type:
    """Registers in our scope alone: mmcv puts its Resize, RandomFlip, Pad, ... into MMEngine's root registry, and could
    not be imported if ours were there. `attlas.Resize` is found from every scope."""
    root.Registry._register_module(TRANSFORMS, transform)
    return transform


# --- arguments -------------------------------------------------------------------------------------------------------


def pair(argument: str, value: int | Sequence[int], least: int = 1) -> tuple[int, int]:
    """(vertical, horizontal) of a number or a pair; otherwise a ValueError that names the argument."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(values) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in values):
        raise ValueError(f"{argument} is {value!r}; it must be an integer of at least {least}, or a pair of them.")
    return values


def interval(argument: str, value: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """`value` as (a, b) with low <= a <= b <= high; otherwise a ValueError that names the argument."""
    if not (isinstance(value, Sequence) and len(value) == 2 and low <= value[0] <= value[1] <= high):
        raise ValueError(f"{argument} is {value!r}; it must be (a, b) with {low:g} <= a <= b <= {high:g}.")
    return value[0], value[1]


def between(argument: str, value: float, low: float, high: float) -> float:
    """`value` if it lies in [low, high]; otherwise a ValueError that names the argument."""
    if not low <= value <= high:
        raise ValueError(f"{argument} is {value!r}; it must lie in [{low:g}, {high:g}].")
    return value


# --- geometry --------------------------------------------------------------------------------------------------------


class ImageTransform:
    """Base: `apply(image uint8 (H, W, 3)) -> image`, put into the dict that comes."""

    apply: Callable[[np.ndarray], np.ndarray | torch.Tensor]

    def __call__(self, data: dict) -> dict:
        image = data["image"]
        if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            form = f"{type(image).__name__} of {getattr(image, 'dtype', '?')} {tuple(getattr(image, 'shape', ()))}"
            raise ValueError(
                f"{type(self).__name__} takes uint8 arrays (H, W, 3), as before PackImage, and got a {form}."
            )
        return {**data, "image": self.apply(image)}


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """`image` at (height, width). By torch, whose filter widens where the image shrinks, as Pillow's does, with which
    published checkpoints were trained; OpenCV's does not, and fine lines break up."""
    if image.shape[:2] == size:
        return image
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    return F.interpolate(planes, size, mode=interpolation, antialias=True)[0].permute(1, 2, 0).contiguous().numpy()


@register
class Resize(ImageTransform):
    """To a pair (height, width) exactly; to a number so that the short side has it, and the proportions stay.

    Args:
        max_ratio: greatest ratio of the sides where `size` is a number. Of a longer image the middle is taken first,
            for a strip of 2 x 8,000 pixels would have a million of them on its long side.
    """

    def __init__(self, size, interpolation: str = "bicubic", max_ratio: int = 16):
        self.max_ratio = positive("Resize.max_ratio", max_ratio)
        self.size = positive("Resize.size", size) if isinstance(size, int) else pair("Resize.size", size)
        self.interpolation = one_of("Resize.interpolation", interpolation, INTERPOLATIONS)

    def apply(self, image):
        if not isinstance(self.size, int):
            return resize(image, self.size, self.interpolation)
        short = min(image.shape[:2])
        longest = self.max_ratio * short
        # as many pixels are cut off on one side as on the other
        parts = [max(0, -(-(side - longest) // 2)) for side in image.shape[:2]]
        image = image[parts[0] : image.shape[0] - parts[0], parts[1] : image.shape[1] - parts[1]]
        height, width = (round(side * self.size / short) for side in image.shape[:2])
        return resize(image, (height, width), self.interpolation)


@register
class RandomResizedCrop(ImageTransform):
    """A random part of the image, resized (Szegedy et al., CVPR 2015): of U(scale) of the area, with an aspect ratio
    (width / height) whose logarithm is uniform. Where ten attempts do not fit into the image, the largest centred part
    with an allowed ratio.

    Args:
        interpolation: 'bicubic', 'bilinear', or 'random' for either.
    """

    def __init__(self, size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation: str = "bicubic"):
        self.size = pair("RandomResizedCrop.size", size)
        self.scale = interval("RandomResizedCrop.scale", scale, 0, 1)
        self.ratio = interval("RandomResizedCrop.ratio", ratio, 1e-3, 1e3)
        one_of("RandomResizedCrop.interpolation", interpolation, (*INTERPOLATIONS, "random"))
        self.interpolations = INTERPOLATIONS if interpolation == "random" else (interpolation,)

    def apply(self, image):
        top, left, height, width = self.part(*image.shape[:2])
        interpolation = self.interpolations[np.random.randint(len(self.interpolations))]
        return resize(image[top : top + height, left : left + width], self.size, interpolation)

    def part(self, H: int, W: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of a random part of an image (H, W)."""
        for _ in range(10):
            area = H * W * np.random.uniform(*self.scale)
            ratio = math.exp(np.random.uniform(*np.log(self.ratio)))
            height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < height <= H and 0 < width <= W:
                return np.random.randint(H - height + 1), np.random.randint(W - width + 1), height, width
        ratio = min(max(W / H, self.ratio[0]), self.ratio[1])
        height, width = max(min(H, round(W / ratio)), 1), max(min(W, round(H * ratio)), 1)
        return (H - height) // 2, (W - width) // 2, height, width


def crop(image: np.ndarray, size: tuple[int, int], place: Callable[[int], int], transform: str) -> np.ndarray:
    """The part of `size` whose top and left `place` chooses from 0 to the room that there is."""
    if any(side < wanted for side, wanted in zip(image.shape, size)):
        raise ValueError(f"{transform} of {size} got an image of {image.shape[:2]}; put a Resize or a Pad before it.")
    top, left = (place(side - wanted) for side, wanted in zip(image.shape, size))
    return image[top : top + size[0], left : left + size[1]]


@register
class CenterCrop(ImageTransform):
    """The middle of the image; an odd row or column is left over at the end."""

    def __init__(self, size):
        self.size = pair("CenterCrop.size", size)

    def apply(self, image):
        return crop(image, self.size, lambda room: room // 2, "CenterCrop")


@register
class Pad(ImageTransform):
    """Adds `padding` rows and columns on each side: (rows, columns) or one number for both. `mode` is 'constant' (of
    `fill`, red, green, blue), 'reflect' (mirrored, the edge once), 'symmetric' (mirrored, the edge twice) or 'edge'
    (repeating it)."""

    def __init__(self, padding, mode: str = "constant", fill=(0, 0, 0)):
        self.padding = pair("Pad.padding", padding, least=0)
        self.mode, self.fill = one_of("Pad.mode", mode, tuple(BORDERS)), tuple(fill)

    def apply(self, image):
        y, x = self.padding
        if self.mode == "reflect" and (y >= image.shape[0] or x >= image.shape[1]):
            raise ValueError(f"Pad by {self.padding} cannot reflect an image of {image.shape[:2]}.")
        return cv2.copyMakeBorder(image, y, y, x, x, BORDERS[self.mode], value=self.fill)


@register
class RandomCrop(ImageTransform):
    """A part of `size` from anywhere in the image, around which `Pad(padding, mode)` was put."""

    def __init__(self, size, padding=0, mode: str = "constant"):
        self.size, self.pad = pair("RandomCrop.size", size), Pad(padding, mode)

    def apply(self, image):
        return crop(self.pad.apply(image), self.size, lambda room: np.random.randint(room + 1), "RandomCrop")


@register
class RandomFlip(ImageTransform):
    """Mirrors the image with a probability: left to right ('horizontal') or top to bottom ('vertical')."""

    def __init__(self, probability: float = 0.5, direction: str = "horizontal"):
        self.probability = between("RandomFlip.probability", probability, 0, 1)
        self.axis = ("vertical", "horizontal").index(
            one_of("RandomFlip.direction", direction, ("horizontal", "vertical"))
        )

    def apply(self, image):
        return np.flip(image, self.axis).copy() if np.random.rand() < self.probability else image


# --- colours ---------------------------------------------------------------------------------------------------------


def blend(start: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """start + factor * (image - start), rounded and clipped: 0 gives `start`, 1 the image, and more exaggerates it."""
    return cv2.addWeighted(image, factor, start, 1 - factor, 0)


def gray(image: np.ndarray) -> np.ndarray:
    """The brightness as a grey image (H, W, 3), weighted as ITU-R BT.601 does."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return blend(np.zeros_like(image), image, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    mean = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean()
    return blend(np.full_like(image, round(mean)), image, factor)


def color(image: np.ndarray, factor: float) -> np.ndarray:
    return blend(gray(image), image, factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Against the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13, whose border stays as it is."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, kernel)[1:-1, 1:-1]
    return blend(smooth, image, factor)


def hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Turns the hue by `shift` of a full circle."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(shift * 256) % 256)  # uint8 wraps, as hues do
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


@register
class ColorJitter(ImageTransform):
    """Brightness, contrast and saturation times U(1 - x, 1 + x), and the hue turned by U(-hue, hue) of a circle, in
    random order."""

    def __init__(self, brightness: float = 0, contrast: float = 0, saturation: float = 0, hue: float = 0):
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            between(f"ColorJitter.{name}", value, 0, math.inf)
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue = between("ColorJitter.hue", hue, 0, 0.5)

    def apply(self, image):
        scaled = ((brightness, self.brightness), (contrast, self.contrast), (color, self.saturation))
        steps = [(change, np.random.uniform(max(0, 1 - x), 1 + x)) for change, x in scaled if x]
        if self.hue:
            steps.append((hue, np.random.uniform(-self.hue, self.hue)))
        for step in np.random.permutation(len(steps)):
            change, amount = steps[step]
            image = change(image, amount)
        return image


# --- RandAugment -----------------------------------------------------------------------------------------------------

FILL = tuple(round(level) for level in MEAN)  # what shows where an image was moved away


def affine(image: np.ndarray, matrix: Sequence[Sequence[float]]) -> np.ndarray:
    """The image whose pixel (x, y) is the given one's at matrix (2, 3) times (x, y, 1)."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = image.shape[1], image.shape[0]
    return cv2.warpAffine(image, np.array(matrix, float), size, flags=flags, borderValue=FILL)


def shear_x(image: np.ndarray, factor: float) -> np.ndarray:
    return affine(image, [[1, factor, 0], [0, 1, 0]])


def shear_y(image: np.ndarray, factor: float) -> np.ndarray:
    return affine(image, [[1, 0, 0], [factor, 1, 0]])


def translate_x(image: np.ndarray, share: float) -> np.ndarray:
    return affine(image, [[1, 0, share * image.shape[1]], [0, 1, 0]])


def translate_y(image: np.ndarray, share: float) -> np.ndarray:
    return affine(image, [[1, 0, 0], [0, 1, share * image.shape[0]]])


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """About the middle, counter-clockwise."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=FILL)


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Each channel stretched so that it reaches from 0 to 255."""
    table = np.tile(np.arange(256, dtype=float), (3, 1))
    for levels, low, high in zip(table, image.min((0, 1)).astype(float), image.max((0, 1)).astype(float)):
        if high > low:
            levels[:] = (levels - low) * 255 / (high - low)
    return look_up(image, table)


def equalize(image: np.ndarray) -> np.ndarray:
    """Each channel through its own cumulative histogram, so that its levels become nearly uniform (Pillow's rule)."""
    table = np.tile(np.arange(256), (3, 1))
    for channel, levels in enumerate(table):
        count = np.bincount(image[..., channel].ravel(), minlength=256)
        step = (count.sum() - count[count > 0][-1]) // 255
        if step > 0:
            levels[:] = (step // 2 + np.cumsum(count) - count) // step
    return look_up(image, table)


def look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Each channel through its row of `table` (3, 256)."""
    return cv2.LUT(image, np.ascontiguousarray(np.clip(table, 0, 255).astype(np.uint8).T[None]))


def invert(image: np.ndarray) -> np.ndarray:
    return 255 - image


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the highest `bits` of each level."""
    return image & np.uint8(0xFF << (8 - bits) & 0xFF)


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts the levels of at least `threshold`."""
    return np.where(image < threshold, image, 255 - image)


def solarize_add(image: np.ndarray, added: int) -> np.ndarray:
    """Adds to the levels below 128."""
    return np.where(image < 128, np.minimum(image, 255 - added) + np.uint8(added), image)


def _either_sign(value: float) -> float:
    return value if np.random.rand() < 0.5 else -value


# What an operation takes at strength t in [0, 1] (magnitude / 10), where more is not always stronger, and where it is.
FIXED: dict[Callable, Callable[[float], tuple]] = {
    auto_contrast: lambda t: (),
    equalize: lambda t: (),
    invert: lambda t: (),
    rotate: lambda t: (_either_sign(30 * t),),
    solarize_add: lambda t: (min(int(110 * t), 128),),
    shear_x: lambda t: (_either_sign(0.3 * t),),
    shear_y: lambda t: (_either_sign(0.3 * t),),
    translate_x: lambda t: (_either_sign(0.45 * t),),
    translate_y: lambda t: (_either_sign(0.45 * t),),
}
PLAIN: dict[Callable, Callable[[float], tuple]] = {
    posterize: lambda t: (int(4 * t),),
    solarize: lambda t: (int(256 * t),),
    **{change: lambda t: (0.1 + 1.8 * t,) for change in (color, contrast, brightness, sharpness)},
}
INCREASING: dict[Callable, Callable[[float], tuple]] = {
    posterize: lambda t: (4 - int(4 * t),),
    solarize: lambda t: (256 - int(256 * t),),
    **{change: lambda t: (1 + _either_sign(0.9 * t),) for change in (color, contrast, brightness, sharpness)},
}


@register
class RandAugment(ImageTransform):
    """RandAugment (Cubuk et al., NeurIPS 2020): `num` of 15 operations, chosen with repetition, one after the other.
    With the strengths that recipes mean by `rand-m9-mstd0.5-inc1`: each operation is done with `probability`, its
    magnitude drawn from N(magnitude, magnitude_std) and clipped to [0, 10].

    Args:
        increasing: whether a higher magnitude is stronger for every operation. In the paper's table, colours get
            fainter at low magnitudes, and posterizing and solarizing are strongest at 0.
    """

    def __init__(
        self,
        magnitude: float = 9,
        num: int = 2,
        magnitude_std: float = 0.5,
        increasing: bool = True,
        probability: float = 0.5,
    ):
        self.magnitude = between("RandAugment.magnitude", magnitude, 0, 10)
        self.num = positive("RandAugment.num", num)
        self.magnitude_std = between("RandAugment.magnitude_std", magnitude_std, 0, math.inf)
        self.probability = between("RandAugment.probability", probability, 0, 1)
        self.operations = list((FIXED | (INCREASING if increasing else PLAIN)).items())

    def apply(self, image):
        for choice in np.random.randint(len(self.operations), size=self.num):
            if np.random.rand() < self.probability:
                operation, arguments = self.operations[choice]
                magnitude = np.clip(np.random.normal(self.magnitude, self.magnitude_std), 0, 10)
                image = operation(image, *arguments(magnitude / 10))
        return image


@register
class RandomRotate(ImageTransform):
    """Turns the image about its middle by U(-degrees, degrees); empty corners get ImageNet's mean color."""

    def __init__(self, degrees: float):
        self.degrees = between("RandomRotate.degrees", degrees, 0, 180)

    def apply(self, image):
        return rotate(image, np.random.uniform(-self.degrees, self.degrees))


@register
class GaussianBlur(ImageTransform):
    """Blurs the image by a Gaussian of `kernel_size` pixels, odd, whose standard deviation is drawn from U(sigma)."""

    def __init__(self, kernel_size: int = 3, sigma: Sequence[float] = (0.1, 2.0)):
        self.kernel_size = positive("GaussianBlur.kernel_size", kernel_size)
        if self.kernel_size % 2 == 0:
            raise ValueError(f"GaussianBlur.kernel_size is {kernel_size}; it must be odd.")
        self.sigma = interval("GaussianBlur.sigma", sigma, 1e-3, math.inf)

    def apply(self, image):
        return cv2.GaussianBlur(image, (self.kernel_size,) * 2, np.random.uniform(*self.sigma))


# --- tensors ---------------------------------------------------------------------------------------------------------


@register
class PackImage(ImageTransform):
    """(image - mean) / std as a float32 tensor (3, H, W); `mean` and `std` in levels of 0 to 255, ImageNet's unless
    given."""

    def __init__(self, mean: Sequence[float] = MEAN, std: Sequence[float] = STD):
        for name, value in (("mean", mean), ("std", std)):
            if len(value) != 3:
                raise ValueError(f"PackImage.{name} is {value!r}; it must be three numbers (red, green, blue).")
        if min(std) <= 0:
            raise ValueError(f"PackImage.std is {std!r}; its numbers must be positive.")
        if 0 < max(mean) <= 1:
            raise ValueError(
                f"PackImage.mean is {mean!r}; it is meant in levels of 0 to 255: multiply mean and std by 255."
            )
        self.mean, self.std = (torch.tensor(value, dtype=torch.float32)[:, None, None] for value in (mean, std))

    def apply(self, image):
        planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        return planes.to(torch.float32, memory_format=torch.contiguous_format).sub_(self.mean).div_(self.std)


@register
class RandomErasing:
    """Random erasing (Zhong et al., AAAI 2020), after PackImage: with a probability a rectangle of 2 % to a third of
    the image, of an aspect ratio between 0.3 and 1 / 0.3, is filled with normal noise for every pixel ('pixel') or
    with zeros, the mean of the normalised data ('const'). Where ten attempts do not fit, nothing is erased."""

    AREA, RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)

    def __init__(self, probability: float = 0.25, mode: str = "pixel"):
        self.probability = between("RandomErasing.probability", probability, 0, 1)
        self.mode = one_of("RandomErasing.mode", mode, ("pixel", "const"))

    def __call__(self, data: dict) -> dict:
        image = data["image"]
        if not isinstance(image, torch.Tensor):
            raise ValueError("RandomErasing takes tensors; put it after PackImage.")
        if np.random.rand() >= self.probability:
            return data
        H, W = image.shape[1:]
        for _ in range(10):
            area = H * W * np.random.uniform(*self.AREA)
            ratio = math.exp(np.random.uniform(*np.log(self.RATIO)))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height < H and width < W:
                top, left = np.random.randint(H - height + 1), np.random.randint(W - width + 1)
                image = image.clone()
                patch = image[:, top : top + height, left : left + width]
                patch.normal_() if self.mode == "pixel" else patch.zero_()
                break
        return {**data, "image": image}
