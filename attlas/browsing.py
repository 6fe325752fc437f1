"""Looking at data sets: what a config's data are after their transforms, with their annotations.

An item of any floor is known by what it has: `pos` (a cloud or a mesh of PyTorch Geometric), `image` (classification),
or `inputs` and `data_samples` (mmdet, mmseg), whose boxes, masks and semantic maps are drawn over the image.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import DefaultScope

from .data import one_of
from .drawing import draw_objects, draw_regions
from .files import printable
from .registry import DATASETS

SPLITS = ("train", "val", "test")
SMALL = 5.5  # points, of names in a sheet
INK = "0.25"


def config_dataset(cfg: Config, split: str = "train") -> Any:
    """The data set of the loader of a split ('train', 'val' or 'test') of a config.

    Raises:
        ValueError: the config has no such loader, or the data set is empty.
    """
    loader = cfg.get(f"{one_of('split', split, SPLITS)}_dataloader")
    if not loader:
        there = [name for name in SPLITS if cfg.get(f"{name}_dataloader")]
        raise ValueError(f"{cfg.filename} has no {split}_dataloader; it has those of {', '.join(there) or 'no split'}.")
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope") or "attlas"):
        dataset = DATASETS.build(loader["dataset"])
    if not len(dataset):
        raise ValueError(f"{cfg.filename}: the data set of {split} is empty.")
    return dataset


def choose(dataset: Any, count: int, items: Sequence[int] | None = None) -> list[int]:
    """Numbers of items: those asked for, or `count` spread evenly over the data set, as data of folders are sorted.

    Raises:
        ValueError: there is no item of a number.
    """
    if items is None:
        if count < 1:
            raise ValueError(f"count is {count}; it must be at least 1.")
        return np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int)).tolist()
    for item in items:
        if not 0 <= item < len(dataset):
            raise ValueError(f"item {item}: the data set has items 0 to {len(dataset) - 1}.")
    return list(items)


def class_names(dataset: Any) -> Sequence[str]:
    """The names of the classes that a data set states, or ()."""
    return (getattr(dataset, "metainfo", None) or {}).get("classes") or ()


def draw_items(dataset: Any, items: Sequence[int], up: str = "y", figure: Figure | None = None) -> Figure:
    """A sheet of some items with their annotations.

    Args:
        up: axis that points up in clouds, 'y' or 'z'.
        figure: where to draw, instead of on a new one.

    Raises:
        ValueError: an item is none that can be drawn; or whatever the data set raises.
    """
    columns = min(len(items), 2 if len(items) == 4 else 3 if len(items) < 10 else 5)
    rows = -(-len(items) // columns)
    figure = figure or Figure()
    figure.set_layout_engine("constrained")
    figure.set_size_inches(3.4 * columns, 2.9 * rows)
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes in panels:
        axes.set_axis_off()
    for axes, item in zip(panels, items):
        draw_item(axes, dataset, item, up)
    return figure


def draw_item(axes: Axes, dataset: Any, number: int, up: str = "y") -> None:
    """One item with its annotations; see `draw_items`."""
    item, names = dataset[number], class_names(dataset)
    title = f"{number}"
    if getattr(item, "pos", None) is not None:
        axes.imshow(_seen(item, up))
        title += f": {item.name}" if "name" in item else ""
        if item.get("y") is not None and item.y.numel() == 1:
            title += f", {_name(names, int(item.y))}"
        title += f", {len(item.pos):,} points"
    elif isinstance(item, Mapping) and "image" in item:
        axes.imshow(_levels(item["image"], dataset))
        title += f": {_name(names, int(item['label']))}" if "label" in item else ""
    elif isinstance(item, Mapping) and "inputs" in item:
        image = _levels(item["inputs"], dataset)[..., ::-1]  # mm's pictures are blue, green, red
        sample = item.get("data_samples")
        if (maps := getattr(sample, "gt_sem_seg", None)) is not None:
            (labels,) = maps.values()  # `data` of mmseg, `sem_seg` of mmdet
            labels = np.asarray(labels)
            labels = _sized(labels.reshape(labels.shape[-2:]), image.shape[:2])
            draw_regions(image, labels, names, "", axes, SMALL)
        if (found := getattr(sample, "gt_instances", None)) is not None:
            objects = _objects(found, names)
            draw_objects(image, objects, "", axes, SMALL)
            title += f": {len(objects)} objects"
        if not axes.images:
            axes.imshow(image)
        if path := getattr(sample, "img_path", None):
            title += f", {Path(path).name}"
    else:
        parts = f" with {', '.join(map(str, item))}" if isinstance(item, Mapping) else ""
        raise ValueError(
            f"item {number} of {type(dataset).__name__} is a {type(item).__name__}{printable(parts)}; shown can be "
            "clouds (pos), images (image) and what mmdet and mmseg pack (inputs, data_samples)."
        )
    axes.set_title(printable(title), fontsize=8, color=INK, parse_math=False)


def scene(item: Any) -> Any:
    """A cloud or a mesh as a surface to look at, colored by its normals where it has any."""
    from . import rendering  # here, because Open3D takes a second, and only clouds need it

    points = item.pos.numpy().astype(float)
    if item.get("face") is not None:
        return rendering.surface(points, item.face.T.numpy())
    normals = item.get("normal")
    return rendering.spheres(points, rendering.CLAY if normals is None else rendering.normal_colors(normals.numpy()))


def show(dataset: Any, items: Sequence[int], up: str = "y") -> None:
    """Show some items in a window, until it is closed.

    Raises:
        RuntimeError: there is no display.
    """
    first = dataset[items[0]]
    if getattr(first, "pos", None) is not None:
        from . import rendering

        return rendering.window([scene(dataset[item]) for item in items], type(dataset).__name__)
    import matplotlib
    from matplotlib import pyplot

    visible = not sys.platform.startswith("linux") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if not visible or matplotlib.get_backend().lower() == "agg":
        raise RuntimeError(
            "Matplotlib cannot open a window. It needs a display and a toolkit, such as Debian's python3-tk. Without, "
            "draw into a file: --out."
        )
    draw_items(dataset, items, up, pyplot.figure())
    pyplot.show()


def _name(names: Sequence[str], label: int) -> str:
    return printable(names[label], 30) if 0 <= label < len(names) else f"class {label}"


def _seen(item: Any, up: str) -> np.ndarray:
    from . import rendering

    return rendering.snapshots([scene(item)], rendering.view_direction(up=up), up, 320)[0]


def _levels(image: Any, dataset: Any) -> np.ndarray:
    """An image as uint8 (H, W, 3), its channels as they are. What a transform with `mean` and `std` did is undone."""
    if isinstance(image, np.ndarray):
        return image
    planes = image.detach().float()
    if image.dtype != torch.uint8:
        transforms = getattr(getattr(dataset, "transform", None), "transforms", ())
        packed = [each for each in transforms if hasattr(each, "mean") and hasattr(each, "std")]
        if packed:
            planes = planes * packed[-1].std + packed[-1].mean
        else:
            low, high = planes.min(), planes.max()
            planes = 255 * (planes - low) / (high - low).clamp(min=1e-9)
    return planes.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def _sized(labels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Labels (H, W), of each pixel of an image of another size the nearest one: a test keeps the map of the file, and
    resizes the image alone."""
    rows, columns = ((np.arange(new) + 0.5) * old // new for new, old in zip(size, labels.shape))
    return labels[rows.astype(int)[:, None], columns.astype(int)]


def _objects(found: Any, names: Sequence[str]) -> list[dict]:
    """The instances of mmdet as `draw_objects` takes them."""
    boxes = np.asarray(getattr(found.bboxes, "tensor", found.bboxes)).reshape(-1, 4).tolist()
    masks = found.masks.to_ndarray() if "masks" in found else [None] * len(boxes)
    return [
        dict(label=label, name=_name(names, label), box=box, mask=mask)
        for label, box, mask in zip(np.asarray(found.labels).tolist(), boxes, masks)
    ]
