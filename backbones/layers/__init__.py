"""What at least two systems share: norms, residual blocks, channel mixers, heads, global attention, positions."""

from .attention import Attention, ClassAttention, as_rows, heads_of
from .blocks import Blocks, averages, plug
from .boxes import cut_box, kept_share, swap_box
from .diversification import Diversified, diversification_loss, diversify, mean_loss, noted
from .ffnified import DepthwiseMlp, FFNifiedAttention, RepDepthwise
from .fourier import from_spectrum, to_spectrum
from .head import ClassHead, DistilledHead, Head, PooledHead
from .linear import Linear, Pointwise, linear
from .mlp import ConvGlu, ConvMlp, Linear2d, Mlp, QuickGelu, SqueezeExcite, SwiGlu, make_divisible
from .norm import ByChannels, ConvNorm, LayerNorm2d, fuse, fuse_norm, normal_by_fan_out
from .patches import Patches, any_free, conv_stem, fill, relu_convs
from .position import ClassPositionTable, PositionTable, Tokens
from .pruning import Pruned, best, keep_pixels, prune, put_back
from .residual import (
    BasicBlock,
    Block,
    ClassBlock,
    DropPath,
    DualBlock,
    LayerScale,
    LocalBlock,
    Residual,
    depthwise,
    depthwise_norm,
)
from .windows import (
    ChannelAttention,
    HybridAttention,
    OverlappingAttention,
    SpatialWindowAttention,
    WindowAttention,
    pair_bias,
)

__all__ = [
    "Attention",
    "BasicBlock",
    "Block",
    "Blocks",
    "ByChannels",
    "ChannelAttention",
    "ClassAttention",
    "ClassBlock",
    "ClassHead",
    "ClassPositionTable",
    "ConvGlu",
    "ConvMlp",
    "ConvNorm",
    "DepthwiseMlp",
    "DistilledHead",
    "Diversified",
    "DropPath",
    "DualBlock",
    "FFNifiedAttention",
    "Head",
    "HybridAttention",
    "LayerNorm2d",
    "LayerScale",
    "Linear",
    "Linear2d",
    "LocalBlock",
    "Mlp",
    "OverlappingAttention",
    "Patches",
    "Pointwise",
    "PooledHead",
    "PositionTable",
    "Pruned",
    "QuickGelu",
    "RepDepthwise",
    "Residual",
    "SpatialWindowAttention",
    "SqueezeExcite",
    "SwiGlu",
    "Tokens",
    "WindowAttention",
    "any_free",
    "as_rows",
    "averages",
    "best",
    "conv_stem",
    "cut_box",
    "depthwise",
    "depthwise_norm",
    "diversification_loss",
    "diversify",
    "fill",
    "from_spectrum",
    "fuse",
    "fuse_norm",
    "heads_of",
    "keep_pixels",
    "kept_share",
    "linear",
    "make_divisible",
    "mean_loss",
    "normal_by_fan_out",
    "noted",
    "pair_bias",
    "plug",
    "prune",
    "put_back",
    "relu_convs",
    "swap_box",
    "to_spectrum",
]
