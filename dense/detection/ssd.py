"""mmdet's SSD (Liu et al., arXiv 1512.02325), which predicts.

The head of the maintained fork trains only: decoding asks its classification loss for classes of its own, and an SSD
head, which computes its loss without a module, has none.
"""

from mmdet.models.dense_heads import SSDHead

from ...registry import MODELS


@MODELS.register_module()
class PredictingSSDHead(SSDHead):
    """`SSDHead` of mmdet, with its options. Scores are the softmax over all classes and the background, the last."""

    loss_cls = None
