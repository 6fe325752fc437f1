"""Pictures of what restorers make of pictures, beside the truth, and of what they make it of."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ...browsing import choose
from ...data import positive
from ...files import printable
from .attribution import Attribution, local_attribution
from .degradations import as_bytes, imresize
from .metrics import psnr
from .restorer import Restorer

PANEL, GAP, LINE = 2.0, 0.08, 0.17  # inches: side of a crop, distance of panels, height of a line of text
SMALL = 9  # points
FRAME, SHARE = "#ff3b30", 0.95

# --- beside the truth ------------------------------------------------------------------------------------------------


def draw_restored(dataset: Any, asked: Mapping[str, Restorer], item: int, crop: Sequence[int]) -> Figure:
    """A picture of a data set, and a part of it enlarged: as it came in, by bicubic interpolation where it is enlarged,
    from each network, and in truth; with the PSNR of the whole pictures on Y (the border as `ImagePSNR` leaves it out).

    Args:
        dataset: data set whose items have `image` and `truth`, tensors (C, H, W).
        asked: restorers by the names that they get.
        item: number of a picture.
        crop: first row, first column and side of the part, in pixels of the true picture.

    Raises:
        ValueError: there is no such item or part, it has no truth, or a network has another scale or the name of
            another panel.
    """
    choose(dataset, 1, [item])
    sample = dataset[item]
    if sample.get("truth") is None:
        raise ValueError(f"item {item} of the data has no true picture")
    truth, image = _pixels(sample["truth"]), sample["image"]
    scale = truth.shape[0] // image.shape[1]
    came = _pixels(image)
    pictures = {"low resolution" if scale > 1 else "as it came": came.repeat(scale, 0).repeat(scale, 1)}
    if scale > 1:
        pictures["bicubic"] = as_bytes(imresize(image.permute(1, 2, 0).numpy(), size=truth.shape[:2]).squeeze())
    for name, model in asked.items():
        if model.scale != scale:
            raise ValueError(f"{name} has scale={model.scale}, and the data {scale}")
        if name in {*pictures, "truth"}:
            raise ValueError(f"a network cannot be named {name!r}: another panel has that name; name it otherwise")
        pictures[name] = _pixels(_restored(model, image))
    compared = list(pictures)[scale > 1 :]  # without the low resolution
    psnrs = {name: psnr(pictures[name], truth, scale if scale > 1 else 0) for name in compared}
    return comparison(truth, crop, pictures, psnrs, Path(sample.get("name") or f"item {item}").name)


def comparison(
    truth: np.ndarray,
    crop: Sequence[int],
    pictures: Mapping[str, np.ndarray],
    psnrs: Mapping[str, float],
    title: str = "",
) -> Figure:
    """The whole true picture with a frame, and beside it the part inside the frame of every picture, and of the truth.

    Args:
        truth: uint8 (H, W, 3), red, green, blue, or grey (H, W).
        crop: first row, first column and side of the part, in pixels.
        pictures: pictures of that size by name; "truth" is the name of the true one alone.
        psnrs: PSNR in dB, by name, of those that have one; the highest is bold.
        title: line under the whole picture.

    Raises:
        ValueError: the part is not inside the picture, or one of the pictures is named "truth".
    """
    if "truth" in pictures:
        raise ValueError("no picture can be named 'truth' but the true one; name it otherwise")
    top, left, side = crop
    height, width = truth.shape[:2]
    if side < 1 or not (0 <= top <= height - side and 0 <= left <= width - side):
        raise ValueError(f"crop={tuple(crop)} (row, column, side) is not inside a picture of {width} x {height} pixels")
    panels = {**pictures, "truth": truth}
    best = max(psnrs.values(), default=None)
    rows = 1 if len(panels) < 4 else 2
    columns, label = -(-len(panels) // rows), 2 * LINE
    tall = rows * (PANEL + label) + (rows - 1) * GAP
    # a wide picture is made lower than the crops are together
    wide = min((tall - label) * width / height, 1.6 * columns * PANEL)
    whole = wide * height / width
    size = (wide + columns * (PANEL + GAP), tall)
    figure = Figure(size, dpi=110)

    def axes(x: float, y: float, w: float, h: float) -> Axes:
        """A place in inches, y from above."""
        made = figure.add_axes((x / size[0], 1 - (y + h) / size[1], w / size[0], h / size[1]))
        made.set_axis_off()
        return made

    above = (tall - label - whole) / 2
    first = axes(0, above, wide, whole)
    _show(first, truth)
    # around the part, and not over it
    first.add_patch(Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor=FRAME, linewidth=1.6))
    _below(first, fill(printable(title, 60), int(wide / 0.085)))
    for number, (name, picture) in enumerate(panels.items()):
        row, column = divmod(number, columns)
        x, y = wide + GAP + column * (PANEL + GAP), row * (PANEL + label + GAP)
        place = axes(x, y, PANEL, PANEL)
        _show(place, picture[top : top + side, left : left + side])
        value = psnrs.get(name)
        text = printable(name, 24) + ("" if value is None else f"\n{value:.2f} dB")
        _below(place, text, value is not None and value == best)
    return figure


def _below(axes: Axes, text: str, bold: bool = False) -> None:
    axes.text(
        0.5, 0, text, transform=axes.transAxes, ha="center", va="top", fontsize=SMALL, linespacing=1.15,
        color="0.15", parse_math=False, weight="bold" if bold else "normal",
    )  # fmt: skip


def _show(axes: Axes, picture: np.ndarray, **options: Any) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto", **options)


def _pixels(image: Tensor) -> np.ndarray:
    """uint8 (H, W, 3), or of one channel (H, W), of floats (C, H, W) in [0, 1]."""
    return as_bytes(image.detach().float().cpu().permute(1, 2, 0).squeeze(2).numpy())


def _restored(model: Restorer, image: Tensor) -> Tensor:
    with torch.inference_mode():
        restored = model.restore(image.unsqueeze(0).to(next(model.parameters()).device))[0].clamp(0, 1)
    if not torch.isfinite(restored).all():
        raise ValueError("the network gives NaN or infinite numbers for it")
    return restored


# --- what it is made of ----------------------------------------------------------------------------------------------


def draw_attribution(
    image: np.ndarray,
    asked: Mapping[str, Restorer],
    place: Sequence[int],
    side: int = 16,
    around: int = 64,
    **options: Any,
) -> Figure:
    """What a patch of a restored picture is made of, a column for each network: the local attribution map over the
    picture, with the diffusion index; the fewest pixels that have 95 % of it; and the restored patch.

    Args:
        image: picture to restore, uint8 (H, W, 3), red, green, blue.
        asked: restorers of one scale, by the names that they get.
        place: first row and first column of the patch, in pixels of the restored picture.
        side: its side in the same pixels.
        around: side of the part of the picture, around the patch, that the networks get; all of a smaller picture.
        **options: steps, sigma, radius, edges of `local_attribution`.

    Raises:
        ValueError: the scales differ, or the patch is not inside the restored picture.
    """
    scales = {name: model.scale for name, model in asked.items()}
    scale = next(iter(scales.values()))
    if set(scales.values()) != {scale}:
        shown = ", ".join(f"{name} x{own}" for name, own in scales.items())
        raise ValueError(f"a patch is a place in pictures of one scale, and the networks have several: {shown}")
    positive("around", around)
    positive("side", side)
    height, width = image.shape[:2]
    for name, first, length in (("row", place[0], height), ("column", place[1], width)):
        if not 0 <= first <= scale * length - side:
            raise ValueError(
                f"place={tuple(place)}, side={side}: the patch is not inside the restored picture of {scale * width} x "
                f"{scale * height} pixels; its first {name} may be 0 to {scale * length - side}"
            )
    least = -(-side // scale) + 1
    if around < least:
        raise ValueError(f"around is {around}; it must be at least {least}, for a patch of side={side}")
    corner = []
    for first, length in zip(place, (height, width)):
        middle = (first + side / 2) / scale
        corner.append(int(max(0, min(round(middle - around / 2), length - around))))
    part = image[corner[0] : corner[0] + around, corner[1] : corner[1] + around]
    inside = [first - scale * start for first, start in zip(place, corner)]
    seen: dict[str, Attribution] = {}
    for name, model in asked.items():
        floats = _as_input(part, getattr(model.network, "in_channels", 3)).to(next(model.parameters()).device)
        seen[name] = local_attribution(model.network, floats, inside, side, **options)
    return _attributions(part, seen, inside, side, scale)


def _as_input(image: np.ndarray, channels: int) -> Tensor:
    floats = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    return floats if channels == 3 else (floats * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, True)


def _attributions(
    image: np.ndarray, seen: Mapping[str, Attribution], place: Sequence[int], side: int, scale: int
) -> Figure:
    height, width = image.shape[:2]
    columns, panel, labels = 1 + len(seen), 2.5, (2.2 * LINE, 1.2 * LINE, 1.2 * LINE)
    tall, wide = panel * height / max(height, width), panel * width / max(height, width)
    below = panel  # of a crop
    size = columns * (panel + GAP) - GAP, 2 * tall + below + sum(labels) + 2 * GAP
    figure = Figure(size, dpi=110)
    norm = PowerNorm(0.5, 0, 1)

    def axes(column: int, row: int, w: float, h: float, text: str) -> Axes:
        x = column * (panel + GAP) + (panel - w) / 2
        y = sum(labels[: row + 1]) + row * (tall + GAP)
        made = figure.add_axes((x / size[0], 1 - (y + h) / size[1], w / size[0], h / size[1]))
        made.set_axis_off()
        made.text(
            0.5, 1.01, text, transform=made.transAxes, ha="center", va="bottom", fontsize=SMALL, linespacing=1.1,
            color="0.15", parse_math=False,
        )  # fmt: skip
        return made

    def patch(where: Axes, first: Sequence[float], length: float) -> None:
        where.add_patch(
            Rectangle((first[1] - 0.5, first[0] - 0.5), length, length, fill=False, edgecolor=FRAME, linewidth=1.5)
        )

    grey = np.repeat(image.mean(2, keepdims=True), 3, 2) / 255
    small = [first / scale for first in place]
    # a part of the restored picture around the patch, three times its side, where there is so much
    sides = [scale * length for length in (height, width)]
    shown = min(3 * side, *sides)
    start = [max(0, min(first - side, length - shown)) for first, length in zip(place, sides)]
    rows, crop_columns = (slice(first, first + shown) for first in start)
    framed = [first - begin for first, begin in zip(place, start)]

    first = axes(0, 0, wide, tall, f"picture, {width} x {height} pixels,\nand the patch")
    _show(first, image)
    patch(first, small, side / scale)
    enlarged = image.repeat(scale, 0).repeat(scale, 1)
    last = axes(0, 2, below, below, "around the patch, as it came")
    _show(last, enlarged[rows, crop_columns])
    patch(last, framed, side)
    legend = axes(0, 1, wide, tall, "")
    told = "diffusion index\n\n100: all pixels alike\n0: one pixel alone"
    legend.text(
        0.5, 0.66, told, ha="center", va="center", fontsize=SMALL, color="0.3", transform=legend.transAxes
    )  # fmt: skip
    bar = legend.inset_axes((0.1, 0.16, 0.8, 0.05))
    colors = figure.colorbar(ScalarMappable(norm, "inferno"), cax=bar, orientation="horizontal", ticks=[0, 0.1, 0.5, 1])
    colors.set_label("attribution, over the largest", fontsize=SMALL - 1, color="0.3")
    colors.ax.tick_params(labelsize=SMALL - 2)
    for column, (name, found) in enumerate(seen.items(), 1):
        strength = found.map.double().cpu().numpy()
        strength = strength / max(float(strength.max()), 1e-300)
        heat = ScalarMappable(norm, "inferno").to_rgba(strength)[..., :3]
        index = found.diffusion_index
        told = "nothing takes part" if math.isnan(index) else f"diffusion index {index:.1f}"
        title = f"{printable(name, 30)}\n{told}"
        top = axes(column, 0, wide, tall, title)
        share = norm(strength)[..., None] ** 0.5
        _show(top, (255 * (0.45 * grey * (1 - share) + heat * share)).astype(np.uint8))
        patch(top, small, side / scale)
        area = found.area(SHARE).cpu().numpy()
        middle = axes(column, 1, wide, tall, f"{100 * SHARE:.0f} % lies in {area.sum():,} of {area.size:,} pixels")
        _show(middle, np.where(area[..., None], image, (255 * (0.25 * grey + 0.72)).astype(np.uint8)))
        patch(middle, small, side / scale)
        restored = axes(column, 2, below, below, "around the patch, restored")
        _show(restored, _pixels(found.restored.clamp(0, 1))[rows, crop_columns])
        patch(restored, framed, side)
    return figure
