"""How well maps of labels are predicted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from ...files import check_out, printable, replacing
from ...registry import METRICS
from .maps import IGNORED


@METRICS.register_module()
class MapIoU(BaseMetric):
    """Intersection over union of labels, by class, of the pixels that have one.

    - `mIoU`: the pixels of all images in one pool; the mean over the classes that are there. A class that no pixel has
      and none was given is absent: its IoU is not 0, and it is left out of the mean, which the log tells.
    - `mIoU_image`: for each image the mean over the classes that are in it, in truth or prediction; the mean over the
      images.
    - `aAcc`: share of pixels with the right class. `mAcc`: the same by class, the mean over those that pixels have.
    - `IoU/<class>` of those that are there.
    - with `boundary`, `mBIoU` and `BIoU/<class>`: the same of the pixels near the boundary of their region alone, the
      boundary IoU of Cheng et al., "Boundary IoU" (CVPR 2021, arXiv 2103.16562); see `boundary_areas`.

    All in percent.

    Args:
        ignore_index: label of pixels that do not count. A class of this label is left out of all means.
        boundary: distance up to which a pixel is near the boundary, as a share of the image's diagonal (in pixels it is
            rounded, and at least 1), such as the paper's 0.02; None for no such figures.
        out_file: an npz for `classes`, `confusion` (C, C; pixels; rows: truth, columns: prediction), and by class, NaN
            where it is absent, `iou`, `accuracy` and perhaps `boundary_iou` (C,), in percent.
        overwrite: replace an `out_file` of an earlier run. Otherwise it is a FileExistsError, raised at once.
        prefix: before the names of the figures.
    """

    default_prefix = ""
    out_suffix = ".npz"

    def __init__(
        self,
        ignore_index: int = IGNORED,
        boundary: float | None = None,
        out_file: str | Path | None = None,
        overwrite: bool = False,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ):
        super().__init__(collect_device, prefix)
        if boundary is not None and not 0 < boundary < 1:
            raise ValueError(f"boundary={boundary!r} must be a share of the image's diagonal, between 0 and 1")
        self.ignore_index, self.boundary = ignore_index, boundary
        self.out_file = check_out(out_file, (self.out_suffix,), overwrite) if out_file else None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        count = len(self.dataset_meta["classes"])
        for sample in data_samples:
            if "gt_sem_seg" not in sample:
                raise ValueError(
                    f"{printable(sample.get('img_path'))} came without its map: is ReadMap in the pipeline?"
                )
            found = sample["pred_sem_seg"]["data"].squeeze(0)
            truth = sample["gt_sem_seg"]["data"].squeeze(0).to(found)
            pixels = confusion(found, truth, count, self.ignore_index).cpu().numpy()
            near = None
            if self.boundary is not None:
                distance = max(1, round(self.boundary * float(np.hypot(*truth.shape))))
                near = boundary_areas(found.cpu().numpy(), truth.cpu().numpy(), count, distance, self.ignore_index)
            pairs = np.flatnonzero(pixels)  # few, as an image has few classes
            self.results.append((pairs, pixels.flat[pairs], near))

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        names = [printable(name, 30) for name in self.dataset_meta["classes"]]
        count = len(names)
        each, confused = np.zeros((len(results), 3, count)), np.zeros((count, count), np.int64)
        for areas, (pairs, pixels, _) in zip(each, results):
            image = np.zeros((count, count), np.int64)
            image.flat[pairs] = pixels
            confused += image
            areas[:] = image.diagonal(), image.sum(0), image.sum(1)
        near = np.sum([found for *_, found in results], 0) if self.boundary is not None else np.zeros((3, count))
        if 0 <= self.ignore_index < count:
            each[..., self.ignore_index] = near[:, self.ignore_index] = 0
        both, found, truth = pooled = each.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou, recall = both / (found + truth - both), both / truth
            by_image = each[:, 0] / (each[:, 1] + each[:, 2] - each[:, 0])
            boundary_iou = near[0] / (near[1] + near[2] - near[0])
        there = np.isfinite(iou)
        if not there.any():
            raise ValueError("no pixel of the evaluated images has a label")
        judged = np.isfinite(by_image).any(1)
        figures = {
            "mIoU": iou[there].mean(),
            "mIoU_image": np.nanmean(by_image[judged], 1).mean(),
            "mAcc": recall[truth > 0].mean() if (truth > 0).any() else np.nan,
            "aAcc": both.sum() / truth.sum() if truth.sum() else np.nan,
        } | {f"IoU/{name}": value for name, value in zip(names, iou)}
        if np.isfinite(boundary_iou).any():
            figures |= {"mBIoU": np.nanmean(boundary_iou)}
            figures |= {f"BIoU/{name}": value for name, value in zip(names, boundary_iou)}
        width = max(map(len, names))
        rows = [
            f"  {name:{width}}  IoU {_percent(i)}{f'  BIoU {_percent(n)}' if self.boundary else ''}  Acc {_percent(r)}"
            f"  {t:12,.0f} pixels, {f:12,.0f} predicted"
            for name, i, n, r, (_, f, t) in zip(names, iou, boundary_iou, recall, pooled.T)
        ]
        absent = [name for name, is_there in zip(names, there) if not is_there]
        told = f"; absent, and left out: {', '.join(absent)}" if absent else ""
        print_log("\n".join(["by class:", *rows]), logger="current")
        print_log(
            f"mIoU is the mean over {there.sum()} of {len(names)} classes, of the pixels of {len(each)} images in one "
            f"pool{told}. mIoU_image is the mean over images."
            + (f" BIoU: of pixels within {self.boundary:g} diagonals of a boundary." if self.boundary else ""),
            logger="current",
        )
        if self.out_file:
            by_class = dict(iou=100 * iou, accuracy=100 * recall)
            by_class |= dict(boundary_iou=100 * boundary_iou) if self.boundary else {}
            with replacing(self.out_file) as temporary:
                np.savez(temporary, classes=np.array(self.dataset_meta["classes"]), confusion=confused, **by_class)
            print_log(f"confusion matrix and figures by class: {self.out_file}", logger="current")
        return {name: round(100 * float(value), 2) for name, value in figures.items() if np.isfinite(value)}


def confusion(found: torch.Tensor, truth: torch.Tensor, count: int, ignore_index: int = IGNORED) -> torch.Tensor:
    """Pixels by true class (rows) and predicted class (columns), int64 (count, count).

    Args:
        found: integers (H, W), from 0 to count - 1.
        truth: integers (H, W); where they are `ignore_index`, nothing counts.
        count: number of classes.

    Raises:
        ValueError: the maps differ in size, or a label lies outside the classes.
    """
    if found.shape != truth.shape:
        raise ValueError(f"a map {tuple(found.shape)} was predicted, and the truth is {tuple(truth.shape)}")
    counts = truth != ignore_index
    found, truth = found[counts].long(), truth[counts].long()
    for name, labels in (("predicted", found), ("true", truth)):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < count:
            raise ValueError(f"{name} labels go from {labels.min()} to {labels.max()}, and there are {count} classes")
    return torch.bincount(truth * count + found, minlength=count**2).view(count, count)


def boundary_areas(
    found: np.ndarray, truth: np.ndarray, count: int, distance: int, ignore_index: int = IGNORED
) -> np.ndarray:
    """Pixels near a boundary by class, int64 (3, count): in both maps, in the predicted one, and in the true one.

    For a class with true pixels G and predicted ones P, G_d are those of G within `distance` d of a pixel that is not
    of G, and P_d alike; boundary IoU is |G_d & P_d| / |G_d | P_d|. As in the authors' code, the distance is the larger
    of those along rows and columns, and all beyond the image is of no class. Pixels without a label are a region of
    their own, in both maps.

    Args:
        found, truth: labels (H, W), from 0 to 255.
        count: number of classes.
        distance: d in pixels.
        ignore_index: label of pixels that do not count.
    """
    found = np.where(truth == ignore_index, ignore_index, found).astype(np.uint8)
    truth, kernel = truth.astype(np.uint8), np.ones((2 * distance + 1,) * 2, np.uint8)
    near = []
    for labels in (found, truth):
        band = cv2.erode(labels, kernel) != cv2.dilate(labels, kernel)
        band[:distance] = band[-distance:] = band[:, :distance] = band[:, -distance:] = True
        near.append(band & (truth != ignore_index))
    kinds = found[near[0] & near[1] & (found == truth)], found[near[0]], truth[near[1]]
    return np.stack([np.bincount(labels, minlength=count)[:count] for labels in kinds])


def _percent(value: float) -> str:
    return f"{100 * value:6.2f}" if np.isfinite(value) else "     -"
