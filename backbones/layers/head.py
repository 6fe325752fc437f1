"""The head of a classifier: a map becomes a vector, a vector becomes logits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Blocks
from .position import Tokens


class Head(nn.Module):
    """fc(after(mean over the pixels of before(x))): x (B, C, H, W) -> logits (B, classes).

    Args:
        dim: width of the vector.
        num_classes: number of classes; 0 for the vector itself.
        before: module on the map, or None.
        after: module on the vector (B, dim), or None.
        auxiliary: second head, for training, or None. It reads what the network noted as "auxiliary"; `forward` then
            gives a pair, its logits behind the others.

    `forward(x, pre_logits, notes)`: `pre_logits` for the vector; `notes` are what the network noted on its way (see
    `Backbone.levels`).
    """

    pooling = "avg"  # timm's name for how the vector comes from the map: "avg" or "token"

    def __init__(
        self,
        dim: int,
        num_classes: int,
        before: nn.Module | None = None,
        after: nn.Module | None = None,
        auxiliary: "Head | None" = None,
    ):
        super().__init__()
        self.before = before or nn.Identity()
        self.after = after or nn.Identity()
        self.fc: nn.Module
        self.dim = dim
        self.reset(num_classes)
        self.auxiliary = auxiliary

    @property
    def final_layers(self) -> list[str]:
        """Names of the layers that make logits: of its own, and of the heads inside it."""
        inside = [(name, part) for name, part in self.named_children() if isinstance(part, Head)]
        return ["fc", *(f"{name}.{layer}" for name, part in inside for layer in part.final_layers)]

    def reset(self, num_classes: int) -> None:
        """New final layers, for another number of classes."""
        self.num_classes = num_classes
        self.fc = nn.Identity()
        if num_classes:
            self.fc = fc = nn.Linear(self.dim, num_classes)
            nn.init.trunc_normal_(fc.weight, std=0.02)
            nn.init.zeros_(fc.bias)
        for part in self.children():
            if isinstance(part, Head):
                part.reset(num_classes)

    def vector(self, x: Tensor) -> Tensor:
        """What the last layer reads: (B, dim)."""
        return self.after(self.before(x).mean((2, 3)))

    def forward(self, x: Tensor, pre_logits: bool = False, notes: Mapping[str, Any] | None = None):
        x = self.vector(x)
        if pre_logits:
            return x
        logits = self.fc(x)
        if self.auxiliary is None or not (self.training and self.num_classes and notes):
            return logits
        return logits, self.auxiliary(notes["auxiliary"])

    @torch.no_grad()
    def fused(self) -> "Head":
        """The same with a batch norm `after` inside the last layer, and without the auxiliary head; `pre_logits` is
        then what that norm would read. A norm `before` the mean stays: FFNet's authors count it in the fused network,
        too."""
        norm, fc, self.auxiliary = self.after, self.fc, None
        if isinstance(norm, nn.BatchNorm1d) and isinstance(fc, nn.Linear):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            fc.bias.add_(fc.weight @ (norm.bias - norm.running_mean * scale))
            fc.weight.mul_(scale)
            self.after = nn.Identity()
        return self


class ClassHead(Head):
    """A head whose class token reads the map through blocks of class attention: fc(after(token)).

    Args:
        dim, num_classes, after, auxiliary: as of `Head`; `dim` is the width of the map, too.
        blocks: modules (x (B, C, H, W), tokens (B, 1, C)) -> tokens, such as `ClassBlock`.

    Source: CaiT, arXiv 2103.17239.
    """

    pooling = "token"

    def __init__(
        self,
        dim: int,
        num_classes: int,
        blocks: Sequence[nn.Module],
        after: nn.Module | None = None,
        auxiliary: Head | None = None,
    ):
        super().__init__(dim, num_classes, after=after, auxiliary=auxiliary)
        self.cls_token = Tokens(1, dim)
        self.blocks = Blocks(blocks)

    def vector(self, x: Tensor) -> Tensor:
        token = self.cls_token(x.shape[0])
        for block in self.blocks:
            token = self.blocks.run(block, x, token)
        return self.after(token[:, 0])


class DistilledHead(Head):
    """Two heads that share nothing; their logits are averaged, in training as in inference.

    The authors train the second one with a teacher. There is none here: hard distillation is not offered, and both
    heads learn from the labels by their mean. The class is for the published weights.

    Args:
        dim, num_classes: as of `Head`, for both.
        after: function dim -> module on the vector (B, dim).

    Source: DeiT, arXiv 2012.12877, and LeViT, arXiv 2104.01136.
    """

    def __init__(self, dim: int, num_classes: int, after: Callable[[int], nn.Module]):
        super().__init__(dim, num_classes, after=after(dim))
        self.distilled = Head(dim, num_classes, after=after(dim))

    def forward(self, x: Tensor, pre_logits: bool = False, notes: Mapping[str, Any] | None = None) -> Tensor:
        return torch.lerp(super().forward(x, pre_logits), self.distilled(x, pre_logits), 0.5)


# `fixed_sizes` of networks with a PooledHead
FIXED_BY_POOLING = {
    ".onnx": dict.fromkeys(("height", "width"), "ONNX has no average pooling from a free size to a given one")
}


class PooledHead(Head):
    """The head of AlexNet and VGG: fc(act(fc2(act(fc1(pixels of a map of fixed size))))), act = ReLU.

    Args:
        in_dim: channels of the map.
        dim: width of both hidden layers.
        side: height and width that adaptive average pooling brings the map to.
        num_classes: as of `Head`.
        dropout: rate of dropout.
        first: whether dropout stands before both hidden layers, or behind them.
    """

    def __init__(self, in_dim: int, dim: int, side: int, num_classes: int, dropout: float, first: bool):
        super().__init__(dim, num_classes)
        self.side, self.first = side, first
        self.fc1, self.fc2 = nn.Linear(in_dim * side**2, dim), nn.Linear(dim, dim)
        self.activation, self.dropout = nn.ReLU(inplace=True), nn.Dropout(dropout)

    def vector(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, self.side).flatten(1)
        for layer in (self.fc1, self.fc2):
            x = self.activation(layer(self.dropout(x) if self.first else x))
            if not self.first:
                x = self.dropout(x)
        return x
