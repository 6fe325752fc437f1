"""Slices of medical volumes as PNG files, and the Dice score of whole volumes.

The layout is that of multi-scale self-guided attention's authors: a folder for each split with `Img` and `GT`, a slice
and its mask of one name, `Subj_3slice_17.png`: slice 17 of subject 3. The masks hold gray levels, 63 * class.
`attlas.dense.segmentation.volumes` reads the files of scanners, and writes this layout.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmseg.datasets import BaseSegDataset
from torch import Tensor

from ...data import SeededDraws, one_of
from ...files import near_folders, printable
from ...images import read_png
from ...registry import DATASETS, METRICS, TRANSFORMS

CHAOS = ("background", "liver", "right kidney", "left kidney", "spleen")
PALETTE = ((0, 0, 0), (214, 69, 65), (65, 131, 215), (38, 194, 129), (245, 171, 53))
STEP = 63  # of gray levels from class to class
NAME = re.compile(r"^Subj_(?P<subject>.+)slice_(?P<slice>\d+)\.png$")


def gray_levels(classes: Sequence[str], levels: Sequence[int] | None = None) -> tuple[int, ...]:
    """The gray level of each class in a mask, 63 * class unless they are given; checked."""
    found = tuple(STEP * i for i in range(len(classes))) if levels is None else tuple(levels)
    if len(found) != len(classes) or len(set(found)) < len(found) or not all(0 <= level <= 255 for level in found):
        raise ValueError(
            f"levels={levels!r} must be {len(classes)} different gray levels from 0 to 255, one for each of the "
            f"classes {printable(', '.join(classes))}; by default they are 63 * class, which is enough for five."
        )
    return found


@DATASETS.register_module()
class MedicalSlices(SeededDraws, BaseSegDataset):
    """PNG slices with masks, for mmseg's pipelines; `attlas.ReadSlice` is the first transform of one.

    With `attlas.EpochSampler` every epoch draws every slice afresh, the same with any number of workers.

    Args:
        data_root: folder of the splits.
        split: folder below it: train, val or test in the authors' layout.
        classes: names of the classes, the background first; CHAOS's by default.
        levels: gray level of each class in the masks; 63 * class by default.
        options: `seed` of the draws (0), and those of mmseg's BaseSegDataset: pipeline, test_mode,
            metainfo=dict(palette=...), ...

    Raises:
        FileNotFoundError: no such folder; names the near ones.
        ValueError: no slices, a name that says neither subject nor slice, a slice without a mask or a mask without a
            slice; wrong levels.
    """

    def __init__(
        self,
        data_root: str,
        split: str = "train",
        classes: Sequence[str] = CHAOS,
        levels: Sequence[int] | None = None,
        **options,
    ):
        self.levels = gray_levels(classes, levels)
        palette = [list(color) for color in PALETTE] if len(classes) == len(PALETTE) else []
        metainfo = dict(classes=tuple(classes), palette=palette) | options.pop("metainfo", {})
        super().__init__(
            data_root=str(data_root),
            data_prefix=dict(img_path=f"{split}/Img", seg_map_path=f"{split}/GT"),
            metainfo=metainfo,
            **options,
        )

    def load_data_list(self) -> list[dict]:
        """The slices in the order of subjects and slices, numbers as numbers."""
        images, masks = (Path(self.data_prefix[key]) for key in ("img_path", "seg_map_path"))
        for folder in (images, masks):
            if not folder.is_dir():
                raise FileNotFoundError(f"The folder {printable(folder)} does not exist. {near_folders(folder)}")
        names, of_masks = ({path.name for path in folder.glob("*.png")} for folder in (images, masks))
        if not names:
            raise ValueError(f"{printable(images)} holds no PNG files.")
        if alone := sorted(names ^ of_masks):
            raise ValueError(
                f"{len(alone)} files are only in one of {printable(images)} and {printable(masks)}: "
                + ", ".join(printable(name) for name in alone[:5])
            )
        found = []
        for name in names:
            if not (match := NAME.match(name)):
                raise ValueError(f"{printable(images / name)} must be named Subj_<subject>slice_<number>.png.")
            found.append(
                dict(
                    img_path=str(images / name),
                    seg_map_path=str(masks / name),
                    subject=match["subject"],
                    slice=int(match["slice"]),
                    levels=self.levels,
                    label_map=self.label_map,
                    reduce_zero_label=False,
                    seg_fields=[],
                )
            )
        found.sort(key=lambda entry: (natural(entry["subject"]), entry["slice"]))
        table = ", ".join(f"{level} = {name}" for level, name in zip(self.levels, self.metainfo["classes"]))
        subjects = len({entry["subject"] for entry in found})
        print_log(
            f"{printable(images)}: {len(found):,} slices of {subjects:,} subjects; gray levels of the masks: "
            f"{printable(table, 1000)}",
            logger="current",
        )
        return found


def natural(name: str) -> list:
    """A key that sorts the numbers in names as numbers."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def read_gray(path: str | Path) -> np.ndarray:
    """A PNG of one channel and 8 bits as (H, W); one in color whose channels are equal counts as such.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no PNG, or more pixels than `attlas.images.MAX_PIXELS`, 16 bits, colors, or transparency; names the
            file.
    """
    image = read_png(path)
    if image.dtype != np.uint8:
        raise ValueError(f"{printable(path)} has {image.dtype.itemsize * 8} bits a pixel; slices and masks have 8.")
    if image.ndim == 3 and image.shape[2] == 4:
        if image[..., 3].min() < 255:
            raise ValueError(f"{printable(path)} has transparent pixels; slices and masks have one gray channel.")
        image = image[..., :3]
    return _gray_of(image, path)


