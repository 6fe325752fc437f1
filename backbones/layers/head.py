"""The head of a classifier: a map becomes a vector, a vector becomes logits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """fc(after(mean over the pixels of before(x))): x (B, C, H, W) -> logits (B, classes).

    Args:
        dim: width of the vector.
        num_classes: 0 for the vector itself.
        before: module on the map, or None.
        after: module on the vector (B, dim), or None.
    """

    def __init__(self, dim: int, num_classes: int, before: nn.Module | None = None, after: nn.Module | None = None):
        super().__init__()
        self.before = before or nn.Identity()
        self.after = after or nn.Identity()
        self.fc: nn.Module
        self.dim = dim
        self.reset(num_classes)

    def reset(self, num_classes: int) -> None:
        """A new last layer."""
        self.fc = nn.Identity()
        if num_classes:
            self.fc = fc = nn.Linear(self.dim, num_classes)
            nn.init.trunc_normal_(fc.weight, std=0.02)
            nn.init.zeros_(fc.bias)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.after(self.before(x).mean((2, 3)))
        return x if pre_logits else self.fc(x)

    @torch.no_grad()
    def fused(self) -> "Head":
        """The same with a batch norm `after` inside the last layer; `pre_logits` is then what that norm would read."""
        norm, fc = self.after, self.fc
        if isinstance(norm, nn.BatchNorm1d) and isinstance(fc, nn.Linear):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            fc.bias.add_(fc.weight @ (norm.bias - norm.running_mean * scale))
            fc.weight.mul_(scale)
            self.after = nn.Identity()
        return self


class DistilledHead(Head):
    """Two heads that share nothing; their logits are averaged, in training as in inference.

    The authors train the second one with a teacher. There is none here: hard distillation is not offered, and both
    heads learn from the labels by their mean. The class is for the published weights.

    Args:
        dim, num_classes: of both.
        after: dim -> module on the vector (B, dim).

    Source: DeiT, arXiv 2012.12877, and LeViT, arXiv 2104.01136.
    """

    def __init__(self, dim: int, num_classes: int, after: Callable[[int], nn.Module]):
        super().__init__(dim, num_classes, after=after(dim))
        self.distilled = Head(dim, num_classes, after=after(dim))

    def reset(self, num_classes: int) -> None:
        super().reset(num_classes)
        if hasattr(self, "distilled"):  # the base class calls this before there is one
            self.distilled.reset(num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return torch.lerp(super().forward(x, pre_logits), self.distilled(x, pre_logits), 0.5)
