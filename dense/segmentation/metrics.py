"""How well maps of labels are predicted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from ...files import printable
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

    All in percent.

    Args:
        ignore_index: label of pixels that do not count. A class of this label is left out of all means.
        prefix: before the names of the figures.
    """

    default_prefix = ""

    def __init__(self, ignore_index: int = IGNORED, collect_device: str = "cpu", prefix: str | None = None):
        super().__init__(collect_device, prefix)
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        count = len(self.dataset_meta["classes"])
        for sample in data_samples:
            if "gt_sem_seg" not in sample:
                raise ValueError(
                    f"{printable(sample.get('img_path'))} came without its map: is ReadMap in the pipeline?"
                )
            found = sample["pred_sem_seg"]["data"].squeeze(0)
            truth = sample["gt_sem_seg"]["data"].squeeze(0).to(found)
            self.results.append(areas(found, truth, count, self.ignore_index).cpu())

    def compute_metrics(self, results: list[torch.Tensor]) -> dict[str, float]:
        names = [printable(name, 30) for name in self.dataset_meta["classes"]]
        each = torch.stack(results).double().numpy()  # (images, 3, classes)
        if 0 <= self.ignore_index < len(names):
            each[..., self.ignore_index] = 0
        both, found, truth = pooled = each.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou, recall = both / (found + truth - both), both / truth
            by_image = each[:, 0] / (each[:, 1] + each[:, 2] - each[:, 0])
        there = np.isfinite(iou)
        if not there.any():
            raise ValueError("no pixel of the evaluated images has a label")
        judged = np.isfinite(by_image).any(1)
        figures = {
            "mIoU": iou[there].mean(),
            "mIoU_image": np.nanmean(by_image[judged], 1).mean(),
            "mAcc": recall[truth > 0].mean() if (truth > 0).any() else np.nan,
            "aAcc": both.sum() / truth.sum() if truth.sum() else np.nan,
        } | {f"IoU/{name}": value for name, value in zip(names, iou) if np.isfinite(value)}
        width = max(map(len, names))
        rows = [
            f"  {name:{width}}  IoU {_percent(i)}  Acc {_percent(r)}  {t:12,.0f} pixels, {f:12,.0f} predicted"
            for name, i, r, (_, f, t) in zip(names, iou, recall, pooled.T)
        ]
        absent = [name for name, is_there in zip(names, there) if not is_there]
        told = f"; absent, and left out: {', '.join(absent)}" if absent else ""
        print_log("\n".join(["by class:", *rows]), logger="current")
        print_log(
            f"mIoU is the mean over {there.sum()} of {len(names)} classes, of the pixels of {len(each)} images in one "
            f"pool{told}. mIoU_image is the mean over images.",
            logger="current",
        )
        return {name: round(100 * float(value), 2) for name, value in figures.items() if np.isfinite(value)}


def areas(found: torch.Tensor, truth: torch.Tensor, count: int, ignore_index: int = IGNORED) -> torch.Tensor:
    """Pixels by class, int64 (3, count): rightly labeled, labeled, and in truth.

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
    found, truth = found[counts], truth[counts]
    for name, labels in (("predicted", found), ("true", truth)):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < count:
            raise ValueError(f"{name} labels go from {labels.min()} to {labels.max()}, and there are {count} classes")
    kinds = found[found == truth], found, truth
    return torch.stack([torch.bincount(labels.long(), minlength=count) for labels in kinds])


def _percent(value: float) -> str:
    return f"{100 * value:6.2f}" if np.isfinite(value) else "     -"
