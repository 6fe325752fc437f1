"""Token-aware pooling (TAP): learned local averages of a map, which an attention reads in place of the pixels.

"Robustifying Token Attention for Vision Transformers", ICCV 2023, arXiv 2303.11126;
https://github.com/guoyongcs/TAPADL (MIT).

Every pixel of x (B, C, H, W) mixes K averages of its surroundings, by weights of its own:

    w = softmax over K of conv3x3(BN(conv3x3(x))) / temperature      (B, K, H, W)
    out = w_0 x + sum over i = 1 .. K - 1 of w_i average_i(x)

average_i is the mean of the nine taps of a 3x3 window with dilation i. Beyond the border there are zeros, which count:
it always divides by nine. Maps may have any height and width. With K = 1 it is the identity.

An average is a depth-wise convolution with one constant kernel. Its kernel is symmetric, so the backward pass is the
same average: nothing but x and w is kept for it, and no map of 9C channels is made.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...kernels.checks import check_number
from ..layers import ConvNorm
from ..layers.plugins import register_plugin
from ..skeletons.options import check_whole


def dilated_average(x: Tensor, dilation: int) -> Tensor:
    """The mean of the nine taps of a 3x3 window of a map (B, C, H, W), at this dilation. Zeros beyond the border
    count."""
    channels = x.shape[1]
    kernel = torch.full((channels, 1, 3, 3), 1 / 9, dtype=x.dtype, device=x.device)
    return F.conv2d(x, kernel, padding=dilation, dilation=dilation, groups=channels)


def mix_averages(x: Tensor, weights: Tensor) -> Tensor:
    """w_0 x + sum of w_i average_i(x), see above.

    Args:
        x: map (B, C, H, W).
        weights: (B, K, H, W), of the pixel itself and of the averages at dilations 1 to K - 1.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad) and not torch.compiler.is_compiling():
        return _MixAverages.apply(x, weights)
    return _mixed(x, weights)


def _mixed(x: Tensor, weights: Tensor) -> Tensor:
    out = x * weights[:, :1]
    for i in range(1, weights.shape[1]):
        out = torch.addcmul(out, dilated_average(x, i), weights[:, i : i + 1])
    return out


class _MixAverages(torch.autograd.Function):
    """`mix_averages`, without the averages kept for the backward pass, which makes them again."""

    @staticmethod
    def forward(ctx, x: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights)
        return _mixed(x, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weights = ctx.saved_tensors
        grad_x, grad_weights = grad * weights[:, :1], torch.empty_like(weights)
        grad_weights[:, 0] = (grad * x).sum(1)
        for i in range(1, weights.shape[1]):
            grad_weights[:, i] = (grad * dilated_average(x, i)).sum(1)
            grad_x += dilated_average(grad * weights[:, i : i + 1], i)
        return grad_x, grad_weights


@register_plugin
class TAP(nn.Module):
    """Token-aware pooling, see above. As a plug-in of a network it stands before the norm of every mixer, on its branch
    alone: `plugins=dict(type="TAP", num_scales=4)`.

    Args:
        dim: channels C.
        num_scales: number K of averages, the pixel itself among them.
        temperature: number that divides the logits of the weights.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. It has 9 C K + 9 K² + 2 K parameters and costs 9 C K + 9 K² multiply-adds
    a pixel, and 9 C (K - 1) of the averages. With one scale the parameters exist, as in the authors' files, and change
    nothing.
    """

    map_kind = "kernel"
    place = "before"  # of a block (see `plug`)
    checkpoint_rules = [
        (r"^(dilation_predictor\.)?proj\.0\.", r"predict.conv."),
        (r"^(dilation_predictor\.)?proj\.1\.", r"predict.norm."),
        (r"^(dilation_predictor\.)?proj\.2\.", r"mix."),
    ]

    def __init__(self, dim: int, num_scales: int = 4, temperature: float = 1.0):
        super().__init__()
        check_whole("TAP.num_scales", [num_scales])
        check_number(temperature, "TAP.temperature", positive=True)
        self.num_scales, self.temperature = num_scales, temperature
        self.predict = ConvNorm(dim, num_scales, 3)
        self.mix = nn.Conv2d(num_scales, num_scales, 3, padding=1, bias=False)

    def weights(self, x: Tensor) -> Tensor:
        """How much every pixel takes of each average: (B, K, H, W), sums of 1 over K, in the dtype of x."""
        return (self.mix(self.predict(x)) / self.temperature).softmax(1).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.num_scales == 1 and not self.training:  # in training, the parameters get gradients of zero
            return x
        return mix_averages(x, self.weights(x))

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How much the pixel (row, column) `place` takes of every pixel: (B, 1, H, W). The sum is 1 less what goes
        beyond the border."""
        at = torch.zeros_like(x[:, :1])
        at[:, :, place[0], place[1]] = 1
        own = self.weights(x)[:, :, place[0], place[1], None, None].expand(-1, -1, *x.shape[-2:])
        return _mixed(at, own)

    def extra_repr(self) -> str:
        return f"num_scales={self.num_scales}, temperature={self.temperature}"
