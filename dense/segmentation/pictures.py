"""Pictures of what a segmentor makes of images, beside the truth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ...browsing import choose
from ...drawing import WRONG, draw_regions
from ...files import printable
from ...inference import Inferencer
from ..transforms import ReadImage
from .inference import Segmentation, label_map
from .maps import IGNORED, ReadMap

SMALL = 6  # points, of names


def draw_maps(dataset: Any, asked: Inferencer, items: Sequence[int]) -> Figure:
    """Images of a data set, below each other: the map of the file, the map that a segmentor gives, and where they
    differ, in red.

    Args:
        dataset: a `SegmentationMaps`.
        asked: the segmentor.
        items: numbers of images.

    Raises:
        ValueError: the model is no segmentor, there is no image of a number, or it cannot be read.
    """
    if not isinstance(asked.task, Segmentation):
        raise ValueError(f"the model is a {type(asked.model).__name__}, and must be a segmentor")
    names = dataset.metainfo["classes"]
    chosen = choose(dataset, 1, items)
    seen = []
    for item in chosen:
        info = ReadMap().transform(ReadImage().transform(dataset.get_data_info(item)))
        image, truth = info["img"][..., ::-1], info["gt_seg_map"]
        (result,) = asked(np.ascontiguousarray(image))
        if "error" in result:
            raise ValueError(f"{printable(info['img_path'])}: {result['error']}")
        seen.append((image, truth, label_map(result)))
    height = max(image.shape[0] / image.shape[1] for image, _, _ in seen)
    figure = Figure(figsize=(3.4 * len(seen), 3 * (3.4 * height + 0.2)), layout="constrained", dpi=110)
    rows = figure.subplots(3, len(seen), squeeze=False)
    for column, (item, (image, truth, found)) in enumerate(zip(chosen, seen)):
        wrong = (truth != IGNORED) & (found != truth)
        right = 100 * (1 - wrong.sum() / max((truth != IGNORED).sum(), 1))
        draw_regions(image, truth, names, f"{item}: truth", rows[0, column], SMALL)
        draw_regions(image, found, names, f"predicted, {right:.1f} % of the pixels right", rows[1, column], SMALL)
        grey = np.repeat(image.mean(2, keepdims=True), 3, 2).astype(np.uint8) // 2 + 127
        rows[2, column].imshow(np.where(wrong[..., None], np.array(WRONG, np.uint8), grey), interpolation="nearest")
        rows[2, column].set_axis_off()
        rows[2, column].set_title("wrong", fontsize=9, color="0.4")
    return figure
