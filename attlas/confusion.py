"""Confusion matrices of classes, and the files of results that hold them: of shapes, images and pixels alike."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .files import near_files

INK = (0.16, 0.17, 0.20)
LONGEST = 99_999  # largest count that fits a cell


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Recall of each class in percent (C,), of a confusion matrix (C, C; rows: truth); NaN for absent classes."""
    count = confusion.sum(1)
    return 100 * np.divide(confusion.diagonal(), count, out=np.full(len(count), np.nan), where=count > 0)


def read_results(path: str | Path) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Classes, and the confusion matrices (C, C; rows: truth) by protocol, of a file of `tools/test.py --out`: of
    `ClassificationMetric`, `ImageAccuracy` or `MapIoU`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The results {path} do not exist. {near_files(path)} tools/test.py --out makes them.")
    try:
        if not zipfile.is_zipfile(path):  # what NumPy would call a pickle, and advise to load
            raise ValueError("it is no npz archive")
        with np.load(path, allow_pickle=False) as file:
            names = [name for name in file.files if name.split("_")[0] == "confusion"]
            classes = tuple(map(str, file["classes"]))
            confusions = {name.removeprefix("confusion").removeprefix("_"): file[name] for name in names}
    except Exception as error:  # zipfile, zlib and NumPy have errors of their own, and few of them name the file
        pickled = "allow_pickle" in str(error)  # NumPy's own words say how to load it
        reason = "it holds Python objects, and nothing is ever unpickled" if pickled else error
        raise ValueError(f"{path} is not a file of results: {reason}; tools/test.py --out makes them.") from error
    if not confusions or any(c.shape != (len(classes), len(classes)) for c in confusions.values()):
        raise ValueError(
            f"{path} has no confusion matrices of its {len(classes)} classes; tools/test.py --out makes them."
        )
    for name, counts in confusions.items():
        if counts.dtype.kind not in "iuf" or not np.isfinite(counts).all() or (counts < 0).any() or not counts.any():
            what = f"confusion_{name}" if name else "confusion"
            raise ValueError(f"{path}: {what} must hold counts, 0 or more and not all 0.")
    return classes, confusions


def overall_accuracy(confusion: np.ndarray) -> float:
    return float(100 * np.trace(confusion) / confusion.sum())


def draw_confusion(axes: Any, confusion: np.ndarray, classes: Sequence[str], title: str) -> None:
    """Counts, or percent of the true class where counts are long, shaded by the share of the true class."""
    count = len(classes)
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    long = confusion.max() > LONGEST
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1.15)
    axes.set_xticks(range(count), classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), classes)
    axes.tick_params(length=0, labelsize=9 if count <= 15 else 6)
    if count <= 20:
        for row, column in zip(*np.nonzero(confusion)):
            color = "white" if share[row, column] > 0.55 else INK
            text = percent(share[row, column]) if long else str(confusion[row, column])
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.92", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted", fontsize=9.5)
    axes.set_ylabel("true, % of each" if long and count <= 20 else "true", fontsize=9.5)
    axes.set_title(title, fontsize=10.5, color=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def percent(share: float) -> str:
    """A share in percent; "" of less than half a percent."""
    return f"{100 * share:.0f}" if share >= 0.005 else ""


def draw_confusions(results: Mapping[str, str | Path]) -> Any:
    """A Matplotlib figure of the confusion matrices of files of results: a row for each file, a column for each
    protocol."""
    from matplotlib.figure import Figure  # here, because only pictures need it

    read = {name: read_results(path) for name, path in results.items()}
    titles = {
        (name, protocol): f"{name}{f' under {group_name(protocol)}' if protocol else ''}\n"
        f"overall {overall_accuracy(confusion):.1f} %, class {np.nanmean(class_accuracy(confusion)):.1f} %"
        for name, (_, confusions) in read.items()
        for protocol, confusion in confusions.items()
    }
    columns = max(len(confusions) for _, confusions in read.values())
    # inches: of a matrix, which is at least as wide as its title, and of the names of the classes
    side = max(
        0.36 * len(classes) if len(classes) <= 20 else max(7, 0.13 * len(classes)) for classes, _ in read.values()
    )
    side = max(side, *(0.09 * len(line) for title in titles.values() for line in title.split("\n")))
    names = max(len(name) * (0.08 if len(classes) <= 15 else 0.055) for classes, _ in read.values() for name in classes)
    size = (side + names + 0.6) * columns, (side + 0.75 * names + 1.1) * len(read)
    canvas = Figure(figsize=size, layout="constrained")
    grid = canvas.subplots(len(read), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (name, (classes, confusions)) in zip(grid, read.items()):
        for axes, (protocol, confusion) in zip(row, confusions.items()):
            axes.set_axis_on()
            draw_confusion(axes, confusion, classes, titles[name, protocol])
    return canvas


def group_name(protocol: str) -> str:
    """A protocol of rotation as pictures name it."""
    return {"SO3": "SO(3)", "none": "no rotation"}.get(protocol, protocol)


def shortest_names(paths: list[Path]) -> list[str]:
    """The ends of paths, without suffix, that tell them apart.

    Raises:
        ValueError: a path is there twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"a file of results is named twice: {', '.join(map(str, paths))}")
    parts = [path.resolve().with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = [str(Path(*part[-length:])) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]  # they differ in their suffix alone
