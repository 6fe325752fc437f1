"""What a model's task says of it: what an input is, how it is read and prepared, and what becomes of an answer."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import printable


class ModelError(RuntimeError):
    """The model is wrong, whatever the input: it ends the run."""


class Exportable(nn.Module):
    """A model as `tools/export.py` writes it, whose `forward` takes tensors and gives a tensor, or a tuple of them.

    Args:
        name: name for errors, that of the model's class.
        outputs: names of what `forward` gives.
        about: metadata of the file: `layout`, `classes` and what else a user of it must know.
        fixed_sizes: reasons why a size is fixed, by format and by size ("batch", "height", "width"), as of `Backbone`.

    Attributes:
        default_free: sizes that are free unless somebody asks for others, by format.
    """

    default_free: Mapping[str, Sequence[str]] = {".onnx": ("batch",), ".pt2": ("batch",)}

    def __init__(
        self,
        name: str,
        outputs: Sequence[str],
        about: Mapping[str, str],
        fixed_sizes: Mapping[str, Mapping[str, str]] = {},
    ):
        super().__init__()
        self.name, self.outputs, self.about, self.fixed_sizes = name, tuple(outputs), dict(about), fixed_sizes

    def inputs(self, batch: int, size: Sequence[int] | None) -> tuple[Tensor, ...]:
        """Tensors to trace with.

        Args:
            batch: number of items.
            size: height and width, or one number; None for that of the test data.

        Raises:
            ValueError: a size that the model does not take.
        """
        raise TypeError(f"{type(self).__name__} must define inputs")

    def difference(self, outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        """How far outputs are from others, relative to the largest value of each; NaN where a number is none."""
        pairs = zip(outputs, expected)
        return float(torch.stack([(a - b).abs().max() / b.abs().max().clamp(min=1e-12) for a, b in pairs]).max())

    def remark(self, expected: Sequence[Tensor]) -> str:
        """A sentence on what a comparison with these outputs is worth, or ""."""
        return ""


class Task(ABC):
    """What an inferencer has to know of a kind of model. The class of a model names its own as `task`.

    Attributes:
        suffixes: endings of the files that are taken from folders, in lower case.
        top: most entries of a result, unless told otherwise.
        exports: endings of the files that `tools/export.py` writes whole models to; none where it writes the backbone.
        together: number of inputs that make an item: 2 for tasks of pairs, which are taken two by two in their order.
        figures: whether a figure is drawn of each answer. Else the answer is a picture itself: `save` writes it to
            `stem`.png, which lies below --out as the input lies in its folder.
    """

    suffixes: Sequence[str]
    top: int
    exports: Sequence[str] = ()
    together = 1
    figures = True

    def configure(self, model: Any, **options: Any) -> None:
        """Set how a model is asked: the options of `Inferencer` that this kind of model has.

        Raises:
            ValueError: an option that it does not have, or a bad value.
        """
        if options:
            named = " and ".join(options)
            raise ValueError(f"{named}: models of the class {type(model).__name__} have no such options.")

    def is_input(self, folder: Path) -> bool:
        """Whether a folder is one input, as that of the frames of a video, and not one of inputs."""
        return False

    @abstractmethod
    def read(self, path: Path) -> Any:
        """The input in a file, or in a folder that is one, as transforms take it. Any error is one of this file."""

    @abstractmethod
    def take(self, source: Any) -> Any:
        """An input that was given as an array, as transforms take it. Any error is one of this input."""

    def join(self, parts: Sequence[Any]) -> Any:
        """The item that `together` inputs make, each as `read` or `take` gave it."""
        raise TypeError(f"{type(self).__name__} must define join, or together = 1")

    def prepare(self, transforms: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The transforms of a test data set, made fit for all that `read` and `take` give."""
        return transforms

    @abstractmethod
    def form(self, item: Any) -> Hashable:
        """What the items of a batch must have in common, of an item behind the transforms."""

    @abstractmethod
    def result(self, prediction: Any, source: Any, classes: Sequence[str], top: int) -> dict[str, Any]:
        """The entries of a result (of JSON's types, but for arrays that `save` takes out), of what the model predicts
        for one item; `source` is its input, as it was read."""

    @abstractmethod
    def said(self, result: Mapping[str, Any]) -> str:
        """A result in a line."""

    def examine(self, dataset: Any, model: nn.Module, out: Path | None) -> Iterator[Any]:
        """What `attlas.doctor` says of the data of a training, besides; `out` is for a picture of the targets."""
        yield from ()

    def examine_fit(self, model: nn.Module, batch: Any) -> Iterator[Any]:
        """What it says of a model that learned a batch by heart."""
        yield from ()

    def draw(self, source: Any, result: Mapping[str, Any]) -> Any:
        """A Matplotlib figure of an input, as it was read, with its result."""
        raise TypeError(f"{type(self).__name__} must define draw, or figures = False")

    def save(self, source: Any, result: dict[str, Any], stem: Path) -> dict[str, Any]:
        """Write what a figure does not hold to files beside the picture `stem`.png; entries of the result that name
        them. What is too long for results.json is taken out of the result."""
        return {}

    def question(self, model: Any, source: Any, target: str | None) -> Any:
        """What is explained of an input: a `Question` (see attlas/backbones/inspection/targets.py).

        Args:
            model: model of `load`.
            source: input, as `read` or `take` gave it.
            target: which number of the answer, as the task words it; None for that of the best answer.

        Raises:
            ValueError: no such target; says which there are.
        """
        raise ValueError(f"no number of the answers of a {type(model).__name__} is explained by name yet")

    def exportable(self, model: nn.Module, steps: Sequence[Mapping[str, Any]]) -> Exportable:
        """What is written of a model to a file of `exports`.

        Args:
            model: model of `load`.
            steps: configs of the transforms of its test data.

        Raises:
            ValueError: this model cannot be exported; says why.
        """
        raise TypeError(f"{type(self).__name__} must define exportable, or no exports")