def _gray_of(image: np.ndarray, path: str | Path) -> np.ndarray:
    if image.ndim == 3:
        if (image != image[..., :1]).any():
            raise ValueError(f"{printable(path)} is in color; slices and masks have one gray channel.")
        image = image[..., 0]
    return np.ascontiguousarray(image)


def classes_of(gray: np.ndarray, levels: Sequence[int], path: str | Path) -> np.ndarray:
    """The classes (H, W), uint8, of a mask's gray levels.

    Raises:
        ValueError: a level that is no class; names the file, the levels and how many pixels have them.
    """
    table = np.full(256, 255, np.uint8)
    table[list(levels)] = np.arange(len(levels))
    classes = table[gray]
    if (classes == 255).any():
        values, counts = np.unique(gray[classes == 255], return_counts=True)
        strange = ", ".join(f"{value} ({count} pixels)" for value, count in list(zip(values, counts))[:5])
        raise ValueError(
            f"{printable(path)} holds gray levels that are no class: {strange}. The classes have the levels "
            f"{list(levels)}; other levels are told by levels=[...]."
        )
    return classes


@TRANSFORMS.register_module()
class ReadSlice(BaseTransform):
    """The slice of a `MedicalSlices` entry and its classes, in mmseg's keys. Without `seg_map_path` it has no classes,
    and an `img` that is there already is taken, (H, W) or three equal channels (H, W, 3): so `attlas.inference` asks.

    Args:
        channels: 1, or 3 equal ones for a backbone of color images.

    Raises:
        ValueError: as of `read_gray` and `classes_of`; slice and mask differ in size, or `img` is in color.
    """

    def __init__(self, channels: Literal[1, 3] = 1):
        if channels not in (1, 3):
            raise ValueError(f"channels={channels!r} must be 1 or 3.")
        self.channels = channels

    def transform(self, results: dict) -> dict:
        if "img" in results:
            image = _gray_of(results["img"], results.get("img_path") or "the image")
        else:
            image = read_gray(results["img_path"])
        if "seg_map_path" in results:
            gray = read_gray(results["seg_map_path"])
            if image.shape != gray.shape:
                raise ValueError(
                    f"{printable(results['img_path'])} has {image.shape[0]} x {image.shape[1]} pixels (height x "
                    f"width), and its mask {printable(results['seg_map_path'])} {gray.shape[0]} x {gray.shape[1]}."
                )
            results["gt_seg_map"] = classes_of(gray, results["levels"], results["seg_map_path"])
            results["seg_fields"].append("gt_seg_map")
        results["img"] = image if self.channels == 1 else np.repeat(image[..., None], 3, -1)
        results["img_shape"] = results["ori_shape"] = image.shape
        return results


