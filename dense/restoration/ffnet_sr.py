"""FFNet-SR: super-resolution by FFNified attention, convolutions of few taps alone.

"MetaMixer Is All You Need", arXiv 2406.02021; https://github.com/ysj9909/FFNet (Apache-2.0), whose weights load.

    f = blocks(conv(x));    y = pixel_shuffle(conv(f) + x repeated r² times per channel)

so that the blocks add to nearest-neighbor interpolation by the factor r. A block is x + attention(x), then x + mlp(x),
without norms in the released networks. The paper's classifier has kernels of 7 taps with a branch of 3, each with a
batch norm, merged for inference: `kernel_sizes=(7, 7)` has them here, and `fuse` merges them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...backbones.layers import Blocks, DepthwiseMlp, FFNifiedAttention, LayerNorm2d
from ...checkpoint import Rules
from ...registry import MODELS
from .network import RestorationNetwork, check_whole, ratio_of, shape_of

NORMS = ("layer", "batch", None)


class FFNetSRBlock(nn.Module):
    """x + attention(x); x + mlp(x). A layer norm stands before each; a batch norm behind its first convolution."""

    def __init__(self, dim: int, mlp_ratio: float, kernel_sizes: Sequence[int], norm: str | None):
        super().__init__()
        self.norm1, self.norm2 = (LayerNorm2d(dim) if norm == "layer" else nn.Identity() for _ in range(2))
        self.token_mixer = FFNifiedAttention(dim, kernel_sizes, norm=norm == "batch")
        self.channel_mixer = DepthwiseMlp(dim, mlp_ratio, 3, norm=norm == "batch")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixer(self.norm1(x))
        return x + self.channel_mixer(self.norm2(x))


@MODELS.register_module()
class FFNetSR(RestorationNetwork):
    """See above.

    Args:
        scale: factor r of both sides; 2, 3 and 4 are published.
        in_channels: channels of the image.
        dim: width of the blocks.
        depth: number of blocks.
        mlp_ratio: hidden width of a block's second half over `dim`.
        kernel_sizes: taps along an axis of the two depth-wise kernels of the attention, odd.
        norm: "layer", "batch" or None.

    `forward(x (B, C, H, W)) -> (B, C, r H, r W)`, any H, W >= 1.

    Raises:
        ValueError: an option that is none of these.
    """

    checkpoint_rules: Rules = [
        (r"\.token_mixer\.0\.", ".token_mixer.query."),
        (r"\.token_mixer\.1\.", ".token_mixer.key."),
        (r"\.token_mixer\.3\.", ".token_mixer.value."),
        (r"\.channel_mixer\.0\.", ".channel_mixer.conv."),
        (r"\.channel_mixer\.1\.", ".channel_mixer.fc1."),
        (r"\.channel_mixer\.3\.", ".channel_mixer.fc2."),
    ]

    def __init__(
        self,
        scale: int = 2,
        in_channels: int = 3,
        dim: int = 96,
        depth: int = 36,
        mlp_ratio: float = 2.0,
        kernel_sizes: Sequence[int] = (3, 3),
        norm: str | None = None,
    ):
        super().__init__()
        check_whole("FFNetSR", scale=scale, in_channels=in_channels, dim=dim, depth=depth)
        if norm not in NORMS:
            raise ValueError(f"FFNetSR: norm={norm!r} must be one of {', '.join(map(repr, NORMS))}")
        self.scale, self.in_channels = scale, in_channels
        self.proj = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.body = Blocks(FFNetSRBlock(dim, mlp_ratio, kernel_sizes, norm) for _ in range(depth))
        self.conv_bef_up = nn.Conv2d(dim, in_channels * scale**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        nearest = x.repeat_interleave(self.scale**2, 1)
        return F.pixel_shuffle(self.conv_bef_up(self.body(self.proj(x))) + nearest, self.scale)

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """As the base's. Networks of 3 taps without norms are known, as released."""
        dim, channels = shape_of(state, "proj.weight", "FFNetSR")[:2]
        rows = shape_of(state, "conv_bef_up.weight", "FFNetSR")[0]
        query, fc1 = ("query", "fc1") if "body.0.channel_mixer.fc1.bias" in state else ("0", "1")
        shape_of(state, f"body.0.token_mixer.{query}.bias", "FFNetSR with kernels of 3 taps and without norms")
        hidden = shape_of(state, f"body.0.channel_mixer.{fc1}.weight", "FFNetSR")[0]
        depth = len({name.split(".")[1] for name in state if name.startswith("body.")})
        scale = round((rows / channels) ** 0.5)
        return dict(scale=scale, in_channels=channels, dim=dim, depth=depth, mlp_ratio=ratio_of(hidden, dim))


# Options and numbers of parameters, which are counted.
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    f"ffnet_sr{suffix}_x{scale}": (dict(scale=scale, depth=depth), count)
    for suffix, depth, counts in (
        ("_light", 36, (1_789_452, 1_802_427, 1_820_592)),
        ("", 48, (2_381_580, 2_394_555, 2_412_720)),
    )
    for scale, count in zip((2, 3, 4), counts)
}
