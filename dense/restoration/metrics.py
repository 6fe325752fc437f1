"""How near restored pictures are to the true ones: PSNR and SSIM, with every choice an argument that is printed.

One result on Set5 reads 25.4, 25.5, 25.6 or 26.9 dB, as its channels and its border are chosen.
"""

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from torch import Tensor

from ...data import one_of
from ...files import printable
from ...registry import METRICS
from .degradations import as_bytes, imresize

CHANNELS = ("Y", "Y_full", "RGB")
ABOUT = {
    "Y": "luma of BT.601 from 16 to 235, as MATLAB's rgb2ycbcr has it, not rounded",
    "Y_full": "luma of BT.601 from 0 to 255, as JPEG has it, not rounded",
    "RGB": "all three channels",
}
GREY = "the one channel, as it is"
PEAK = 255.0
WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian window


def luma(image: np.ndarray, full: bool = False) -> np.ndarray:
    """Y of BT.601 of a picture uint8 (H, W, 3), red, green, blue: float64 (H, W), not rounded, from 16 to 235 as of
    MATLAB's rgb2ycbcr, or, `full`, from 0 to 255."""
    if full:
        return image @ np.array([0.299, 0.587, 0.114])
    return image @ (np.array([65.481, 128.553, 24.966]) / 255) + 16


