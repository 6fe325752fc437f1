"""What a model of a checkpoint answers about an input, explained by the names of methods, targets and layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...tasks import task_of
from .capture import INPUT, default_layers
from .normgrad import combined
from .saliency import of_method, with_meta
from .targets import Question


def ask(model: nn.Module, path: Path, targets: Sequence[str | None]) -> list[Question]:
    """A question for each of the targets of an input.

    Args:
        model: model of `attlas.inference.load`.
        path: file of the input.
        targets: as `Task.question` words them; None for the best answer.

    Raises:
        ValueError: the model's kind has no explanations, or no such target.
    """
    kind: Any = task_of(model)
    task = kind()
    source = task.read(path)
    return [task.question(model, source, target) for target in targets]


def explain(
    question: Question,
    method: str,
    layers: Sequence[str] | None = None,
    how: str = "product",
    meta: float | None = None,
) -> Tensor:
    """The map (h, w) of a question.

    Args:
        question: of `ask`.
        method: name of METHODS.
        layers: names of modules, or "input". By default "input" of the methods "lrp" and "salient", else the layer of
            the question, or the last level of the backbone; of the method "proper" the last convolution in that.
        how: "product" or "sum" with equal weights, of several layers, as of `combined`.
        meta: rate of a step of `meta_saliency` before; None for none.

    Returns:
        At the layer's resolution, not scaled; of several layers at that of the input, in [0, 1].
    """
    chosen = of_method(method)
    names = list(layers) if layers else [default_layer(question, method)]
    if question.grid is not None and method == "salient":
        raise ValueError("salient looks at what lies around a pixel, which the points of a cloud have not: take lrp")
    grid = None if names == [INPUT] else question.grid
    if grid is not None and len(names) > 1:
        raise ValueError(f"layers: {', '.join(names)} have no places in common, so that one is shown at a time")
    if meta is not None:
        loss = question.loss or (lambda output: -question.score(output))
        chosen = with_meta(chosen, loss, meta)
    maps = chosen(question.network, question.inputs, question.score, names, grid=grid)
    if len(maps) == 1:
        return maps[0][0]
    return combined(maps, question.inputs[0].shape[-2:], how, "uniform")[0]


def default_layer(question: Question, method: str) -> str:
    """The layer that a method shows unless told otherwise."""
    if method in ("lrp", "salient"):
        return INPUT
    network = question.network
    level = question.layer or default_layers(network)[0]
    if method != "proper":
        return level
    below = [name for name, module in network.named_modules() if type(module) is nn.Conv2d and name.startswith(level)]
    if not below:
        raise ValueError(f"proper NormGrad takes convolutions, and {level} has none: say which layers")
    return below[-1]
