"""Panoptic segmentation: COCO's labels of pixels, and panoptic quality, both without panopticapi.

Every pixel belongs to one segment: an object of a thing class, or all of a stuff class. Classes of things come first.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.structures.mask import BitmapMasks
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from ...files import printable
from ...images import read_image
from ...registry import METRICS, TRANSFORMS

VOID = 255  # label of a pixel that belongs to no segment


def things_and_stuff(metainfo: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[str]]:
    """The names of the classes of things, and of stuff, of a data set.

    Raises:
        ValueError: it does not tell them, or they are not its classes, those of things first.
    """
    if not {"thing_classes", "stuff_classes"} <= metainfo.keys():
        raise ValueError(
            "The data set does not tell which of its classes are stuff: give it "
            "metainfo=dict(classes=..., thing_classes=..., stuff_classes=...), those of things first."
        )
    things, stuff, classes = (metainfo[key] for key in ("thing_classes", "stuff_classes", "classes"))
    if (*things, *stuff) != (*classes,):
        others = [*classes, None], [*things, *stuff, None]
        place, found, wanted = next((i, *pair) for i, pair in enumerate(zip(*others)) if pair[0] != pair[1])
        raise ValueError(
            "metainfo: classes must be thing_classes and, behind them, stuff_classes; class "
            f"{place} is {printable(found)} in the one and {printable(wanted)} in the others"
        )
    return things, stuff


@TRANSFORMS.register_module()
class ReadPanoptic(LoadAnnotations):
    """Boxes, labels and masks of the things, and the class of every pixel, of COCO's panoptic annotations.

    It takes the place of mmdet's LoadPanopticAnnotations, which needs panopticapi. The PNG of an image has the number
    of a segment in every pixel, red + 256 green + 65536 blue. Segments without an entry (mmdet leaves those of less
    than a pixel out) are void.

    Raises:
        ValueError: the PNG has another size than the image, or no pixel of a segment.
    """

    def __init__(self):
        super().__init__(with_bbox=True, with_label=True)

    def transform(self, results: dict) -> dict:
        super().transform(results)
        path, size = results["seg_map_path"], tuple(results["ori_shape"])
        numbers = read_image(path, upright=False).astype(np.int32) @ np.array([1, 256, 65536], np.int32)
        if numbers.shape != size:
            raise ValueError(
                f"{printable(path)} has {numbers.shape[0]} x {numbers.shape[1]} pixels (height x width), and its image "
                f"{size[0]} x {size[1]}"
            )
        labels, masks = np.full(numbers.shape, VOID, np.uint8), []
        for segment in results["segments_info"]:
            mask = numbers == segment["id"]
            if not mask.any():
                raise ValueError(f"{printable(path)} has no pixel of segment {segment['id']}, which its entry tells of")
            labels[mask] = segment["category"]
            if segment["is_thing"]:
                masks.append(mask.astype(np.uint8))
        return results | dict(gt_masks=BitmapMasks(masks, *size), gt_seg_map=labels)


class Counts(NamedTuple):
    """Of each class (C,): the summed IoU of the segments found, and how many were found, made up and missed."""

    iou: np.ndarray
    found: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray


class Segments(NamedTuple):
    """The segments of an image."""

    numbers: np.ndarray  # (H, W), from 0 to S; 0 is void
    classes: np.ndarray  # (S + 1,), -1 of void
    crowd: np.ndarray  # (S + 1,), bool: a region of several objects, which nothing has to find


@METRICS.register_module()
class PanopticQuality(BaseMetric):
    """Panoptic quality (Kirillov et al., CVPR 2019), in percent, as panopticapi computes it.

    A segment of the truth is found by one of its class with an IoU above 0.5, void left out of the union. A predicted
    one counts as wrong unless more than half of it is void or a crowd of its class. Of a class,
    PQ = SQ RQ, where SQ is the mean IoU of the segments found, and RQ = found / (found + wrong / 2 + missed / 2).

    - `PQ`, `SQ`, `RQ`: the means over the classes that are there, in truth or prediction; `PQ_things`, `PQ_stuff`.

    The truth is what the pipeline reads: `gt_sem_seg`, and `gt_instances` with masks. Pixels of a thing class in none
    of the masks are a crowd.

    The data set tells `thing_classes` and `stuff_classes`.
    """

    default_prefix = ""

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        things, stuff = map(len, things_and_stuff(self.dataset_meta))
        for sample in data_samples:
            if "gt_sem_seg" not in sample or "masks" not in sample["gt_instances"]:
                raise ValueError(
                    f"{printable(sample.get('img_path'))} came without labels of its pixels and masks: is "
                    "ReadPanoptic, or LoadAnnotations with both, in the pipeline?"
                )
            truth = true_segments(
                sample["gt_sem_seg"]["sem_seg"].squeeze(0).cpu().numpy(),
                sample["gt_instances"]["masks"].masks,
                sample["gt_instances"]["labels"].cpu().numpy(),
                things,
            )
            found = found_segments(sample["pred_panoptic_seg"]["sem_seg"].squeeze(0).cpu().numpy(), things + stuff)
            self.results.append(np.stack(compare(truth, found, things + stuff)))

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        things, stuff = things_and_stuff(self.dataset_meta)
        iou, found, wrong, missed = np.sum(results, 0)
        there = found + wrong + missed > 0
        if not there.any():
            raise ValueError("no pixel of the evaluated images belongs to a segment")
        with np.errstate(invalid="ignore", divide="ignore"):
            sq = np.where(found > 0, iou / found, 0.0)
            rq = found / (found + wrong / 2 + missed / 2)
        each = dict(PQ=sq * rq, SQ=sq, RQ=rq)
        names = [printable(name, 30) for name in (*things, *stuff)]
        width = max(map(len, names))
        for name, is_there, *row in zip(names, there, *each.values(), found, wrong, missed):
            told = "absent, and left out"
            if is_there:
                told = "PQ {:6.2f}  SQ {:6.2f}  RQ {:6.2f}".format(*(100 * value for value in row[:3]))
                told += "  {:.0f} found, {:.0f} wrong, {:.0f} missed".format(*row[3:])
            print_log(f"  {name:{width}}  {told}", logger="current")
        of_things = np.arange(len(names)) < len(things)
        figures = {name: values[there].mean() for name, values in each.items()}
        for name, chosen in (("PQ_things", there & of_things), ("PQ_stuff", there & ~of_things)):
            if chosen.any():
                figures[name] = each["PQ"][chosen].mean()
        return {name: round(100 * float(value), 2) for name, value in figures.items()}


def true_segments(labels: np.ndarray, masks: Sequence[np.ndarray], kinds: np.ndarray, things: int) -> Segments:
    """The segments of labels (H, W), 255 of void, and of masks (H, W) of objects with the classes `kinds`."""
    numbers, classes, crowd = np.zeros(labels.shape, np.int64), [-1], [False]
    for label in np.unique(labels[labels != VOID]):
        numbers[labels == label] = len(classes)
        classes.append(int(label))
        crowd.append(bool(label < things))  # what no mask covers
    for mask, kind in zip(masks, kinds, strict=True):
        numbers[mask.astype(bool)] = len(classes)
        classes.append(int(kind))
        crowd.append(False)
    return Segments(numbers, np.array(classes), np.array(crowd))


def found_segments(predicted: np.ndarray, count: int) -> Segments:
    """The segments of a prediction (H, W) of mmdet, class + INSTANCE_OFFSET * object; class `count` is void."""
    values, numbers = np.unique(predicted, return_inverse=True)
    classes = values % INSTANCE_OFFSET
    if classes.max() > count:
        raise ValueError(f"a pixel is of class {classes.max()}, and there are {count} classes")
    place = np.cumsum(classes < count) * (classes < count)
    return Segments(
        place[numbers].reshape(predicted.shape),
        np.array([-1, *classes[classes < count]]),
        np.zeros((classes < count).sum() + 1, bool),
    )


def listed(predicted: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The segments of a prediction (H, W) of mmdet as dict(label, name, score 1, box, mask bool (H, W)), the largest
    first.

    Args:
        predicted: class + INSTANCE_OFFSET * object of every pixel.
        classes: names of the classes, things and stuff.

    Raises:
        ValueError: there are no names, whose number tells which pixels have no class.
    """
    if not classes:
        raise ValueError("panoptic segments need the names of the classes, and the model has none (dataset_meta)")
    numbers, kinds, _ = found_segments(predicted, len(classes))
    found = []
    for number in 1 + np.bincount(numbers.ravel(), minlength=len(kinds))[1:].argsort(kind="stable")[::-1]:
        mask = numbers == number
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        box = [float(side) for side in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]
        label = int(kinds[number])
        found.append(dict(label=label, name=classes[label], score=1.0, box=box, mask=mask))
    return found


