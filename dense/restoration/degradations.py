"""What makes a picture worse: the pictures that a restorer learns to undo.

A degradation maps a picture to a worse one, `scale` times smaller along each side. Pictures are uint8 or uint16, or
floats in [0, 1], (H, W, 3), red, green, blue, or grey (H, W). It draws from NumPy's global generator alone, which the
data sets seed for each draw (`attlas.data.Items`): the noise of a test picture is always the same.

A degradation is a value: `degradation.config` is a dict of plain values, `build_degradation` makes it again, and the
data sets put it into their `metainfo`, which MMEngine saves beside the weights.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch

from ...data import one_of, positive

# --- numbers of pictures ---------------------------------------------------------------------------------------------


def as_floats(image: np.ndarray) -> np.ndarray:
    """A picture as float32, with 0 and 1 for the least and the largest number of its dtype; floats stay as they are.

    Raises:
        ValueError: the dtype is no uint8, uint16 or float.
    """
    if image.dtype in (np.uint8, np.uint16):
        return image.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)
    if image.dtype.kind != "f":
        raise ValueError(f"a picture is {image.dtype}; it may be uint8, uint16, or floats in [0, 1].")
    return image.astype(np.float32, copy=False)


def as_bytes(image: np.ndarray) -> np.ndarray:
    """A picture as uint8, clipped and rounded."""
    return image if image.dtype == np.uint8 else _rounded(255 * as_floats(image).astype(np.float64), np.uint8)


def _rounded(numbers: np.ndarray, dtype: Any) -> np.ndarray:
    """Floats as integers, clipped to those of the dtype; halves go up, as MATLAB's do."""
    return np.clip(np.floor(numbers + 0.5), 0, np.iinfo(dtype).max).astype(dtype)


# --- bicubic ---------------------------------------------------------------------------------------------------------


def imresize(
    image: np.ndarray, scale: float | None = None, size: Sequence[int] | None = None, antialias: bool = True
) -> np.ndarray:
    """A picture in another size, as MATLAB's `imresize(image, scale)` makes it: bicubic (Keys, 1981, a = -1/2).

    Output pixel i lies at (i + 1/2) / scale - 1/2 of the input, so both pictures have their corners in the same places.
    Of a smaller picture the kernel is stretched by 1 / scale (antialias); beyond the border the picture is mirrored,
    the pixel at the border twice. The axis of the smaller scale is first. Integers are rounded behind each axis, as
    MATLAB rounds them; of floats nothing is rounded or clipped.

    Args:
        image: uint8, uint16 or floats, (H, W) or (H, W, C).
        scale: factor of both sides; the output has ceil(scale * side) pixels.
        size: height and width of the output, in place of `scale`.
        antialias: whether the kernel is stretched where the picture gets smaller.

    Returns:
        The picture in the dtype of `image`.

    Raises:
        ValueError: both or none of scale and size, one that is not positive, or no picture.
    """
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"image has the shape {tuple(image.shape)}; it must be (H, W) or (H, W, C), and not empty.")
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise ValueError(f"image is {image.dtype}; it may be uint8, uint16 or floats.")
    sides = image.shape[:2]
    if (scale is None) == (size is None):
        raise ValueError(f"scale={scale!r} and size={size!r}: give one of the two.")
    if size is None:
        assert scale is not None
        if not 0 < scale < np.inf:
            raise ValueError(f"scale is {scale!r}; it must be positive.")
        factors = [float(scale)] * 2
        wanted = [int(np.ceil(np.round(scale * side, 9))) for side in sides]  # 3 * (1 / 3) is 1 pixel
    else:
        if len(size) != 2:
            raise ValueError(f"size is {size!r}; it must be height and width.")
        wanted = [positive("size", int(side)) for side in size]
        factors = [new / old for new, old in zip(wanted, sides)]
    dtype, result = image.dtype, image
    for axis in sorted((0, 1), key=lambda axis: factors[axis]):
        index, weights = _taps(sides[axis], wanted[axis], factors[axis], antialias)
        form = [1] * image.ndim
        form[axis] = -1
        numbers = np.zeros([wanted[axis] if a == axis else side for a, side in enumerate(result.shape)])
        for places, share in zip(index, weights):
            # not `take`, which copies all of a picture that is not laid out in rows
            numbers += share.reshape(form) * (result[places] if axis == 0 else result[:, places])
        result = numbers if dtype.kind == "f" else _rounded(numbers, dtype)
    return result.astype(dtype, copy=False)


