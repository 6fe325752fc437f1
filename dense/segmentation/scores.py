"""Probabilities of what the heads of mmseg give."""

from typing import Any

from mmseg.models.decode_heads import Mask2FormerHead, MaskFormerHead
from torch import Tensor

# Their `seg_logits` are sums over queries of a probability of a class times one of a pixel: scores, no logits.
OF_MASKS: tuple[Any, ...] = (MaskFormerHead, Mask2FormerHead)


def probabilities(scores: Tensor, head: Any) -> Tensor:
    """Of `seg_logits` (C, H, W) of a sample of mmseg.

    One channel is a sigmoid already. The scores of heads of masks are divided by their sum.
    """
    if len(scores) == 1:
        return scores
    if isinstance(head, OF_MASKS):
        return scores / scores.sum(0).clamp(min=1e-12)
    return scores.softmax(0)
