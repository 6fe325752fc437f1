"""What is explained: one number for each sample of a batch, of what a network gives.

    score = logit([3, 5])             # of class 3 for the first image of a batch of two, of class 5 for the second
    score(network(images))            # (2,)

Every method of explanation takes such a score, or any function output -> (B,) of your own. Scores of boxes, masks and
restored patches stand with their tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Scoring = Callable[[Any], Tensor]  # output -> (B,)
Classes = int | Sequence[int] | Tensor
ToMap = Callable[[Tensor], Tensor]  # what a layer gives -> (B, C, *places)


class Score:
    """`function(output, *values) -> (B,)`, whose values belong to the samples, so that a sample can be asked alone.

    Args:
        function: differentiable function of the output of a network and the values.
        values: tensors with an entry for each sample; or with one entry, for all of them.
    """

    @torch.inference_mode(False)
    def __init__(self, function: Callable[..., Tensor], *values: Tensor):
        self.function, self.values = function, tuple(v.clone() if v.is_inference() else v for v in values)

    def __call__(self, output: Any) -> Tensor:
        return self.function(output, *self.values)

    def of_sample(self, number: int) -> "Score":
        """The score of one sample, of the output for it alone."""
        for value in self.values:
            if len(value) > 1 and not -len(value) <= number < len(value):
                raise ValueError(f"sample {number}: the score is of {len(value)} samples")
        return Score(self.function, *(v if len(v) == 1 else v[number].unsqueeze(0) for v in self.values))


def of_sample(score: Scoring, number: int) -> Scoring:
    """The score of one sample: a function of your own is the same for all of them."""
    return score.of_sample(number) if isinstance(score, Score) else score


def evaluate(score: Scoring, output: Any, batch: int) -> Tensor:
    """The scores (B,) of an output.

    Raises:
        TypeError, ValueError: the score gives no floats (B,), or one that is NaN or infinite.
    """
    found = score(output)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        given = f"{found.dtype} numbers" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise TypeError(f"score must give floats ({batch},), one for each sample, and gave {given}")
    if found.shape != (batch,):
        raise ValueError(
            f"score must give one number for each of the {batch} samples, and gave shape {tuple(found.shape)}"
        )
    if not bool(torch.isfinite(found).all()):
        wrong = int((~torch.isfinite(found)).nonzero()[0])
        raise ValueError(f"the score of sample {wrong} is {float(found[wrong])}: the network gives NaN or infinity")
    return found


# --- classes ---------------------------------------------------------------------------------------------------------


def logit(classes: Classes) -> Score:
    """The logit of a class, of logits (B, num_classes).

    Args:
        classes: one for all samples, or one for each.
    """
    return Score(_chosen, _numbers(classes))


def log_probability(classes: Classes) -> Score:
    """The logarithm of the softmax of a class, of logits (B, num_classes). `classes` as of `logit`."""
    return Score(lambda output, chosen: _chosen(_logits(output).log_softmax(1), chosen), _numbers(classes))


def cross_entropy(classes: Classes) -> Score:
    """Minus `log_probability`."""
    return Score(lambda output, chosen: -_chosen(_logits(output).log_softmax(1), chosen), _numbers(classes))


def _numbers(classes: Classes) -> Tensor:
    numbers = torch.as_tensor(classes)
    if numbers.is_floating_point() or numbers.dtype == torch.bool or numbers.ndim > 1 or not numbers.numel():
        raise ValueError(f"classes must be a number of a class, or one for each sample, got {classes!r:.80}")
    return numbers.reshape(-1).long()


def _logits(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim != 2:
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"the score of a class takes logits (B, num_classes), and the network gives {given}")
    return output


def _chosen(output: Any, classes: Tensor) -> Tensor:
    logits = _logits(output)
    batch, count = logits.shape
    if len(classes) not in (1, batch):
        raise ValueError(f"classes are {len(classes)}, and the batch has {batch} samples: give one class, or {batch}")
    wrong = classes[(classes < 0) | (classes >= count)]
    if len(wrong):
        raise ValueError(f"class {int(wrong[0])}: the network has {count} classes, 0 to {count - 1}")
    return logits.gather(1, classes.to(logits.device).expand(batch)[:, None])[:, 0]


def extreme_classes(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The most and the least probable class (B,) of logits (B, num_classes)."""
    return _logits(logits).argmax(1), logits.argmin(1)


# --- what a task asks ------------------------------------------------------------------------------------------------


@dataclass
class Question:
    """An input of a model, and the number of the answer that is to be explained: what `Task.question` gives."""

    network: nn.Module  # what runs, in inference mode
    inputs: tuple[Tensor, ...]  # of it, a batch of one
    score: Scoring
    said: str  # what the score is, in words
    picture: np.ndarray  # the input (H, W, 3), uint8, of the size that the network sees; of a cloud the points (N, 3)
    box: tuple[float, float, float, float] | None = None  # left, top, right, bottom of what is asked, in its pixels
    loss: Scoring | None = None  # what a step of meta-saliency lowers; None for minus the score
    layer: str | None = None  # that is looked at unless told otherwise; None for the last level of the backbone
    grid: ToMap | None = None  # how what layers give becomes maps, as of `capture.look`; not used for the input