@lru_cache(maxsize=64)
def _taps(length: int, wanted: int, scale: float, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (taps, wanted) of the input that an output pixel reads along an axis, and their weights."""
    stretch = min(scale, 1.0) if antialias else 1.0
    width = 4 / stretch
    center = (np.arange(wanted) + 0.5) / scale - 0.5
    index = np.floor(center - width / 2).astype(int) + 1 + np.arange(int(np.ceil(width)) + 1)[:, None]
    weights = _cubic((center - index) * stretch)
    weights /= weights.sum(0)
    used = weights.any(1)
    index = np.mod(index[used], 2 * length)
    return np.minimum(index, 2 * length - 1 - index), weights[used]


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0))


# --- degradations ----------------------------------------------------------------------------------------------------


class Degradation(ABC):
    """Base of the degradations, which are frozen dataclasses.

    Attributes:
        scale: factor by which the sides get smaller.
    """

    scale: int = 1

    @abstractmethod
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The degraded picture.

        Args:
            image: uint8, uint16 or floats in [0, 1], (H, W, 3) or (H, W), whose sides are multiples of `scale`.
        """

    @property
    def config(self) -> dict[str, Any]:
        """The dict of which `build_degradation` makes this again."""
        return dict(type=type(self).__name__, **asdict(self))  # type: ignore[call-overload]


def build_degradation(config: Mapping | Degradation) -> Degradation:
    """A degradation of its dict form, dict(type=..., ...), such as dict(type="Bicubic", scale=4).

    Raises:
        ValueError: no such degradation, or an argument that it does not take.
    """
    if isinstance(config, Degradation):
        return config
    options = _tuples(config)
    kind = one_of("degradation.type", options.pop("type", ""), tuple(DEGRADATIONS))
    try:
        return DEGRADATIONS[kind](**options)
    except TypeError as error:
        raise ValueError(f"degradation {kind}: {error}") from error


def _tuples(value: Any) -> Any:
    """A value with tuples for the lists that JSON makes of them."""
    if isinstance(value, Mapping):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Bicubic(Degradation):
    """The picture `scale` times smaller, bicubic with antialias (`imresize`): the classical super-resolution. The dtype
    stays; bytes are rounded to bytes.

    Raises:
        ValueError: the sides are no multiples of the scale: crop the picture, or phase and size would be in doubt.
    """

    scale: int

    def __post_init__(self):
        positive("Bicubic.scale", self.scale)

    def __call__(self, image):
        height, width = image.shape[:2]
        if height % self.scale or width % self.scale:
            raise ValueError(f"a picture of {width} x {height} pixels: both must be multiples of scale={self.scale}.")
        return image if self.scale == 1 else imresize(image, 1 / self.scale)


@dataclass(frozen=True)
class GaussianNoise(Degradation):
    """White Gaussian noise, drawn anew for each pixel and channel, neither clipped nor rounded. The picture becomes
    float32.

    Args:
        sigma: standard deviation in units of 1/255, such as 15, 25, 50; or the least and the largest, of which one is
            drawn for each picture.
    """

    sigma: float | tuple[float, float]

    def __post_init__(self):
        least, most = self._range()
        if not 0 <= least <= most:
            raise ValueError(f"GaussianNoise.sigma is {self.sigma!r}; it must be at least 0, or two such that rise.")

    def _range(self) -> tuple[float, float]:
        sigma = self.sigma
        return tuple(sigma) if isinstance(sigma, Sequence) else (sigma, sigma)  # type: ignore[return-value]

    def __call__(self, image):
        least, most = self._range()
        sigma = np.random.uniform(least, most) if least < most else least
        return as_floats(image) + np.float32(sigma / 255) * np.random.standard_normal(image.shape).astype(np.float32)


@dataclass(frozen=True)
class JPEG(Degradation):
    """The picture as a JPEG file keeps it, coded and decoded by OpenCV (4:2:0). The picture becomes uint8.

    Args:
        quality: 1 (worst) to 100; or the least and the largest, of which one is drawn for each picture.
    """

    quality: int | tuple[int, int]

    def __post_init__(self):
        least, most = self._range()
        if not 1 <= least <= most <= 100:
            raise ValueError(f"JPEG.quality is {self.quality!r}; it must be 1 to 100, or two such that rise.")

    def _range(self) -> tuple[int, int]:
        quality = self.quality
        return tuple(quality) if isinstance(quality, Sequence) else (quality, quality)  # type: ignore[return-value]

    def __call__(self, image):
        least, most = self._range()
        return through_jpeg(image, int(np.random.randint(least, most + 1)) if least < most else least)


def through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """A picture, uint8, behind a JPEG file of a quality (1 to 100)."""
    order = cv2.COLOR_RGB2BGR  # its own inverse
    pixels = as_bytes(image)
    pixels = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, order)
    _, coded = cv2.imencode(".jpg", np.ascontiguousarray(pixels), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded: Any = cv2.imdecode(coded, cv2.IMREAD_UNCHANGED)
    return decoded if decoded.ndim == 2 else cv2.cvtColor(decoded, order)


@dataclass(frozen=True)
class Chain(Degradation):
    """Degradations one after the other.

    Args:
        steps: degradations, or their dicts.
    """

    steps: Sequence[Any]
    scale: int = field(init=False)

    def __post_init__(self):
        steps = tuple(build_degradation(step) for step in self.steps)
        if not steps:
            raise ValueError("Chain.steps is empty; it must hold at least one degradation.")
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "scale", int(np.prod([step.scale for step in steps])))

    @property
    def config(self):
        return dict(type="Chain", steps=[step.config for step in self.steps])

    def __call__(self, image):
        for step in self.steps:
            image = step(image)
        return image


