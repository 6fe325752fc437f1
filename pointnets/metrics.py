"""Accuracy of a classifier under each protocol of rotation, and how far its answers move when a cloud is turned."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from rich import box
from rich.console import Console
from rich.table import Table

from ..files import check_out, replacing
from ..registry import METRICS


@METRICS.register_module()
class ClassificationMetric(BaseMetric):
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

    default_prefix = ""  # not None, which MMEngine would warn of: the protocol is the prefix
    out_suffix = ".npz"

    def __init__(self, out_file: str | Path | None = None, overwrite: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.out_file = check_out(out_file, (self.out_suffix,), overwrite) if out_file else None

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            log_probs = sample["log_probs"].detach().double().cpu().numpy()
            if not np.isfinite(log_probs).all():
                raise ValueError(
                    f"log_probs of cloud {int(sample['cloud'])} are NaN or infinite: the network has diverged (a lower "
                    "learning rate, a warm-up or gradient clipping may help)."
                )
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
        if self.out_file:
            arrays: dict[str, Any] = dict(classes=np.array(classes), labels=labels, clouds=clouds, protocols=protocols)
            arrays |= {f"confusion_{protocol}".rstrip("_"): confusion for protocol, confusion in confusions.items()}
            with replacing(self.out_file) as temporary:
                np.savez(temporary, log_probs=log_probs, **arrays)
            print_log(f"confusion matrices and log-probabilities: {self.out_file}", logger="current")
        return metrics


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """Recall of each class in percent (C,), of a confusion matrix (C, C; rows: truth); NaN for absent classes."""
    count = confusion.sum(1)
    return 100 * np.divide(confusion.diagonal(), count, out=np.full(len(count), np.nan), where=count > 0)


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


def _as_text(table: Table) -> str:
    console = Console(file=StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
