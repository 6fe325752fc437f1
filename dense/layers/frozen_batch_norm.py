"""Batch normalization whose statistics and affine map are constants, as detectors fine-tune ImageNet's networks."""

import torch
from torch import Tensor, nn

from ...registry import MODELS


@MODELS.register_module()
class FrozenBatchNorm2d(nn.Module):
    """A fixed affine map of every channel: `norm_cfg=dict(type="attlas.FrozenBatchNorm2d")` of a ResNet of mmdet.

    It computes what `dict(type="BN", requires_grad=False)` with `norm_eval=True` does, and has buffers in place of
    parameters: an optimizer and a count of parameters do not see them. The names are those of batch normalization, so
    that any checkpoint fits.

    Args:
        num_features: number of channels.
        eps: number added to the variance.
    """

    _abbr_ = "bn"  # what mmcv names the layer
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"