# Tasks of models of other libraries, by the name of a class that they derive from.
OTHERS = {
    "mmdet.models.detectors.base.BaseDetector": "attlas.dense.detection.inference.Detection",
    "mmseg.models.segmentors.base.BaseSegmentor": "attlas.dense.segmentation.inference.Segmentation",
}


def task_of(model: nn.Module | type) -> type[Task] | None:
    """The task of a model, or of a class of models, if that or a class that it derives from has one."""
    if hasattr(model, "task"):
        return model.task  # type: ignore[return-value]
    for base in (model if isinstance(model, type) else type(model)).__mro__:
        module, _, name = OTHERS.get(f"{base.__module__}.{base.__qualname__}", "").rpartition(".")
        if name:
            return getattr(importlib.import_module(module), name)
    return None


class Classification(Task):
    """The task of models that predict `log_probs` (C,). A result has the `classes`, a list of dict(label, name,
    probability), the likeliest first. Where the model has an open-set score (`backbones.open_sets.fitting.attach`),
    also "open_set", dict(score, threshold, unknown, method, rule).

    Attributes:
        unit: what an input is, in a word.
    """

    top = 5
    unit: str

    def said(self, result):
        likeliest = ", ".join(f"{printable(c['name'])} {100 * c['probability']:.1f} %" for c in result["classes"])
        if "open_set" not in result:
            return likeliest
        found = result["open_set"]
        verdict = "unknown" if found["unknown"] else "known"
        return f"{verdict} ({found['method']} {found['score']:.4g}, known from {found['threshold']:.4g}): {likeliest}"

    @abstractmethod
    def picture(self, source: Any) -> Any:
        """An input as a picture (H, W, 3 or 4), of bytes or of floats in [0, 1]."""

    def result(self, prediction, source, classes, top):
        probabilities = prediction["log_probs"].double().exp().cpu()
        if not torch.isfinite(probabilities).all():
            raise ValueError("the network gives NaN or infinite numbers for it")
        if classes and len(classes) != len(probabilities):
            raise ModelError(f"There are names of {len(classes)} classes, and the network has {len(probabilities)}.")
        best = probabilities.argsort(descending=True, stable=True)[:top].tolist()
        open_set = {key: value for key, value in prediction.items() if key == "open_set"}
        return open_set | dict(
            classes=[
                dict(label=i, name=classes[i] if classes else f"class {i}", probability=float(probabilities[i]))
                for i in best
            ]
        )

    def draw(self, source, result):
        from matplotlib.figure import Figure  # here, because only pictures need it

        found = result["classes"]
        canvas = Figure(figsize=(7.5, 3.4), layout="constrained", dpi=120)
        left, right = canvas.subplots(1, 2, width_ratios=[1, 1.1])
        left.imshow(self.picture(source), interpolation="antialiased")
        left.set_axis_off()
        shares = [100 * entry["probability"] for entry in found]
        bars = right.barh(range(len(found)), shares, color=["#2f5d8a"] + ["#b9cbe0"] * (len(found) - 1), height=0.7)
        right.bar_label(bars, [f"{share:.1f} %" for share in shares], padding=3, fontsize=9)
        # a name is no formula, whatever dollars it holds
        names = [printable(entry["name"], 40) for entry in found]
        right.set_yticks(range(len(found)), names, fontsize=10, parse_math=False)
        right.set(xlim=(0, 118), xticks=())
        right.set_ylim(max(len(found), 5) - 0.4, -0.6)
        right.tick_params(length=0)
        right.spines[:].set_visible(False)
        verdict = "unknown class: " if result.get("open_set", {}).get("unknown") else ""
        canvas.suptitle(verdict + printable(result["input"], 90), fontsize=9, color="0.4", parse_math=False)
        return canvas
