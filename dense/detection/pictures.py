"""Pictures of what a detector finds."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from ...drawing import draw_objects
from ...files import printable
from ...inference import Inferencer
from ..masks import decoded
from .inference import SHOWN
from .transforms import ReadImage


def draw_detections(dataset: Any, asked: Inferencer, items: Sequence[int], least: float = SHOWN) -> Figure:
    """Images of a data set, with the objects of their annotations above, and below what a detector finds.

    Args:
        dataset: data set of mmdet.
        asked: the detector.
        items: numbers of images.
        least: score from which an object is drawn.

    Raises:
        ValueError: there is no image of a number, or one cannot be read.
    """
    names = dataset.metainfo["classes"]
    figure = Figure(figsize=(3.4 * len(items), 5.4), layout="constrained", dpi=110)
    rows = figure.subplots(2, len(items), squeeze=False)
    for column, item in enumerate(items):
        if not 0 <= item < len(dataset):
            raise ValueError(f"item {item}: the data set has items 0 to {len(dataset) - 1}.")
        info = dataset.get_data_info(item)
        image = ReadImage().transform(dict(info))["img"][..., ::-1]
        truth = [
            dict(label=entry["bbox_label"], name=names[entry["bbox_label"]], box=entry["bbox"])
            for entry in info["instances"]
        ]
        (result,) = asked([info["img_path"]])
        if "error" in result:
            raise ValueError(f"{printable(info['img_path'])}: {result['error']}")
        found = [entry for entry in result["objects"] if entry["score"] >= least]
        found = [{**entry, "mask": decoded(entry["mask"])} if "mask" in entry else entry for entry in found]
        draw_objects(image, truth, f"{item}: annotated", rows[0, column], 6)
        draw_objects(image, found, f"found, score from {least:g}", rows[1, column], 6)
    return figure