# --- Real-ESRGAN -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One of the two stages of `RealESRGAN`: blur, resize, noise, JPEG. Pairs are least and most.

    Args:
        blur: probability of a blur.
        sinc: share of circular low-passes among the kernels.
        sigma: deviation of the Gaussian kernels, in pixels, along each axis.
        resize: probabilities of larger, smaller, and the same size.
        factor: factor of the sides, where they change.
        gaussian: probability of Gaussian noise; else it is Poisson's.
        noise: deviation of Gaussian noise in units of 1/255.
        poisson: factor of Poisson's noise.
        grey: probability that the channels share their noise.
        quality: of JPEG.
    """

    blur: float
    sinc: float
    sigma: tuple[float, float]
    resize: tuple[float, float, float]
    factor: tuple[float, float]
    gaussian: float
    noise: tuple[float, float]
    poisson: tuple[float, float]
    grey: float
    quality: tuple[int, int]


FIRST = Stage(1.0, 0.1, (0.2, 3), (0.2, 0.7, 0.1), (0.15, 1.5), 0.5, (1, 30), (0.05, 3), 0.4, (30, 95))
SECOND = Stage(0.8, 0.1, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), 0.5, (1, 25), (0.05, 2.5), 0.4, (30, 95))
KERNELS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # shares: Gaussian, generalized, plateau; of each isotropic first
GENERALIZED, PLATEAU = (0.5, 4), (1, 2)  # their exponents
SIDES = range(7, 22, 2)  # of kernels


@dataclass(frozen=True)
class RealESRGAN(Degradation):
    """Real-ESRGAN's degradation of second order (Wang et al., ICCV Workshops 2021, arXiv 2107.10833): two `Stage`s of
    blur, resize, noise and JPEG, the second of which ends in the wanted size and a circular low-pass, in either order
    with its JPEG. The picture becomes uint8. The distributions are those of the paper's training.

    Not the authors' pictures to the digit: their kernels and noise come from other generators, and they compress by a
    differentiable JPEG.

    Args:
        scale: factor by which the sides get smaller.
        first, second: the stages, or their dicts.
        last_sinc: probability of the low-pass at the end.
    """

    scale: int = 4
    first: Any = FIRST
    second: Any = SECOND
    last_sinc: float = 0.8

    def __post_init__(self):
        positive("RealESRGAN.scale", self.scale)
        for name in ("first", "second"):
            if isinstance(value := getattr(self, name), Mapping):
                object.__setattr__(self, name, Stage(**value))

    def __call__(self, image):
        height, width = image.shape[:2]
        if height % self.scale or width % self.scale:
            raise ValueError(f"a picture of {width} x {height} pixels: both must be multiples of scale={self.scale}.")
        made = _worse(as_floats(image), self.first)
        made = as_floats(through_jpeg(made, _integer(self.first.quality)))
        made = _worse(made, self.second, (height // self.scale, width // self.scale))
        low_pass = _sinc_kernel(np.random.choice(SIDES)) if np.random.rand() < self.last_sinc else None
        jpeg_first = np.random.rand() < 0.5
        for jpeg in (jpeg_first, not jpeg_first):
            if not jpeg:
                made = _resized(made, (height // self.scale, width // self.scale))
                made = _filtered(made, low_pass) if low_pass is not None else made
            else:
                made = as_floats(through_jpeg(made, _integer(self.second.quality)))
        return as_bytes(made)


def _worse(image: np.ndarray, stage: Stage, size: tuple[int, int] | None = None) -> np.ndarray:
    """Blur, another size (a factor of the picture's, or of `size`) and noise."""
    if np.random.rand() < stage.blur:
        image = _filtered(image, _kernel(stage))
    least, most = stage.factor
    larger, smaller, _ = stage.resize
    draw = np.random.rand()
    factor = 1.0
    if draw < larger:
        factor = np.random.uniform(1, most)
    elif draw < larger + smaller:
        factor = np.random.uniform(least, 1)
    image = _resized(image, tuple(max(1, round(factor * side)) for side in size or image.shape[:2]))
    grey = image.ndim == 3 and np.random.rand() < stage.grey
    if np.random.rand() < stage.gaussian:
        shape = (*image.shape[:2], 1) if grey else image.shape
        noise = np.random.uniform(*stage.noise) / 255 * np.random.standard_normal(shape)
    else:
        source = as_bytes(image) / 255
        if grey:
            source = source @ np.array([[0.299], [0.587], [0.114]])
        levels = 2 ** np.ceil(np.log2(max(2, len(np.unique(np.round(255 * source))))))
        noise = np.random.uniform(*stage.poisson) * (np.random.poisson(source * levels) / levels - source)
    return np.clip(image + noise, 0, 1).astype(np.float32)


def _integer(bounds: Sequence[int]) -> int:
    return int(np.random.randint(bounds[0], bounds[1] + 1))


def _resized(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """In another size, by area, bilinear or bicubic (OpenCV's, without antialias: that is the point)."""
    way = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)[np.random.randint(3)]
    return np.clip(cv2.resize(image, (size[1], size[0]), interpolation=way), 0, 1)


def _filtered(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.clip(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101), 0, 1)


def _kernel(stage: Stage) -> np.ndarray:
    """A kernel of blur, odd, of sum 1: a low-pass, or a Gaussian, generalized or with a plateau, perhaps turned."""
    side = int(np.random.choice(SIDES))
    if np.random.rand() < stage.sinc:
        return _sinc_kernel(side)
    kind = int(np.random.choice(len(KERNELS), p=KERNELS))
    first, second = np.random.uniform(*stage.sigma, 2)
    second, angle = (second, np.random.uniform(-np.pi, np.pi)) if kind % 2 else (first, 0.0)
    y, x = np.mgrid[:side, :side] - side // 2
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = (along / first) ** 2 + (across / second) ** 2
    if kind < 2:
        kernel = np.exp(-distance / 2)
    else:
        bounds = GENERALIZED if kind < 4 else PLATEAU
        power = np.random.uniform(bounds[0], 1) if np.random.rand() < 0.5 else np.random.uniform(1, bounds[1])
        kernel = np.exp(-(distance**power) / 2) if kind < 4 else 1 / (1 + distance**power)
    return (kernel / kernel.sum()).astype(np.float32)


def _sinc_kernel(side: int) -> np.ndarray:
    """A circular low-pass: the Fourier transform of a disc of frequencies up to a cut-off, which is drawn."""
    cutoff = np.random.uniform(np.pi / 3 if side < 13 else np.pi / 5, np.pi)
    y, x = np.mgrid[:side, :side] - side // 2
    radius = np.hypot(x, y)
    radius[side // 2, side // 2] = 1
    kernel = cutoff * torch.special.bessel_j1(torch.from_numpy(cutoff * radius)).numpy() / (2 * np.pi * radius)
    kernel[side // 2, side // 2] = cutoff**2 / (4 * np.pi)
    return (kernel / kernel.sum()).astype(np.float32)


DEGRADATIONS: dict[str, type[Degradation]] = {
    kind.__name__: kind for kind in (Bicubic, GaussianNoise, JPEG, Chain, RealESRGAN)
}
