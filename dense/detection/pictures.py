"""Pictures of what detectors find, and of what goes on inside of them (see `inspection.py`)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...drawing import draw_objects
from ...files import printable
from ...inference import Inferencer
from .inference import SHOWN
from .inspection import Bridging, Relation, Subject, detections

SMALL = 6  # points, of names
WIDTH = 3.4  # inches, of a panel
COLORS = "plasma"  # from dark to bright
MARKS = {"top_left_corner": "top left corners", "bottom_right_corner": "bottom right corners", "center": "centers"}


def draw_detections(asked: Inferencer, subjects: Sequence[Subject], least: float = SHOWN) -> Figure:
    """Images with their annotations above, and below with what a detector finds.

    Args:
        asked: the detector.
        subjects: images with annotations.
        least: score from which an object is drawn.

    Raises:
        ValueError: least is no score, or the detector gives numbers that are not finite.
    """
    check_score(least)
    figure, panels = _panels([subject.image for subject in subjects], 2 * len(subjects), len(subjects))
    for subject, above, below in zip(subjects, panels, panels[len(subjects) :]):
        truth = subject.truth or []
        draw_objects(subject.image, truth, f"{printable(subject.name, 40)}: {len(truth)} annotated", above, SMALL)
        _draw_found(below, subject, detections(asked, subject), least)
    return figure


def draw_strip(asked: Iterable[tuple[str, Inferencer]], count: int, subject: Subject, least: float = SHOWN) -> Figure:
    """What detectors find in one image, such as one detector over its training; the annotations come last.

    Args:
        asked: captions and detectors; one after the other is asked.
        count: number of detectors.
        subject: the image; without annotations the last panel is left out.
        least: score from which an object is drawn.

    Raises:
        ValueError: least is no score, or a detector gives numbers that are not finite.
    """
    check_score(least)
    total = count + (subject.truth is not None)
    figure, panels = _panels([subject.image], total, min(total, 5))
    for axes, (caption, each) in zip(panels, asked):
        _draw_found(axes, subject, detections(each, subject), least, caption)
    if subject.truth is not None:
        draw_objects(subject.image, subject.truth, f"annotated: {len(subject.truth)}", panels[count], SMALL)
    figure.suptitle(printable(subject.name, 90), fontsize=9, color="0.4", parse_math=False)
    return figure


def check_score(least: float) -> None:
    """Raise unless this is a score."""
    if not 0 <= least <= 1:
        raise ValueError(f"score is {least:g}; it must be in [0, 1].")


def _draw_found(axes: Axes, subject: Subject, found: Sequence[Mapping], least: float, caption: str = "") -> None:
    shown = [entry for entry in found if entry["score"] >= least]
    title = f"{len(shown)} found, score from {least:g}"
    if not shown and found:
        title += f" (the best has {found[0]['score']:.2f})"
    # the best are drawn last, over the others
    draw_objects(subject.image, shown[::-1], f"{caption}: {title}" if caption else title, axes, SMALL)


def _panels(images: Sequence[np.ndarray], total: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure with room for `total` images in so many columns."""
    tall = max(image.shape[0] / image.shape[1] for image in images)
    rows = -(-total // columns)
    figure = Figure(figsize=(WIDTH * columns, (WIDTH * tall + 0.25) * rows + 0.2), layout="constrained", dpi=110)
    panels = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axes in panels:
        axes.set_axis_off()
    return figure, panels


def _faded(image: np.ndarray) -> np.ndarray:
    """An image in dark gray, for colors over it."""
    gray = image.mean(2, keepdims=True) * 0.5
    return np.repeat(gray, 3, axis=2).astype(np.uint8)


def _outline(axes: Axes, box: Any, color: Any, width: float, **options: Any) -> None:
    x1, y1, x2, y2 = box
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=width, **options))


def _titled(axes: Axes, image: np.ndarray, title: str) -> None:
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_title(printable(title, 60), fontsize=8, color="0.4", parse_math=False)


