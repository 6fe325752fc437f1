"""Accuracy under each protocol of rotation: of classifiers, with how far their answers move when a cloud is turned, and
of segmentation, with every mean of IoU by its name."""

from abc import abstractmethod
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from rich import box
from rich.console import Console
from rich.table import Table

from ..confusion import class_accuracy
from ..files import check_out, replacing
from ..registry import METRICS
from .datasets import category_parts, competing


class PointMetric(BaseMetric):
    """Base of the metrics of points, which may write the arrays behind their numbers.

    Args:
        out_file: an npz for the arrays.
        overwrite: replace an `out_file` of an earlier run. Otherwise it is a FileExistsError, raised at once.
    """

    default_prefix = ""  # not None, which MMEngine would warn of: the protocol is the prefix
    out_suffix = ".npz"

    def __init__(self, out_file: str | Path | None = None, overwrite: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.out_file = check_out(out_file, (self.out_suffix,), overwrite) if out_file else None

    def save(self, what: str, **arrays: Any) -> None:
        """Write the arrays, if they are wanted."""
        if self.out_file:
            with replacing(self.out_file) as temporary:
                np.savez(temporary, **arrays)
            print_log(f"{what}: {self.out_file}", logger="current")


def finite_log_probs(sample: dict) -> np.ndarray:
    """The log-probabilities of a sample as float64; a ValueError if the network has diverged."""
    log_probs = sample["log_probs"].detach().double().cpu().numpy()
    if not np.isfinite(log_probs).all():
        raise ValueError(
            f"log_probs of cloud {int(sample['cloud'])} are NaN or infinite: the network has diverged (a lower "
            "learning rate, a warm-up or gradient clipping may help)."
        )
    return log_probs


@METRICS.register_module()
class ClassificationMetric(PointMetric):
    """Overall accuracy (`OA`), class accuracy (`mAcc`, the mean over the classes that occur), the effect of rotation.

    From samples `dict(log_probs (C,), label, cloud, protocol)` it computes, in percent, `OA` and `mAcc`, or `z/OA`,
    `z/mAcc`, `SO3/OA`, ... where the samples name protocols. If some cloud was seen in several views (the data set is
    `RotatedViews`) also, over all views of a cloud, whatever their protocol:

    - `log_prob_change`, `log_prob_change_median`: the largest difference of a log-probability between two views of a
      cloud; its maximum and its median over the clouds;
    - `flips`: the share of clouds, in percent, whose predicted class differs between views.

    The table of class accuracies goes to MMEngine's logger. Samples from several processes are gathered by MMEngine,
    which drops the repetitions that fill up the last batch.

    Args:
        out_file: an npz for `classes`, `labels` (M,), `clouds` (M,), `protocols` (M,), `log_probs` (M, C) and, for each
            protocol, `confusion_<protocol>` (C, C; rows: truth, columns: prediction); `confusion` without protocols.
        overwrite: replace an `out_file` of an earlier run. Otherwise it is a FileExistsError, raised at once.
    """

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            log_probs = finite_log_probs(sample)
            row = int(sample["label"]), int(sample["cloud"]), sample.get("protocol") or "", log_probs
            self.results.append(row)

    def compute_metrics(self, results: list) -> dict[str, float]:
        labels, clouds, protocols, log_probs = (np.array(column) for column in zip(*results))
        num_classes = log_probs.shape[1]
        classes = (self.dataset_meta or {}).get("classes") or [str(c) for c in range(num_classes)]
        if len(classes) != num_classes or labels.max() >= num_classes:
            raise ValueError(
                f"the network gives {num_classes} log-probabilities; the data set has {len(classes)} classes and "
                f"labels up to {labels.max()}."
            )
        predictions = log_probs.argmax(1)
        metrics, confusions = {}, {}
        for protocol in dict.fromkeys(protocols.tolist()):  # in order of appearance
            rows = protocols == protocol
            confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
            np.add.at(confusion, (labels[rows], predictions[rows]), 1)
            confusions[protocol] = confusion
            prefix = f"{protocol}/" if protocol else ""
            metrics[f"{prefix}OA"] = float(100 * np.trace(confusion) / confusion.sum())
            metrics[f"{prefix}mAcc"] = float(np.nanmean(class_accuracy(confusion)))
        metrics |= rotation_effect(log_probs, clouds)
        shapes = np.bincount(labels[np.unique(clouds, return_index=True)[1]], minlength=num_classes)
        print_log(f"class accuracy, %\n{render(classes, shapes, confusions, metrics)}", logger="current")
        if num_classes <= 20:  # more do not fit a terminal
            for protocol, confusion in confusions.items():
                under = f" under {protocol}" if protocol else ""
                print_log(f"confusion matrix{under}\n{render_confusion(classes, confusion)}", logger="current")
        saved = {f"confusion_{protocol}".rstrip("_"): confusion for protocol, confusion in confusions.items()}
        saved |= dict(classes=np.array(classes), labels=labels, clouds=clouds, protocols=protocols, log_probs=log_probs)
        self.save("confusion matrices and log-probabilities", **saved)
        return metrics


def rotation_effect(log_probs: np.ndarray, clouds: np.ndarray) -> dict[str, float]:
    """The effect of rotation, from log-probabilities (M, C) and the clouds (M,) that they belong to (see
    `ClassificationMetric`); nothing if no cloud was seen twice."""
    views = [log_probs[clouds == cloud] for cloud in np.unique(clouds)]
    views = [view for view in views if len(view) > 1]
    if not views:
        return {}
    change = [np.ptp(view, axis=0).max() for view in views]
    flips = [len(set(view.argmax(1).tolist())) > 1 for view in views]
    return dict(
        log_prob_change=float(np.max(change)),
        log_prob_change_median=float(np.median(change)),
        flips=float(100 * np.mean(flips)),
    )


def render(
    classes: Sequence[str], shapes: np.ndarray, confusions: dict[str, np.ndarray], metrics: dict[str, float]
) -> str:
    """The table of class accuracies as text, a column for each protocol, and below it the effect of rotation.
    `shapes` (C,) counts the clouds of each class."""
    table = Table("class", box=box.SIMPLE_HEAD)
    for column in ("shapes", *(protocol or "accuracy" for protocol in confusions)):
        table.add_column(column, justify="right")
    columns = [class_accuracy(confusion) for confusion in confusions.values()]
    for name, count, *row in zip(classes, shapes, *columns):
        table.add_row(name, str(count), *("-" if np.isnan(value) else f"{value:.1f}" for value in row))
    table.add_section()
    for key, total in (("mAcc", ""), ("OA", str(shapes.sum()))):
        values = [metrics[f"{protocol}/{key}" if protocol else key] for protocol in confusions]
        table.add_row(key, total, *(f"{value:.1f}" for value in values))
    text = _as_text(table)
    if "flips" in metrics:
        text += (
            f"largest change of a log-probability under rotation: {metrics['log_prob_change']:.3g} "
            f"(median over clouds {metrics['log_prob_change_median']:.3g}); "
            f"predicted class changes for {metrics['flips']:.1f} % of the clouds"
        )
    return text


def render_confusion(classes: Sequence[str], confusion: np.ndarray) -> str:
    """A confusion matrix (C, C) as text; rows are the truth, columns the prediction in the same order."""
    table = Table("truth", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for name in classes:
        table.add_column(name[:5], justify="right")
    for name, row in zip(classes, confusion):
        table.add_row(name, *(str(count) if count else "." for count in row))
    return _as_text(table)


# --- segmentation ----------------------------------------------------------------------------------------------------


class Counts(NamedTuple):
    """Numbers of points of each class, in the clouds of a protocol (M, C)."""

    truth: np.ndarray
    predicted: np.ndarray
    both: np.ndarray  # labelled and predicted as the class

    @property
    def union(self) -> np.ndarray:
        return self.truth + self.predicted - self.both

    def pooled_iou(self) -> np.ndarray:
        """IoU of each class (C,) in percent, of the points of all clouds together; NaN where no point is of it."""
        truth = self.truth.sum(0)
        return 100 * np.divide(self.both.sum(0), self.union.sum(0), out=np.full(len(truth), np.nan), where=truth > 0)

    def overall_accuracy(self) -> float:
        return float(100 * self.both.sum() / self.truth.sum())


class SegmentationMetric(PointMetric):
    """What the metrics of segmentation share: they count, cloud by cloud, and compute from the counts.

    Samples are `dict(log_probs (M, C), point_labels (M,), category, cloud, protocol, votes, seed)`, with a row for each
    point that the data have.
    """

    what: str  # the rows of the table are
    title: str
    by_category: bool  # only the classes of the category of a cloud compete (`category_parts`)

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            log_probs = finite_log_probs(sample)
            cloud, size = int(sample["cloud"]), log_probs.shape[1]
            if sample["point_labels"] is None:
                raise ValueError(f"cloud {cloud} has no labels of its points, so nothing can be measured on it.")
            labels = sample["point_labels"].cpu().numpy()
            classes = self.classes(size)
            if len(labels) != len(log_probs):
                raise ValueError(f"cloud {cloud} has {len(labels)} labels and {len(log_probs)} predictions.")
            if labels.min() < 0 or labels.max() >= size:
                raise ValueError(f"labels of cloud {cloud} lie in {labels.min()}..{labels.max()}; of {size} classes.")
            category = sample["category"] if self.by_category else None
            if self.by_category and category is None:
                raise ValueError(f"cloud {cloud} has no category, and only the parts of its category compete.")
            allowed = np.array(competing(classes, category))
            predictions = allowed[log_probs[:, allowed].argmax(1)]
            counts = (np.bincount(x, minlength=size) for x in (labels, predictions, labels[labels == predictions]))
            where = cloud, sample.get("protocol") or "", category or 0
            self.results.append((*where, sample["votes"], sample["seed"], Counts(*counts)))

    def classes(self, size: int) -> Sequence[str]:
        classes = (self.dataset_meta or {}).get("classes") or [str(number) for number in range(size)]
        if len(classes) != size:
            raise ValueError(f"the network gives {size} log-probabilities; the data set has {len(classes)} classes.")
        return classes

    def compute_metrics(self, results: list) -> dict[str, float]:
        clouds, protocols, categories, votes, seeds, counts = zip(*results)
        whole = Counts(*(np.stack(column) for column in zip(*counts)))
        metrics: dict[str, float] = {}
        columns: dict[str, dict[str, float]] = {}
        for protocol in dict.fromkeys(protocols):  # in order of appearance
            rows = np.array(protocols) == protocol
            of_protocol = Counts(*(column[rows] for column in whole))
            found, columns[protocol] = self.summary(of_protocol, np.array(categories)[rows])
            metrics |= {f"{protocol}/{key}" if protocol else key: value for key, value in found.items()}
        table = Table(self.what, box=box.SIMPLE_HEAD)
        for protocol in columns:
            table.add_column(protocol or "%", justify="right")
        for name in next(iter(columns.values())):
            values = [column[name] for column in columns.values()]
            table.add_row(name, *("absent" if np.isnan(value) else f"{value:.2f}" for value in values))
        points = whole.truth[np.unique(clouds, return_index=True)[1]].sum()  # each cloud once, in however many views
        method = f"{points:,} points, all that the data have; votes {votes[0]}, seed {seeds[0]}"
        print_log(f"{self.title} ({method})\n{_as_text(table)}", logger="current")
        self.save(
            "points by cloud and class",
            classes=np.array(self.classes(whole.truth.shape[1])),
            clouds=np.array(clouds),
            protocols=np.array(protocols),
            categories=np.array(categories),
            votes=np.array(votes),
            seeds=np.array(seeds),
            **whole._asdict(),
        )
        return metrics

    @abstractmethod
    def summary(self, counts: Counts, categories: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
        """The metrics, and the rows of the table by name, of the counts of clouds (M, C) and their categories (M,)."""


@METRICS.register_module()
class PartSegmentationMetric(SegmentationMetric):
    """Part segmentation as ShapeNetPart defines it, in percent.

    The IoU of a shape is the mean over the parts of its category, and 1 for a part that is neither in the truth nor in
    the prediction. Only the parts of the category compete.

    - `instance_mIoU`: the mean over the shapes;
    - `class_mIoU`: the mean over the categories that occur, of the mean over the shapes of each;
    - `pooled_mIoU`: the mean over the parts, of the IoU of all points of the data together; other papers mean this one;
    - `OA`: the share of points that are right.

    Under protocols of rotation: `z/instance_mIoU`, ... Arguments: see `PointMetric`; the arrays are the counts of each
    shape.
    """

    by_category = True
    what, title = "category", "IoU of shapes, %; a part absent from truth and prediction counts as 1"

    def summary(self, counts, categories):
        parts = category_parts(self.classes(counts.truth.shape[1]))
        union = counts.union
        iou = np.divide(counts.both, union, out=np.ones(union.shape), where=union > 0)
        names, owned = list(parts), list(parts.values())
        shapes = np.array([100 * row[owned[category]].mean() for row, category in zip(iou, categories)])
        means = {names[c]: float(shapes[categories == c].mean()) for c in np.unique(categories)}
        found = dict(
            class_mIoU=float(np.mean(list(means.values()))),
            instance_mIoU=float(shapes.mean()),
            pooled_mIoU=float(np.nanmean(counts.pooled_iou())),
            OA=counts.overall_accuracy(),
        )
        return found, means | found


@METRICS.register_module()
class SceneSegmentationMetric(SegmentationMetric):
    """Semantic segmentation of scenes, in percent, of the points of all scenes together.

    - `mIoU`: the mean of IoU over the classes that occur in the truth; one that does not is shown as absent, and is no
      term of the mean, also where it is predicted;
    - `mAcc`: the mean of recall over the same classes;
    - `OA`: the share of points that are right.

    Arguments: see `PointMetric`; the arrays are the counts of each scene.
    """

    by_category = False
    what, title = "class", "IoU of classes, % of the points of all scenes"

    def summary(self, counts, categories):
        iou, truth = counts.pooled_iou(), counts.truth.sum(0)
        found = dict(
            mIoU=float(np.nanmean(iou)),
            mAcc=float(100 * (counts.both.sum(0)[truth > 0] / truth[truth > 0]).mean()),
            OA=counts.overall_accuracy(),
        )
        return found, dict(zip(self.classes(len(iou)), iou.tolist())) | found


def _as_text(table: Table) -> str:
    console = Console(file=StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
