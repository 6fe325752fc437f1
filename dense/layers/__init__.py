"""What several dense predictors share."""

from .upsampled_fpn import UpsampledFPN

__all__ = ["UpsampledFPN"]