def psnr(restored: np.ndarray, truth: np.ndarray, crop: int = 0, channels: str = "Y") -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(255^2 / mean squared error), in float64; infinite where both are
    equal.

    Args:
        restored, truth: uint8 (H, W, 3), red, green, blue, or grey (H, W), of which the one channel counts as it is.
        crop: pixels that are left out along each border.
        channels: 'Y' (from 16 to 235), 'Y_full' (from 0 to 255), or 'RGB' (the mean squared error of all).

    Raises:
        ValueError: the pictures differ in size, are not uint8, or nothing is left of them.
    """
    return _decibels(squared_error(restored, truth, crop, channels))


def squared_error(restored: np.ndarray, truth: np.ndarray, crop: int = 0, channels: str = "Y") -> float:
    """Mean squared error of the numbers that `psnr` compares."""
    first, second = _compared(restored, truth, crop, channels)
    return float(np.square(first - second).mean())


def ssim(restored: np.ndarray, truth: np.ndarray, crop: int = 0, channels: str = "Y") -> float:
    """Structural similarity (Wang et al., IEEE TIP 2004), at most 1: a Gaussian window of 11 x 11 (sigma 1.5), K1 =
    0.01, K2 = 0.03, peak 255; the mean over the places where the whole window lies inside, and over the channels.

    Args and errors as of `psnr`; at least 11 x 11 pixels must be left.
    """
    first, second = _compared(restored, truth, crop, channels)
    if min(first.shape[:2]) < WINDOW:
        height, width = first.shape[:2]
        raise ValueError(f"{width} x {height} pixels are left inside the border; SSIM needs {WINDOW} x {WINDOW}.")
    kernel = cv2.getGaussianKernel(WINDOW, SIGMA, cv2.CV_64F)
    inside = (slice(WINDOW // 2, -(WINDOW // 2)),) * 2

    def blurred(numbers: np.ndarray) -> np.ndarray:
        return cv2.sepFilter2D(numbers, cv2.CV_64F, kernel, kernel)[inside]

    a, b = blurred(first), blurred(second)
    var_a, var_b = blurred(first**2) - a**2, blurred(second**2) - b**2
    both = blurred(first * second) - a * b
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    return float(((2 * a * b + c1) * (2 * both + c2) / ((a**2 + b**2 + c1) * (var_a + var_b + c2))).mean())


def _compared(restored: np.ndarray, truth: np.ndarray, crop: int, channels: str) -> tuple[np.ndarray, np.ndarray]:
    one_of("channels", channels, CHANNELS)
    if restored.shape != truth.shape:
        raise ValueError(f"the restored picture is {tuple(restored.shape)}, and the true one {tuple(truth.shape)}.")
    if restored.dtype != np.uint8 or truth.dtype != np.uint8:
        raise ValueError(f"pictures are {restored.dtype} and {truth.dtype}; both must be uint8 (`as_bytes`).")
    height, width = truth.shape[:2]
    if isinstance(crop, bool) or not isinstance(crop, (int, np.integer)) or crop < 0:
        raise ValueError(f"crop is {crop!r}; it must be an integer of at least 0.")
    if min(height, width) <= 2 * crop:
        raise ValueError(f"of {width} x {height} pixels a border of {crop} leaves nothing.")
    inside = (slice(crop, height - crop), slice(crop, width - crop))
    pair = restored[inside], truth[inside]
    if truth.ndim == 2 or channels == "RGB":
        return pair[0].astype(np.float64), pair[1].astype(np.float64)
    return luma(pair[0], channels == "Y_full"), luma(pair[1], channels == "Y_full")


def _decibels(error: float) -> float:
    return float(10 * np.log10(PEAK**2 / error)) if error > 0 else float("inf")


# --- of whole data sets ----------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """What is kept of a picture: its name, the measure of the restored picture and perhaps of the input, the border,
    whether it has one channel."""

    name: str
    value: float
    before: Any
    crop: int
    grey: bool


class Likeness(BaseMetric):
    """Base of the metrics of restored pictures. Takes samples dict(restored, truth (C, H, W), scale, name) of floats in
    [0, 1], which are clipped and rounded to bytes first, as a file would hold them.

    Args:
        channels: 'Y', 'Y_full' or 'RGB'; see `psnr`. It ends the name of the figure, such as PSNR_Y.
        crop: pixels that are left out along each border, or 'scale' for as many as the scale of the network (of scale
            1 none).
        by_picture: whether a table of the pictures is logged as well, with what the picture to restore comes to as it
            is, enlarged by `imresize` where it is smaller: `<name>_input` is the figure of that.
        prefix: before the names of the figures.
    """

    default_prefix = ""

    def __init__(
        self,
        channels: str = "Y",
        crop: int | str = "scale",
        by_picture: bool = False,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ):
        super().__init__(collect_device, prefix)
        self.channels = one_of(f"{type(self).__name__}.channels", channels, CHANNELS)
        if crop != "scale" and (isinstance(crop, bool) or not isinstance(crop, int) or crop < 0):
            raise ValueError(f"{type(self).__name__}.crop is {crop!r}; it may be 'scale', or an integer of at least 0.")
        self.crop, self.by_picture = crop, by_picture

    @abstractmethod
    def measure(self, restored: np.ndarray, truth: np.ndarray, crop: int) -> float:
        """What is kept of a picture."""

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        inputs = data_batch["image"] if self.by_picture else [None] * len(data_samples)
        for sample, image in zip(data_samples, inputs):
            name = printable(sample.get("name"))
            if sample.get("truth") is None:
                raise ValueError(f"{name} came without its true picture (truth).")
            crop = self.crop if isinstance(self.crop, int) else (sample["scale"] if sample["scale"] > 1 else 0)
            if not torch.isfinite(sample["restored"]).all():
                raise ValueError(f"the network gives NaN or infinite numbers for {name}.")
            restored, truth = _pixels(sample["restored"]), _pixels(sample["truth"])
            try:
                value, before = self.measure(restored, truth, crop), None
                if image is not None:
                    before = self.measure(imresize(_pixels(image), sample["scale"]), truth, crop)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            self.results.append(Measured(name, value, before, crop, truth.ndim == 2))

    @abstractmethod
    def figure(self, values: Sequence[float]) -> float:
        """The figure of what was kept of pictures."""

    def figures(self, name: str, text: str, results: Sequence[tuple], digits: int) -> dict[str, float]:
        """The figure by its name, and that of the inputs; logs what they are, and the table.

        Args:
            name: begin of the name, before the channels.
            text: how the figures of pictures become one.
            results: what `process` kept.
            digits: decimals.

        Raises:
            ValueError: there is no picture.
        """
        if not results:
            raise ValueError(f"{type(self).__name__}: there is no picture to measure.")
        kept = [Measured(*result) for result in results]  # MMEngine makes plain tuples of them
        name = f"{name}_{self.channels}"
        self.told(name, text, kept)
        found = {name: round(self.figure([result.value for result in kept]), digits)}
        if self.by_picture:
            found[f"{name}_input"] = round(self.figure([result.before for result in kept]), digits)
            short = [os.path.basename(result.name) for result in kept]
            labels = [*(short if len(set(short)) == len(short) else [result.name for result in kept]), "all"]
            pairs = [(self.figure([result.value]), self.figure([result.before])) for result in kept]
            width = max(map(len, labels))
            lines = [f"{name} of each picture:", f"{'':{width}}  {'restored':>9}  {'input':>9}"]
            for label, (after, before) in zip(labels, [*pairs, tuple(found.values())]):
                lines.append(f"{label:{width}}  {after:9.{digits}f}  {before:9.{digits}f}")
            print_log("\n".join(lines), logger="current")
        return found

    def told(self, name: str, text: str, results: Sequence[Measured]) -> None:
        """Log what a figure is."""
        crops = sorted({result.crop for result in results})
        border = ", ".join(map(str, crops))
        about, grey = ABOUT[self.channels], [result.grey for result in results]
        if any(grey):
            about = GREY if all(grey) else f"{about}; of {sum(grey)} grey pictures {GREY}"
        print_log(
            f"{name}: {about}; bytes, peak 255; border of {border} pixels left out; {text}, of "
            f"{len(results)} pictures.",
            logger="current",
        )


def _pixels(image: Tensor) -> np.ndarray:
    """uint8 (H, W, 3), or of one channel (H, W), of floats (C, H, W) in [0, 1]."""
    numbers = image.detach().float().cpu().permute(1, 2, 0).numpy()
    return as_bytes(numbers[..., 0] if numbers.shape[2] == 1 else numbers)


@METRICS.register_module()
class ImagePSNR(Likeness):
    """PSNR in dB of restored pictures: `PSNR_<channels>`. See `psnr` and `Likeness`.

    Args:
        reduction: 'mean' of the PSNR of the pictures, as all tables have it, or 'pooled', the PSNR of the mean of their
            mean squared errors.
        channels, crop, prefix: as of `Likeness`.
    """

    def __init__(self, reduction: str = "mean", **options):
        super().__init__(**options)
        self.reduction = one_of("ImagePSNR.reduction", reduction, ("mean", "pooled"))

    def measure(self, restored, truth, crop):
        return squared_error(restored, truth, crop, self.channels)

    def figure(self, values):
        if self.reduction == "mean":
            return float(np.mean([_decibels(error) for error in values]))
        return _decibels(float(np.mean(values)))

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        text = "mean of the PSNR" if self.reduction == "mean" else "PSNR of the mean squared error"
        equal = sum(value == 0 for _, value, *_ in results)
        return self.figures("PSNR", text + (f" ({equal} equal the truth: infinite)" if equal else ""), results, 4)


@METRICS.register_module()
class ImageSSIM(Likeness):
    """SSIM of restored pictures, the mean over them: `SSIM_<channels>`. See `ssim` and `Likeness`."""

    def measure(self, restored, truth, crop):
        return ssim(restored, truth, crop, self.channels)

    def figure(self, values):
        return float(np.mean(values))

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        return self.figures("SSIM", f"Gaussian window of {WINDOW} x {WINDOW} (sigma {SIGMA}), mean", results, 6)
