"""What several dense predictors share."""

from .deformable_attention import MultiScaleDeformableAttention
from .frozen_batch_norm import FrozenBatchNorm2d
from .horfpn import HorFPN
from .local_resample import LocalResample, VisionRememberNeck
from .simple_pyramid import SimplePyramid
from .upsampled_fpn import UpsampledFPN

__all__ = [
    "FrozenBatchNorm2d",
    "HorFPN",
    "LocalResample",
    "MultiScaleDeformableAttention",
    "SimplePyramid",
    "UpsampledFPN",
    "VisionRememberNeck",
]
