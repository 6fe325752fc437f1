"""Which open-set score serves a trained classifier best: all of them, fitted and tested on the data of its config.

    survey = measure(model, loaders(config, known, surrogates))
    print(survey.record()); survey.draw()

Known are the classes that the classifier was trained on. The other classes of the test data are unknown. Some may be
named surrogates: as found among the validation data, they stand for the unknown in the choice of a threshold, and do
not count where accuracy at that threshold is measured.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from rich.table import Column, Table
from torch import nn

from ...tasks import task_of
from .fitting import Detector, Reader, create, find_layer, fit
from .metrics import (
    Curve,
    accepting_threshold,
    accuracy_at,
    auoscr,
    aupr,
    auroc,
    best_threshold,
    ccr_at_fpr,
    fpr_at_tpr,
    oscr,
    rates_at,
)
from .scores import Score

ALL = (
    "max_softmax", "max_logit", "energy", "nearest_mean", "nnguide", "ghost", "ghost:tail=none", "costarr",
    "costarr:features=pre", "costarr:features=post",
)  # fmt: skip
FPRS = (0.01, 0.05, 0.1)  # at which CCR is told
SHARE = 0.95  # of held-out known samples that the threshold without surrogates accepts
NO_VALIDATION = "the config has no validation data apart from its training data and its test data"
RULES = {
    "surrogates": "best accuracy on held-out known samples and surrogates of the unknown",
    "known": f"{SHARE:.0%} of held-out known samples are accepted",
}


def parse(name: str) -> tuple[str, dict[str, Any]]:
    """A score and its options, of a text such as "costarr:features=pre,clip=true"."""
    score, _, rest = name.partition(":")
    options: dict[str, Any] = {}
    for entry in filter(None, rest.split(",")):
        key, equals, value = entry.partition("=")
        if not equals or not key:
            raise ValueError(f"{name!r}: options are NAME=VALUE, with commas between them, got {entry!r}.")
        options[key] = {"true": True, "false": False}.get(value.lower(), value)
        for kind in (float, int):
            try:
                options[key] = kind(value)
            except ValueError:
                continue
    return score, options


# --- the data of a config --------------------------------------------------------------------------------------------


class Loaders(NamedTuple):
    """Batches to fit and to test with; `surrogates` are those of the test data."""

    fit: Iterable[Any]
    validation: Iterable[Any] | None
    test: Iterable[Any]
    surrogates: Iterable[Any] | None


def _inner(dataset: Mapping) -> Mapping:
    return _inner(dataset["dataset"]) if isinstance(dataset.get("dataset"), Mapping) else dataset


def _apart(one: Mapping, other: Mapping) -> bool:
    """Whether two data sets have no item in common, as far as their configs tell."""
    sources, parts = [], []
    for dataset in (one, other):
        inner = _inner(dataset)
        sources.append({key: inner[key] for key in inner if key not in ("transforms", "pipeline", "seed")})
        while "part" not in dataset and isinstance(dataset.get("dataset"), Mapping):
            dataset = dataset["dataset"]
        parts.append((dataset.get("share", 0), dataset.get("part", "all")))
    (share, part), (other_share, other_part) = parts
    return sources[0] != sources[1] or (share == other_share and {part, other_part} == {"rest", "held_out"})


def _of_classes(dataset: Mapping, classes: Sequence[str], unknown: Sequence[str] | str) -> dict:
    """The config of a data set with the innermost one, or its `KnownClasses`, of these classes."""
    if str(dataset.get("type")).removeprefix("attlas.") == "KnownClasses":
        return {**dataset, "classes": tuple(classes), "unknown": unknown}
    if isinstance(inner := dataset.get("dataset"), Mapping):
        return {**dataset, "dataset": _of_classes(inner, classes, unknown)}
    return dict(type="attlas.KnownClasses", dataset=dict(dataset), classes=tuple(classes), unknown=unknown)


def loaders(config: Config, known: Sequence[str], surrogates: Sequence[str] = ()) -> Loaders:
    """What the data of a config are for, by the names of the known classes.

    The scores are fitted to the known classes of the training data, prepared as the test data are. Thresholds are
    chosen on those of the validation data, unless these are the test data or the training data, on which none may be.

    Args:
        config: config with train_dataloader, test_dataloader and perhaps val_dataloader, whose data sets may be
            `KnownClasses` already.
        known: names of the classes that the classifier knows, in the order of its logits.
        surrogates: names of other classes that stand for the unknown in the validation data.

    Raises:
        ValueError: a name is of no class of the data, or there are no unknown classes.
    """
    from ...engine import Runner  # here, because it changes how MMEngine loads files
    from ...registry import DATASETS

    for part in ("train_dataloader", "test_dataloader"):
        if not config.get(part):
            raise ValueError(f"the config has no {part}: scores are fitted to the training data, and tested.")
    test, train = config.test_dataloader, config.train_dataloader
    plain: Any = DATASETS.build(copy.deepcopy(dict(_inner(test.dataset))))
    others = [name for name in plain.classes if name not in known]
    if missing := [name for name in known if name not in plain.classes]:
        raise ValueError(f"{missing[0]!r} is no class of the test data, which have {', '.join(plain.classes)}.")
    for name in surrogates:
        if name not in others:
            raise ValueError(f"surrogate {name!r} is not among the unknown classes: {', '.join(others) or 'none'}.")
    unknown = [name for name in others if name not in surrogates]
    if not unknown:
        raise ValueError(
            "no class is unknown: the test data have the classes "
            f"{', '.join(plain.classes)}, of which {len(known)} are known and {len(surrogates)} surrogates."
        )

    def loader(dataset: Mapping) -> Any:
        own = dict(copy.deepcopy(dict(test)), dataset=copy.deepcopy(dict(dataset)))
        own["sampler"] = dict(type="DefaultSampler", shuffle=False)
        return Runner.build_dataloader(own, seed=0)

    fitting = copy.deepcopy(dict(train.dataset))
    _inner(fitting)["transforms"] = copy.deepcopy(_inner(test.dataset).get("transforms", ()))  # type: ignore[index]
    val = config.get("val_dataloader")
    apart = val and _apart(val.dataset, test.dataset) and _apart(val.dataset, train.dataset)
    return Loaders(
        loader(_of_classes(fitting, known, ())),
        loader(_of_classes(val.dataset, known, surrogates)) if apart else None,
        loader(_of_classes(test.dataset, known, unknown)),
        loader(_of_classes(test.dataset, surrogates[:1], surrogates[1:])) if surrogates else None,
    )


# --- the survey ------------------------------------------------------------------------------------------------------


class Rated(NamedTuple):
    """Samples with the scores of every method: `scores` by name (N,), `labels` and `predictions` (N,)."""

    scores: dict[str, np.ndarray]
    labels: np.ndarray
    predictions: np.ndarray

    def joined(self, other: "Rated | None") -> "Rated":
        if other is None:
            return self
        scores = {name: np.concatenate([own, other.scores[name]]) for name, own in self.scores.items()}
        return Rated(scores, *(np.concatenate(pair) for pair in zip(self[1:], other[1:])))


@torch.no_grad()
def rate(scores: Mapping[str, Score], reader: Reader, loader: Iterable[Any], unknown: bool = False) -> Rated:
    """Ask all scores about the samples of a loader; the features of a batch are dropped with it.

    Args:
        scores: fitted scores by name.
        reader: reader of the classifier.
        loader: batches.
        unknown: whether all samples are unknown, whatever their labels.
    """
    found: dict[str, list] = {name: [] for name in scores}
    labels, predictions = [], []
    for batch in loader:
        features, label = reader(batch)
        for name, score in scores.items():
            found[name].append(score(features).double().cpu().numpy())
        logits = torch.nn.functional.linear(features, reader.layer.weight, reader.layer.bias)
        labels.append(torch.full_like(label, -1).cpu().numpy() if unknown else label.cpu().numpy())
        predictions.append(logits.argmax(1).cpu().numpy())
    joined = {name: np.concatenate(parts) for name, parts in found.items()}
    return Rated(joined, np.concatenate(labels), np.concatenate(predictions))


@dataclass
class Survey:
    """What a survey found.

    Attributes:
        unit: what a score is of, "image" or "cloud".
        counts: samples by what they were for.
        metrics: figures by score; those that are undefined are NaN. `thresholds` are by rule, see `RULES`.
        curves: OSCR curves by score.
        scores: fitted scores by name.
        failed: scores that could not be fitted, with the reason.
        classes: names of the known classes.
        layer: name of the classifier's last layer.
    """

    unit: str
    counts: dict[str, int]
    classes: Sequence[str] = ()
    layer: str = ""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What JSON can hold; None where a figure is undefined."""

        def plain(figures: Mapping[str, float]) -> dict[str, float | None]:
            return {key: value if math.isfinite(value) else None for key, value in figures.items()}

        return dict(
            unit=self.unit,
            counts=self.counts,
            classes=list(self.classes),
            scores={name: plain(figures) for name, figures in self.metrics.items()},
            thresholds={name: plain(found) for name, found in self.thresholds.items()},
            failed=self.failed,
        )

    def detector(self, name: str, rule: str) -> Detector:
        """A fitted score with the threshold of a rule.

        Raises:
            ValueError: no such score was fitted, or the rule has no threshold for want of validation data.
        """
        if name not in self.scores:
            raise ValueError(f"{name!r} was not fitted; there are {', '.join(self.scores)}.")
        if rule not in self.thresholds[name]:
            known = ", ".join(self.thresholds[name]) or f"none: {NO_VALIDATION}"
            raise ValueError(f"there is no threshold by the rule {rule!r}; there are {known}.")
        threshold = self.thresholds[name][rule]
        own = parse(name)[0]
        return Detector(own, self.scores[name], threshold, RULES[rule], self.unit, self.layer, self.classes)

    def tables(self) -> list[Table]:
        """The figures without a threshold, and those at thresholds, in percent."""

        def shown(figures: Mapping[str, float], key: str) -> str:
            return "undefined" if math.isnan(figures[key]) else f"{100 * figures[key]:.1f}"

        keys = list(next(iter(self.metrics.values())))
        columns = [key for key in keys if not key.startswith(("OOSA", "accepted", "rejected"))]
        first = Table(
            Column("score", no_wrap=True),
            *(column.replace("_", " ") for column in columns),
            box=None,
            title=f"known against unknown, by {self.unit}, %",
        )
        for name, figures in self.metrics.items():
            first.add_row(name, *(shown(figures, key) for key in columns))
        if len(columns) == len(keys):
            return [first]
        second = Table(
            Column("score", no_wrap=True), "rule", "threshold", "OOSA", "known accepted", "unknown rejected", box=None
        )
        second.title = f"at thresholds that were chosen on validation data, by {self.unit}, %"
        for name, figures in self.metrics.items():
            for rule, threshold in self.thresholds[name].items():
                keys = [f"OOSA_{rule}", f"accepted_{rule}", f"rejected_{rule}"]
                second.add_row(name, rule, f"{threshold:.6g}", *(shown(figures, key) for key in keys))
        return [first, second]

    def notes(self) -> list[str]:
        """What a reader of the tables must know."""
        counted = ", ".join(f"{count:,} {what}" for what, count in self.counts.items())
        lines = [
            f"Unit: {self.unit}. Samples: {counted}.",
            "FPR95_known_positive: share of unknown accepted where 95 % of the known are accepted; "
            "FPR95_unknown_positive: share of known rejected where 95 % of the unknown are rejected.",
            "AUOSCR_from_origin starts at (0, 0), which is a choice; AUOSCR starts at the highest score, and is "
            "undefined where that is of an unknown. OSCR ends at the closed-set accuracy.",
        ]
        lines += [f"Rule {rule}: {RULES[rule]}." for rule in RULES if any(rule in t for t in self.thresholds.values())]
        if not any(self.thresholds.values()):
            lines.append(f"No thresholds: {NO_VALIDATION}.")
        return lines + [f"{name} could not be fitted: {reason}" for name, reason in self.failed.items()]

    def draw(self, names: Sequence[str] | None = None) -> Any:
        """A Matplotlib figure of OSCR curves over a logarithmic axis of FPR: where few unknown may pass, the scores
        differ, and a linear axis hides that."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 4.4), layout="constrained", dpi=120)
        axes = figure.subplots()
        unknown = self.counts["unknown"]
        least = 1 / unknown
        styles = ("-", "--", ":", "-.")
        for number, name in enumerate(names or self.curves):
            curve = self.curves[name]
            seen = curve.fpr > 0
            before = curve.ccr[~seen][-1:]  # at FPR 0, which has no place on the axis: drawn at its left end
            x = np.concatenate([[least / 2] * len(before), curve.fpr[seen]])
            y = np.concatenate([before, curve.ccr[seen]])
            color = OKABE_ITO[number % len(OKABE_ITO)]
            style = styles[number // len(OKABE_ITO) % len(styles)]
            axes.plot(x, 100 * y, drawstyle="steps-post", color=color, linestyle=style, linewidth=1.6, label=name)
        accuracy = 100 * next(iter(self.curves.values())).closed_set_accuracy
        axes.axhline(accuracy, color="0.6", linewidth=0.8, linestyle=(0, (1, 3)))
        axes.text(least / 2, accuracy + 1, f" closed-set accuracy {accuracy:.1f} %", fontsize=8, color="0.35")
        axes.set_xscale("log")
        axes.set_xlim(least / 2, 1)
        axes.set_ylim(0, min(accuracy + 12, 108))
        axes.set_xlabel(f"share of {unknown:,} unknown {self.unit}s that are accepted (the left end is 0)")
        axes.set_ylabel("known accepted and right, %")
        axes.grid(alpha=0.25, which="both", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
        return figure


# told apart by color-blind eyes (Okabe and Ito)
OKABE_ITO = ("#000000", "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7")


def measure(
    model: nn.Module,
    data: Loaders,
    names: Sequence[str] = ALL,
    classes: Sequence[str] = (),
    layer: str | None = None,
) -> Survey:
    """Fit scores, choose thresholds, and test.

    Args:
        model: trained classifier.
        data: loaders of `loaders`, or your own.
        names: scores, with options as of `parse`.
        classes: names of the known classes.
        layer: as of `Reader`.

    Raises:
        ValueError: no such score, bad options, or a classifier that no score can be of. A score that cannot be fitted
            to these data is left out, and told.
    """
    reader = Reader(model, layer)
    found = find_layer(reader, data.fit)
    task = task_of(model)
    if classes and len(classes) != found.out_features:
        raise ValueError(f"{len(classes)} known classes are named, and the classifier has {found.out_features}.")
    scores = {name: create(score, found, **options) for name in names for score, options in [parse(name)]}
    survey = Survey(getattr(task, "unit", "sample"), {}, tuple(classes), reader.name or "")
    failed: dict[Score, str] = {}
    fit(list(scores.values()), reader, data.fit, failed)
    survey.failed = {name: failed[score] for name, score in scores.items() if score in failed}
    scores = survey.scores = {name: score for name, score in scores.items() if score not in failed}
    if not scores:
        raise ValueError(f"no score could be fitted: {next(iter(survey.failed.values()))}")
    validation = None if data.validation is None else rate(scores, reader, data.validation)
    test = rate(scores, reader, data.test)
    everything = test.joined(None if data.surrogates is None else rate(scores, reader, data.surrogates, unknown=True))
    survey.counts = {"known": int((everything.labels >= 0).sum()), "unknown": int((everything.labels < 0).sum())}
    if data.surrogates is not None:
        survey.counts["of these surrogates"] = len(everything.labels) - len(test.labels)
    if validation is not None:
        known = validation.labels >= 0
        survey.counts |= {"held-out known": int(known.sum()), "held-out surrogates": int((~known).sum())}
    for name in scores:
        own, labels, predictions = everything.scores[name], everything.labels, everything.predictions
        curve = survey.curves[name] = oscr(own, labels, predictions)
        figures = dict(AUROC=auroc(own, labels))
        figures |= {f"FPR95_{who}_positive": fpr_at_tpr(own, labels, who) for who in ("known", "unknown")}
        figures |= {f"AUPR_{who}": aupr(own, labels, who) for who in ("known", "unknown")}
        figures |= dict(AUOSCR_from_origin=auoscr(curve, True), AUOSCR=auoscr(curve, False))
        figures |= {f"CCR@FPR{fpr:.0%}": ccr_at_fpr(curve, fpr) for fpr in FPRS}
        figures |= dict(closed_set=curve.closed_set_accuracy)
        thresholds = survey.thresholds[name] = {}
        if validation is not None:
            if not known.all():
                chosen = best_threshold(validation.scores[name], validation.labels, validation.predictions)
                thresholds["surrogates"] = chosen.value
            thresholds["known"] = accepting_threshold(validation.scores[name][known], SHARE)
        for rule, threshold in thresholds.items():
            rates = rates_at(threshold, test.scores[name], test.labels)
            figures[f"OOSA_{rule}"] = accuracy_at(threshold, test.scores[name], test.labels, test.predictions)
            figures[f"accepted_{rule}"] = rates["known_accepted"]
            figures[f"rejected_{rule}"] = rates["unknown_rejected"]
        survey.metrics[name] = figures
    return survey
