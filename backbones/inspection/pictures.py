"""Maps of explanations over what a network sees."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from .targets import Question


def draw_saliency(
    questions: Sequence[Question], maps: Sequence[Sequence[Tensor]], methods: Sequence[str], title: str = ""
) -> Figure:
    """A row for each question: what the network sees, and the map of each method over it.

    A map of values of at least 0 goes from nothing to its largest value, in yellow over the grey image. A signed one
    has one scale on both sides of 0: red for what raises the score, blue for what lowers it.

    Args:
        questions: what is explained, with pictures.
        maps: (h, w) for each method, for each question.
        methods: their names.
        title: text above all rows.
    """
    ratio = max(q.picture.shape[0] / q.picture.shape[1] for q in questions)
    tile, columns = 2.3, len(methods) + 1
    size = tile * columns + 0.9, (tile * ratio + 0.45) * len(questions) + 0.3 * bool(title)
    canvas = Figure(size, layout="constrained", dpi=110)
    if title:
        canvas.suptitle(title, fontsize=10, parse_math=False)
    panels = canvas.subplots(len(questions), columns, squeeze=False)
    for row, (question, of_question) in zip(panels, zip(questions, maps)):
        pictures = [question.picture, *(overlay(question.picture, m.float().cpu().numpy()) for m in of_question)]
        for axes, picture, text in zip(row, pictures, [question.said, *methods]):
            axes.imshow(picture)
            axes.set_axis_off()
            axes.set_title(text, fontsize=9, parse_math=False)
            if question.box is not None:
                left, top, right, bottom = (side - 0.5 for side in question.box)  # pixel centers are at +0.5
                for color, width in (("black", 3), ("white", 1.5)):
                    axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=color, lw=width)
                axes.set_xlim(-0.5, question.picture.shape[1] - 0.5)
                axes.set_ylim(question.picture.shape[0] - 0.5, -0.5)
    scales(canvas, maps)
    return canvas


def scales(canvas: Figure, maps: Sequence[Sequence[Tensor]]) -> None:
    """The scales of the colors of maps, beside all panels of a figure."""
    panels = list(canvas.axes)
    signed = {bool((m < 0).any()) for of_question in maps for m in of_question}
    bars = [("inferno", Normalize(0, 1), "of the largest")] * (False in signed)
    bars += [("RdBu_r", Normalize(-1, 1), "signed maps")] * (True in signed)
    for colors, scale, text in bars:
        bar = canvas.colorbar(ScalarMappable(scale, colors), ax=panels, pad=0.01, aspect=30)
        bar.set_label(text, fontsize=8)
        bar.ax.tick_params(labelsize=7)


def relative(strength: np.ndarray) -> np.ndarray:
    """Values over the largest size of one of them.

    Raises:
        ValueError: one is NaN or infinite.
    """
    if not np.isfinite(strength).all():
        raise ValueError("the map holds NaN or infinite numbers")
    return strength / max(float(np.abs(strength).max()), 1e-30)


def overlay(pixels: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """The image in grey with a map over it, (H, W, 3), uint8; the map is enlarged as `normgrad.resized` does."""
    shares, signed = relative(strength), bool((strength < 0).any())
    large = torch.nn.functional.interpolate(
        torch.from_numpy(shares)[None, None], pixels.shape[:2], mode="bilinear", align_corners=False
    )[0, 0].numpy()
    gray = np.repeat(pixels.mean(2, keepdims=True), 3, axis=2)
    if signed:
        colors = ScalarMappable(Normalize(-1, 1), "RdBu_r").to_rgba(large)[..., :3] * 255
        weight = 0.75 * np.abs(large)[..., None] + 0.1
        return ((1 - weight) * gray + weight * colors).astype(np.uint8)
    heat = cv2.applyColorMap((255 * large.clip(0, 1)).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    return (0.45 * gray + 0.55 * heat).astype(np.uint8)