def compare(truth: Segments, found: Segments, count: int) -> Counts:
    """What was found, made up and missed in one image, by class.

    Raises:
        ValueError: the maps differ in size.
    """
    if truth.numbers.shape != found.numbers.shape:
        raise ValueError(f"segments {found.numbers.shape} were predicted, and the truth is {truth.numbers.shape}")
    shape = len(truth.classes), len(found.classes)
    pairs = (truth.numbers * shape[1] + found.numbers).ravel()
    both = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
    union = both.sum(1, keepdims=True) + both.sum(0) - both - both[0]
    same = (truth.classes[:, None] == found.classes) & (truth.classes[:, None] >= 0)
    match = same & ~truth.crowd[:, None] & (both > 0.5 * union)
    # pixels of each predicted segment that no segment claims
    free = both[0] + (both * (same & truth.crowd[:, None])).sum(0)
    there = both.sum(1) > 0  # a mask may lie under others
    wrong = (found.classes >= 0) & ~match.any(0) & (free <= 0.5 * both.sum(0))
    missed = (truth.classes >= 0) & ~truth.crowd & there & ~match.any(1)

    def by_class(classes: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(classes, weights, minlength=count).astype(float)

    rows, columns = match.nonzero()
    kinds = truth.classes[rows]
    return Counts(
        by_class(kinds, both[rows, columns] / union[rows, columns]),
        by_class(kinds),
        by_class(found.classes[wrong]),
        by_class(truth.classes[missed]),
    )