def draw_relation(subject: Subject, seen: Relation, others: int = 40, heads: int = 8) -> Figure:
    """The bias that one query's attention gets towards other queries, by their boxes: the mean over heads, and heads.

    Args:
        subject: the image.
        seen: what `inspection.position_relation` gave.
        others: number of other queries that are drawn, those of the highest scores.
        heads: number of heads that are drawn, those whose bias differs the most between the queries drawn.

    Raises:
        ValueError: a number is not positive.
    """
    for name, number in (("others", others), ("heads", heads)):
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be positive.")
    order = np.argsort(-seen.scores, kind="stable")
    drawn = order[order != seen.query][:others]
    bias = seen.bias[:, drawn]
    spread = bias.max(1, initial=0) - bias.min(1, initial=np.inf) if len(drawn) else np.zeros(len(bias))
    strongest = np.sort(np.argsort(-spread, kind="stable")[:heads])
    total = len(strongest) + 2
    figure, panels = _panels([subject.image], total, -(-total // -(-total // 5)))
    mine = f"query {seen.query}: {printable(seen.names[seen.query], 30)} {seen.scores[seen.query]:.2f}"
    objects = [entry for entry in seen.found if entry["score"] >= SHOWN]
    draw_objects(subject.image, objects[::-1], mine, panels[0], SMALL)
    scale = Normalize(0, max(float(bias.max(initial=0)), 1e-6))
    colors = ScalarMappable(scale, COLORS)
    rows = [bias.mean(0), *bias[strongest]]
    titles = [f"mean of {len(seen.bias)} heads", *(f"head {head}" for head in strongest)]
    dark = _faded(subject.image)
    for axes, values, title in zip(panels[1:], rows, titles):
        _titled(axes, dark, title)
        for number in np.argsort(values, kind="stable"):  # the strongest last, over the others
            _outline(axes, seen.boxes[drawn[number]], colors.to_rgba(values[number]), 1.2)
    for axes in panels[:total]:
        _outline(axes, seen.box, "black", 3)
        _outline(axes, seen.box, "white", 1.6, linestyle=(0, (3, 1.5)))
    bar = figure.colorbar(colors, ax=panels, pad=0.01, aspect=30)
    bar.set_label("added to the attention's logit", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    title = f"{printable(subject.name, 60)}: layer {seen.layer} of {seen.layers}, {len(drawn)} other queries"
    figure.suptitle(title, fontsize=9, color="0.4", parse_math=False)
    return figure


def draw_key_points(subject: Subject, seen: Bridging) -> Figure:
    """Key points by type: scores of their places and the chosen ones above; below what one detection attends to.

    Args:
        subject: the image.
        seen: what `inspection.key_points` gave.
    """
    columns = max(len(seen.points), len(seen.attended))
    figure, panels = _panels([subject.image], columns * (2 if seen.attended else 1), columns)
    dark = _faded(subject.image)
    for axes, (kind, points) in zip(panels, seen.points.items()):
        _titled(axes, dark, f"{MARKS[kind]}: scores and the best {len(points.scores)}")
        width, height = points.extent
        scale = Normalize(0, max(float(points.heat.max()), 1e-6))
        heat = ScalarMappable(scale, "inferno").to_rgba(points.heat)
        heat[..., 3] = 0.75 * scale(points.heat)
        axes.imshow(heat, extent=(0, width, height, 0), interpolation="nearest")
        axes.set(xlim=(0, subject.image.shape[1]), ylim=(subject.image.shape[0], 0))
        _dots(axes, points.positions, points.scores, "white")
        bar = figure.colorbar(ScalarMappable(scale, "inferno"), ax=axes, pad=0.01, aspect=25)
        bar.ax.tick_params(labelsize=6)
    for axes, attended in zip(panels[columns:], seen.attended):
        assert seen.detection is not None
        weights, points = attended.weights.mean(0), seen.points[attended.kind]
        _titled(axes, dark, f"for the {attended.use}: {MARKS[attended.kind]}")
        _outline(axes, seen.detection["box"], "white", 1.6)
        order = np.argsort(weights, kind="stable")
        scale = Normalize(0, max(float(weights.max()), 1e-6))
        colors = ScalarMappable(scale, COLORS)
        for number in order:
            line = np.stack([attended.place, points.positions[number]])
            share = float(scale(weights[number]))
            axes.plot(
                *line.T, color=colors.to_rgba(weights[number]), linewidth=0.3 + 1.7 * share, alpha=0.2 + 0.7 * share
            )
        _dots(axes, points.positions[order], weights[order], colors.to_rgba(weights[order]))
        axes.plot(*attended.place, "+", color="white", markersize=8, markeredgewidth=1.6)
        bar = figure.colorbar(colors, ax=axes, pad=0.01, aspect=25)
        bar.ax.tick_params(labelsize=6)
    title = printable(subject.name, 60)
    if seen.detection is not None:
        title += (
            f"; attention of {printable(seen.detection['name'], 30)} {seen.detection['score']:.2f}, mean over heads"
        )
    else:
        title += "; nothing was detected, so there is no attention to show"
    figure.suptitle(title, fontsize=9, color="0.4", parse_math=False)
    return figure


def _dots(axes: Axes, positions: np.ndarray, sizes: np.ndarray, color: Any) -> None:
    """Points, of areas by their numbers, at least small."""
    area = 4 + 40 * sizes / max(float(sizes.max(initial=0)), 1e-6)
    axes.scatter(
        positions[:, 0], positions[:, 1], s=area, c=color, edgecolors="black", linewidths=0.5, clip_on=True, zorder=3
    )