@METRICS.register_module()
class VolumeDice(BaseMetric):
    """Dice, 2 |P and T| / (|P| + |T|), of every class but the background, over whole volumes.

    The slices of a subject are one volume, whatever their order; `PackSegInputs` must hand on `subject` and `slice` in
    its meta_keys. Two figures are given of each class, and of each the mean over the classes: `case`, the mean over
    the volumes of each one's Dice, and `pooled`, the Dice of all voxels together.

    A class that neither a volume's truth nor its prediction has is 0 / 0, and `empty` says what becomes of it. One that
    only the prediction has scores 0, whatever the rule. The printed table counts both.

    Args:
        empty: 'skip' leaves such a volume out of the class's mean (a class of no volume has no figure), 'one' counts it
            as 1, 'zero' as 0.
        ignore_index: label of the pixels that do not count.
        options: those of MMEngine's BaseMetric.
    """

    default_prefix = "Dice"

    def __init__(self, empty: str = "skip", ignore_index: int = 255, **options: Any):
        super().__init__(**options)
        self.empty, self.ignore_index = one_of("empty", empty, ("skip", "one", "zero")), ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            if "subject" not in sample or "slice" not in sample:
                raise ValueError(
                    "VolumeDice gathers slices by subject, and a sample says none: "
                    "dict(type='PackSegInputs', meta_keys=(..., 'subject', 'slice'))."
                )
            found, truth = (_labels(sample[key]["data"]) for key in ("pred_sem_seg", "gt_sem_seg"))
            if found.shape != truth.shape:
                raise ValueError(
                    f"subject {sample['subject']}, slice {sample['slice']}: the prediction is of {found.shape} pixels, "
                    f"the truth of {truth.shape}"
                )
            known = truth != self.ignore_index
            found, truth = found[known], truth[known]
            if strange := sorted({*np.unique(found).tolist(), *np.unique(truth).tolist()} - {*range(classes)}):
                raise ValueError(f"subject {sample['subject']}, slice {sample['slice']}: labels {strange} are no class")
            counts = [np.bincount(x, minlength=classes) for x in (found[found == truth], found, truth)]
            self.results.append((str(sample["subject"]), int(sample["slice"]), np.stack(counts)))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """`case_<class>`, `pooled_<class>`, and `case_mean`, `pooled_mean`, of those classes that have a figure."""
        names = self.dataset_meta["classes"][1:]
        slices = {(subject, number): counts for subject, number, counts in results}  # a sampler may repeat some
        volumes: dict[str, Any] = defaultdict(int)
        for (subject, _), counts in slices.items():
            volumes[subject] = volumes[subject] + counts[:, 1:]
        counts = np.stack(list(volumes.values()))  # (volumes, 3, classes)
        scores = self._dice(counts)
        pooled = self._dice(counts.sum(0, keepdims=True))[0]
        case = [np.nanmean(column) if np.isfinite(column).any() else np.nan for column in scores.T]
        absent, invented = (counts[:, 2] == 0) & (counts[:, 1] == 0), (counts[:, 2] == 0) & (counts[:, 1] > 0)
        rule = dict(skip="left out", one="counted as 1", zero="counted as 0")[self.empty]
        lines = [
            f"Dice of {len(volumes)} volumes ({len(slices):,} slices). case: mean over volumes, absent ones {rule}; "
            "pooled: all voxels together.",
            f"{'class':>20}  case    pooled  absent from truth and prediction, only predicted",
        ]
        for i, name in enumerate(names):
            counted = f"{absent[:, i].sum()}, {invented[:, i].sum()}"
            lines.append(f"{printable(name):>20}  {case[i]:.4f}  {pooled[i]:.4f}  {counted}")
        print_log("\n".join(lines), logger="current")
        figures: dict[str, float] = {}
        for kind, values in (("case", case), ("pooled", pooled)):
            there = {f"{kind}_{name}": float(value) for name, value in zip(names, values) if np.isfinite(value)}
            figures |= there
            if there:
                figures[f"{kind}_mean"] = float(np.mean([*there.values()]))
        return figures

    def _dice(self, counts: np.ndarray) -> np.ndarray:
        """(volumes, classes) of (volumes, 3, classes): common, predicted and true voxels."""
        both = counts[:, 1] + counts[:, 2]
        nothing = dict(skip=np.nan, one=1.0, zero=0.0)[self.empty]
        return np.where(both > 0, 2 * counts[:, 0] / np.maximum(both, 1), nothing)


def _labels(data: Tensor | np.ndarray) -> np.ndarray:
    return np.asarray(data.cpu() if isinstance(data, Tensor) else data).astype(np.int64).squeeze(0)
