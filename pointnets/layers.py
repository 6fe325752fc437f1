"""What at least two point networks share. Features are (..., C): channels last, so that a gather copies whole rows."""

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


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of the last axis of a tensor of any rank."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, x.shape[-1])).view(x.shape)


class Head(nn.Module):
    """Linear, BN, activation, dropout for every hidden width, then linear: (..., C) -> logits (..., classes)."""

    def __init__(self, in_channels: int, hidden: list[int], num_classes: int, dropout: float, activation=F.relu):
        super().__init__()
        self.depth, self.activation, self.dropout = len(hidden), activation, nn.Dropout(dropout)
        widths = [in_channels, *hidden]
        for i, (before, after) in enumerate(zip(widths, hidden), start=1):
            self.add_module(f"linear{i}", nn.Linear(before, after))
            self.add_module(f"norm{i}", BatchNorm(after))
        self.add_module(f"linear{self.depth + 1}", nn.Linear(widths[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, self.depth + 1):
            x = self.get_submodule(f"norm{i}")(self.get_submodule(f"linear{i}")(x))
            x = self.dropout(self.activation(x))
        return self.get_submodule(f"linear{self.depth + 1}")(x)
