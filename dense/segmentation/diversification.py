"""Segmentors whose training adds the attention diversification loss of their backbone.

"Robustifying Token Attention for Vision Transformers", ICCV 2023, arXiv 2303.11126;
https://github.com/guoyongcs/TAPADL (MIT), whose segmentor of FAN does so.
"""

import math

from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from ...backbones.layers import diversify, mean_loss, noted
from ...registry import MODELS


@MODELS.register_module()
class DiversifiedSegmentor(EncoderDecoder):
    """mmseg's segmentor, with the attention diversification loss of the attentions of its backbone (see
    attlas/backbones/layers/diversification.py) as `loss_ad`.

    Args:
        diversification: weight of the loss; 0 for none.
        diversification_threshold: least attention that counts, in units of 1 / pixels.
        **options: as of `EncoderDecoder`.

    Raises:
        ValueError: the weight or the threshold is no number of at least 0, or the backbone has no attention that says
            its loss.
    """

    def __init__(self, *args, diversification: float = 1.0, diversification_threshold: float = 2.0, **options):
        if not isinstance(diversification, (int, float)) or not 0 <= diversification < math.inf:
            raise ValueError(
                f"DiversifiedSegmentor.diversification must be a number of at least 0, got {diversification!r}"
            )
        super().__init__(*args, **options)
        self.diversification = diversification
        if diversification:
            diversify(self.backbone, diversification_threshold)

    def loss(self, inputs: Tensor, data_samples: list) -> dict:
        """The losses of `EncoderDecoder`, and `loss_ad`."""
        with noted(self.backbone) as alike:
            found = super().loss(inputs, data_samples)
        return found | dict(loss_ad=self.diversification * mean_loss(alike)) if self.diversification else found
