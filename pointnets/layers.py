"""What at least two point networks share. Features are (..., C): channels last, so that a gather copies whole rows."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.checks import check_points


def check_input(points: Tensor, network: nn.Module) -> None:
    """Raise unless `points` is a finite (B, N, 3) tensor of the dtype of the network's weights."""
    check_points(points)
    weights = next(network.parameters()).dtype
    if points.dtype != weights:
        raise TypeError(
            f"points are {points.dtype}, but the weights of this {type(network).__name__} are {weights}: "
            "points.to(dtype) or network.to(dtype) makes them agree"
        )


def one_hot_category(points: Tensor, category: Tensor | None, num_categories: int) -> Tensor:
    """What a segmenter is told of its clouds (B, N, 3): the one-hot category (B, num_categories), from `category` (B,)
    int64. A network with `num_categories` 0 is told nothing, and takes no category."""
    if num_categories == 0 and category is None:
        return points.new_zeros(len(points), 0)
    if category is None or category.shape != points.shape[:1] or category.dtype != torch.int64:
        got = "None" if category is None else f"{category.dtype} {tuple(category.shape)}"
        raise ValueError(f"category must be int64 of shape ({len(points)},), got {got}")
    if num_categories == 0:
        raise ValueError("category must be None for a network with num_categories=0")
    return F.one_hot(category, num_categories).to(points)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalization of the last axis of a tensor of any rank."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, x.shape[-1])).view(x.shape)

    @property
    def takes_batch(self) -> bool:
        """Whether it normalizes by the statistics of the batch, not by running ones."""
        return self.training or self.running_mean is None

    @torch.no_grad()
    def track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards the mean and the biased variance (C,) of a batch of `count` rows."""
        if count < 2:
            raise ValueError(f"a batch must have more than one row to take statistics of, got {count}")
        if not (self.training and self.track_running_stats):
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        # without a momentum all batches count alike
        share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var), share)

    def fold(self, weight: Tensor, bias: Tensor, moments: "Moments | None" = None) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) of norm(weight x + bias), one affine map of x (..., D).

        `moments` are those of x, from which the statistics of the batch follow without a look at weight x; they are
        tracked. None: the running statistics.
        """
        if moments is None:
            assert self.running_mean is not None
            assert self.running_var is not None
            mean, variance = self.running_mean, self.running_var
        else:
            mean = weight @ moments.mean + bias
            variance = ((weight @ moments.covariance) * weight).sum(1).clamp_min(0)
            self.track(mean, variance, moments.rows)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return weight * scale.unsqueeze(1), self.bias + scale * (bias - mean)


class Moments(NamedTuple):
    """Mean (D,) and biased covariance (D, D) of a number of rows."""

    mean: Tensor
    covariance: Tensor
    rows: int

    @classmethod
    def of_sums(cls, first: Tensor, second: Tensor, rows: int, shift: Tensor | float = 0.0) -> "Moments":
        """From the sums of y = x - shift (B, D) and of y yᵀ (B, D, D) over each cloud's rows.

        The last sums are taken in float64; a `shift` near the mean keeps the digits of a small covariance.
        """
        mean = first.double().sum(0) / rows
        covariance = second.double().sum(0) / rows - torch.outer(mean, mean)
        return cls((mean + shift).to(first.dtype), covariance.to(second.dtype), rows)


class Head(nn.Module):
    """Linear, BN, activation, dropout for every hidden width, then linear: (..., C) -> logits (..., classes)."""

    def __init__(
        self,
        in_channels: int,
        hidden: list[int],
        num_classes: int,
        dropout: float,
        activation=F.relu,
        dropped: int | None = None,
    ):
        """`dropped`: the hidden layers, counted from the first, that dropout follows; None for all."""
        super().__init__()
        self.depth, self.activation, self.dropout = len(hidden), activation, nn.Dropout(dropout)
        self.dropped = len(hidden) if dropped is None else dropped
        self.num_classes = num_classes
        widths = [in_channels, *hidden]
        for i, (before, after) in enumerate(zip(widths, hidden), start=1):
            self.add_module(f"linear{i}", nn.Linear(before, after))
            self.add_module(f"norm{i}", BatchNorm(after))
        self.add_module(f"linear{self.depth + 1}", nn.Linear(widths[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"norm{i}")(self.get_submodule(f"linear{i}")(x))
            x = self.activation(x)
            x = self.dropout(x) if i <= self.dropped else x
        return self.get_submodule(f"linear{self.depth + 1}")(x)
