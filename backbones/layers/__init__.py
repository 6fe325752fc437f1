"""What at least two systems share: norms, residual blocks, channel mixers, heads, global attention."""

from .attention import Attention, heads_of
from .head import DistilledHead, Head
from .mlp import ConvGlu, ConvMlp, Linear2d, Mlp, SqueezeExcite, make_divisible
from .norm import ConvNorm, LayerNorm2d, fuse, fuse_norm
from .residual import Block, DropPath, LayerScale, Residual, depthwise, depthwise_norm

__all__ = [
    "Attention",
    "Block",
    "ConvGlu",
    "ConvMlp",
    "ConvNorm",
    "DistilledHead",
    "DropPath",
    "Head",
    "LayerNorm2d",
    "LayerScale",
    "Linear2d",
    "Mlp",
    "Residual",
    "SqueezeExcite",
    "depthwise",
    "depthwise_norm",
    "fuse",
    "fuse_norm",
    "heads_of",
    "make_divisible",
]
