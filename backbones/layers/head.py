"""The head of a classifier: a map becomes a vector, a vector becomes logits."""

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
        """A new last layer, on the device and in the dtype of the old one."""
        old = getattr(self, "fc", None)
        like = {} if not isinstance(old, nn.Linear) else dict(device=old.weight.device, dtype=old.weight.dtype)
        self.fc = nn.Linear(self.dim, num_classes, **like) if num_classes else nn.Identity()
        if num_classes:
            nn.init.trunc_normal_(self.fc.weight, std=0.02)
            nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.after(self.before(x).mean((2, 3)))
        return x if pre_logits else self.fc(x)


class DistilledHead(nn.Module):
    """Two heads, one of which learnt from a teacher; their logits are averaged.

    The heads may be `Head`s that share nothing, as in LeViT-like networks. Source: DeiT, arXiv 2012.12877.
    """

    def __init__(self, head: Head, distilled: Head):
        super().__init__()
        self.head, self.distilled = head, distilled

    @property
    def fc(self) -> nn.Module:
        return self.head.fc

    def reset(self, num_classes: int) -> None:
        self.head.reset(num_classes)
        self.distilled.reset(num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return torch.lerp(self.head(x, pre_logits), self.distilled(x, pre_logits), 0.5)
