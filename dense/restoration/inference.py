"""How a restorer is asked (see `attlas.inference`): a picture comes back in the form in which it came.

Depth, channels, size and color profile are kept: 16 bits stay 16 bits, grey stays grey, and a picture that EXIF turns
comes back upright. Opacity has a path of its own: colors are multiplied by it before the network and divided by it
behind it, and it is enlarged by `imresize`. So no color of pixels that nobody sees gets into those beside them.
"""

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import torch

from ...data import drawn, one_of
from ...files import printable
from ...images import SUFFIXES, profile_fits, read_pixels, read_profile, write_png
from ...tasks import Task
from .degradations import as_floats, imresize

ALONE = 64**2  # pixels above which a picture shares no batch, whose memory is then that of a tile
CELL = 32  # side, in pixels of a picture, of what its tint is compared over
DRIFT = 2.0  # in 1/255; from here on a drift of the mean is worth a word
BAND = 256  # rows at a time, so that no second picture of floats is made
OPTIONS = ("tile", "overlap", "half", "ensemble", "keep_tint")


class Restoration(Task):
    """Image files, and arrays uint8 or uint16, (H, W), (H, W, 3) or (H, W, 4), red, green, blue, opacity. A result has
    `restored`, such an array of the restored picture, its `height` and `width`, the `network` and its `scale`, and
    `drift`: how much brighter than the picture is the mean of each channel that comes from the network, in 1/255. Of a
    file with an ICC profile it also has `profile_kept` and, where that is so, the `profile`, bytes: not where colors
    were converted, as inks are, or where it is damaged or very large."""

    suffixes = SUFFIXES
    top = 1
    exports = (".onnx", ".pt2")
    figures = False

    def __init__(self) -> None:
        self.keep_tint = False

    def configure(self, model, keep_tint=False, **options):
        """Set how pictures are restored.

        Args:
            model: a restorer.
            keep_tint: whether low frequencies of the restored picture are made those of the picture: what differs of
                means over CELL pixels is added.
            **options: as of `Restorer.configure`, set on the model, with which they stay. Those that are not given stay
                as the model has them, but for its tile=None: "auto" takes the place. Where tile=None is given, it means
                whole pictures, whatever memory they need.
        """
        for name in options:
            one_of("Inferencer's option for a restorer", name, OPTIONS)
        own = dict(tile=model.tile or "auto", overlap=model.overlap, half=model.half, ensemble=model.ensemble)
        model.configure(**own | options)
        self.keep_tint = keep_tint

    def read(self, path):
        image = read_pixels(path)
        try:
            profile = read_profile(path)
        except ValueError:  # colors without a profile are worth more than no picture
            profile = b""
        return dict(image=image, profile=profile)

    def take(self, source):
        image = np.asarray(source)
        fits = image.ndim in (2, 3) and image.shape[2:] in ((), (3,), (4,)) and image.size
        if not fits or image.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                "a picture must be uint8 or uint16, (H, W), (H, W, 3) or (H, W, 4), red, green, blue and opacity, not "
                f"{image.dtype} {image.shape}"
            )
        return dict(image=np.array(image, order="C"))

    def prepare(self, transforms):
        def prepared(data):
            kept = {name: value for name, value in data.items() if name != "profile"}
            return transforms(kept | dict(image=_colors(data["image"])))

        return prepared

    def form(self, item):
        shape = tuple(item["image"].shape)
        return shape if shape[1] * shape[2] <= ALONE else object()

    def result(self, prediction, source, classes, top):
        colors = prediction["restored"].cpu().permute(1, 2, 0).numpy()
        image, (height, width) = source["image"], colors.shape[:2]
        cells = [-(-side // CELL) for side in image.shape[:2]]
        tint = imresize(_colors(image).reshape(*image.shape[:2], -1), size=cells) - imresize(colors, size=cells)
        seen = _opacity(image)
        channels = colors.shape[2] + (image.ndim == 3 and image.shape[2] == 4)
        most = np.iinfo(image.dtype).max
        restored = np.full((height, width, channels), most, image.dtype)
        corrections = _enlarged(tint, (height, width)) if self.keep_tint else repeat(None)
        opacities = repeat(None) if seen is None else _enlarged(seen[..., None], (height, width))
        for start, correction, opacity in zip(range(0, height, BAND), corrections, opacities):
            band = colors[start : start + BAND]
            if correction is not None:
                band = band + correction
            if opacity is not None:
                opacity = opacity.clip(0, 1)
                band = np.divide(band, opacity, out=np.zeros_like(band), where=opacity > 0)
                restored[start : start + BAND, :, 3:] = np.floor(opacity * most + 0.5)
            restored[start : start + BAND, :, : colors.shape[2]] = np.floor(band.clip(0, 1) * most + 0.5)
        profile = source.get("profile")
        kept = {} if profile is None else dict(profile_kept=profile_fits(profile, image))
        if kept.get("profile_kept"):
            kept["profile"] = profile
        return dict(
            restored=restored[..., 0] if image.ndim == 2 else restored,
            height=height,
            width=width,
            network=prediction["network"],
            scale=prediction["scale"],
            drift=[round(-255 * float(mean), 2) for mean in tint.mean((0, 1))],
            **kept,
        )

    def said(self, result):
        text = f"{result['network']} x{result['scale']}, {result['width']} x {result['height']} pixels"
        if not result.get("profile_kept", True):
            text += "; its color profile is not kept"
        if max(map(abs, result["drift"])) < DRIFT:
            return text
        shown = ", ".join(f"{mean:+.1f}" for mean in result["drift"])
        return f"{text}; the network changes the mean by {shown} of 255" + (
            ", which is taken back" if self.keep_tint else " (--keep-tint takes that back)"
        )

    def save(self, source, result, stem):
        write_png(stem.with_name(f"{stem.name}.png"), result.pop("restored"), result.pop("profile", None))
        return {}

    def question(self, model, source, target):
        """Targets are ROW,COLUMN,SIDE, the mean of a square patch of the restored picture, whose first row and column
        are named in its pixels, and ROW,COLUMN,SIDE:FILE, the PSNR of that patch, where FILE is the picture that it
        should be. There is no default. The whole picture is restored in one pass, without tiles and in float32."""
        from ...backbones.inspection.targets import Question
        from .attribution import mean_of_patch, psnr_of_patch

        where, colon, file = ("" if target is None else target).partition(":")
        numbers = [part.strip() for part in where.split(",")]
        if len(numbers) != 3 or not all(map(str.isdecimal, numbers)) or (colon and not file):
            given = "no target is given, and" if target is None else f"target {printable(target)!r}:"
            raise ValueError(
                f"{given} a restorer is asked about ROW,COLUMN,SIDE (the mean of that patch of the restored picture) "
                "or ROW,COLUMN,SIDE:FILE (its PSNR, where FILE is the picture that it should be)"
            )
        top, left, side = map(int, numbers)
        item = drawn(model.transforms, source, "the picture", 0)
        image, scale = item["image"][None].to(next(model.parameters()).device), model.scale
        channels, wanted = image.shape[1], getattr(model.network, "in_channels", image.shape[1])
        if channels != wanted:
            raise ValueError(f"the picture has channels={channels}, and the network is explained for {wanted} alone")
        height, width = (scale * length for length in image.shape[2:])
        if not (side and top + side <= height and left + side <= width):
            raise ValueError(
                f"target {where}: the patch (row, column, side) is not inside the restored picture of {width} x "
                f"{height} pixels, or is empty"
            )
        score, what = mean_of_patch((top, left), side), "mean"
        if file:
            truth = drawn(model.transforms, self.read(Path(file)), printable(file), 0)["image"][None]
            if truth.shape[1:] != (channels, height, width):
                raise ValueError(
                    f"{printable(file)} has shape {tuple(truth.shape[1:])} (channels, rows, columns), and the restored "
                    f"picture {(channels, height, width)}"
                )
            score, what = psnr_of_patch(truth, (top, left), side), "PSNR"
        with torch.no_grad():
            value = float(score(model(image)))
        said = f"{what} of {side} x {side} at {top}, {left}: {value:.3g}" + " dB" * bool(file)
        picture = (255 * image[0]).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        box = (left / scale, top / scale, (left + side) / scale, (top + side) / scale)
        picture = np.broadcast_to(picture, (*picture.shape[:2], 3))
        return Question(model, (image,), score, said, picture, box, layer="input")

    def exportable(self, model, steps):
        from .export import ExportedRestorer  # here, because only an export needs it

        return ExportedRestorer(model)


def _opacity(image: np.ndarray) -> np.ndarray | None:
    """Opacity (H, W) in [0, 1], or None where all is opaque."""
    if image.ndim == 2 or image.shape[2] == 3 or (image[..., 3] == np.iinfo(image.dtype).max).all():
        return None
    return as_floats(image[..., 3])


def _colors(image: np.ndarray) -> np.ndarray:
    """What the network gets: floats (H, W) or (H, W, 3), multiplied by the opacity."""
    colors, opacity = as_floats(image if image.ndim == 2 else image[..., :3]), _opacity(image)
    return colors if opacity is None else colors * opacity[..., None]


def _enlarged(image: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Bands of BAND rows of a picture (h, w, C) of floats in a larger size, by `imresize`."""
    tall = imresize(image, size=(size[0], image.shape[1]))
    for start in range(0, size[0], BAND):
        band = tall[start : start + BAND]
        yield imresize(band, size=(len(band), size[1]))
