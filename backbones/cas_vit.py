"""CAS-ViT: convolutions and gates in the form of attention, for phones.

"CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient Mobile Applications", arXiv
2408.03703; https://github.com/Tianfang-Zhang/CAS-ViT (MIT), whose weights load.

The additive token mixer has queries, keys and values, and no similarity of two pixels:

    q, k, v = W x
    Φ(t) = t' · σ(W mean(t')),  t' = t · σ(w relu(BN(DW(t))))     # of its own for q and k
    out = DW(DW(Φ(q) + Φ(k)) · v)

DW is a depth-wise 3x3 convolution; t' has a gate for each pixel, Φ one for each channel. What mixes globally is the
mean over all pixels in the gate of the channels, and nothing else: without that gate a pixel sees three others in each
direction. The cost is linear in the pixels.

Paper and code: the paper calls it self-attention with an additive similarity. The code, which is followed here, is as
above. The classifiers were counted with two heads. The released training builds one: a file of it gives its last layer
to both of ours, or to the one of `distilled=False`. The paper's second column of accuracies is of a fine-tuning,
probably at 384 pixels; it is not listed here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from ..registry import MIXERS
from .layers import Block, ConvNorm, Head, Mlp, Pointwise, depthwise
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------


class PixelGate(nn.Module):
    """x times a gate for each pixel, which sees 3x3 pixels: x (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.dw = ConvNorm(dim, dim, 3, groups=dim, bias=True)
        self.fc = Pointwise(dim, 1, bias=False)

    def gate(self, x: Tensor) -> Tensor:
        """(B, 1, H, W), in (0, 1)."""
        return torch.sigmoid(self.fc(F.relu(self.dw(x), inplace=True)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class MeanGate(nn.Module):
    """x times a gate for each channel, which sees the mean of all pixels: x (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc = Pointwise(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))


@MIXERS.register_module()
class AdditiveTokenMixer(nn.Module):
    """Convolutional additive token mixer, see above.

    A product of maps leaves the range of float16 where its factors do not. In float16 the product and the convolution
    behind it run in float32, and what still leaves the range becomes the largest number of it, not infinity.

    Args:
        dim: channels C.
        qkv_bias: whether queries, keys and values have a bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    map_kind = "gate"  # what a map of `attention_maps` belongs to

    def __init__(self, dim: int, qkv_bias: bool = False):
        super().__init__()
        self.qkv = Pointwise(dim, 3 * dim, bias=qkv_bias)
        self.gates_q = nn.Sequential(PixelGate(dim), MeanGate(dim))
        self.gates_k = nn.Sequential(PixelGate(dim), MeanGate(dim))
        self.dwc, self.proj = depthwise(dim, 3), depthwise(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=1)
        context = self.dwc(self.gates_q(q) + self.gates_k(k))
        if v.dtype != torch.float16:
            return self.proj(context * v)
        conv, largest = self.proj, torch.finfo(v.dtype).max
        with torch.autocast(v.device.type, enabled=False):
            bias = None if conv.bias is None else conv.bias.float()
            out = F.conv2d(context.float() * v.float(), conv.weight.float(), bias, padding=1, groups=conv.groups)
        return out.clamp(-largest, largest).to(v.dtype)

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """The gates of the pixels of queries and keys, whatever the place: (B, 2, H, W), in (0, 1)."""
        q, k, _ = self.qkv(x).chunk(3, dim=1)
        gates: Any = (self.gates_q[0], q), (self.gates_k[0], k)
        return torch.cat([part.gate(y) for part, y in gates], dim=1)


# --- network ---------------------------------------------------------------------------------------------------------


def local_integration(dim: int) -> nn.Sequential:
    """What a block adds first, without a norm in front."""
    return nn.Sequential(ConvNorm(dim, dim, bias=True), depthwise(dim, 3), nn.GELU(), Pointwise(dim, dim))


class CASBlock(Block):
    """x + local_integration(x); x + mixer(BN(x)); x + mlp(BN(x)). Fusing puts the norms into the layers behind them."""

    def __init__(self, dim: int, mixer: AdditiveTokenMixer, mlp_ratio: float, drop_path: float):
        super().__init__(
            dim, mixer, Mlp(dim, mlp_ratio), drop_path, position=local_integration(dim), norm=nn.BatchNorm2d
        )

    @torch.no_grad()
    def fused(self) -> "CASBlock":
        pairs: Any = (self.norm1, self.mixer.qkv), (self.norm2, self.mlp.fc1)
        for norm, layer in pairs:
            if isinstance(norm, nn.Identity):  # of a block that is fused
                continue
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            shift = layer.weight.flatten(1) @ (norm.bias - norm.running_mean * scale)
            layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias + shift)
            layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 2)))
        self.norm1, self.norm2 = nn.Identity(), nn.Identity()
        return self


def share_one_layer(head: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Both last layers take that of a state dict with one; the mean of their logits is what it gives."""
    for part in ("weight", "bias"):
        one, second = f"{prefix}fc.{part}", f"{prefix}distilled.fc.{part}"
        if one in state and second not in state:
            state[second] = state[one]
            print_log(f"{second}: the weights have one last layer, which both take", logger="current")


def refuse_second_layer(head: Head, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """One last layer alone would not give the logits of a state dict with two."""
    if head.num_classes and f"{prefix}fc.weight" in state and f"{prefix}distilled.fc.weight" in state:
        raise ValueError(
            f"the weights have two last layers at {prefix.rstrip('.')}: build the network with distilled=True"
        )


class TwoHeads(Head):
    """Two last layers behind one norm; their logits are averaged, in training as in inference (the authors' code keeps
    them apart in training, for a teacher). Weights with one last layer give it to both.

    Args:
        dim, num_classes: as of `Head`, for both.
    """

    def __init__(self, dim: int, num_classes: int):
        super().__init__(dim, num_classes, before=nn.BatchNorm2d(dim))
        self.distilled = Head(dim, num_classes)
        self.register_load_state_dict_pre_hook(share_one_layer)

    def forward(self, x: Tensor, pre_logits: bool = False, notes=None) -> Tensor:
        x = self.vector(x)
        return x if pre_logits else torch.lerp(self.fc(x), self.distilled.fc(x), 0.5)


class CASViT(Pyramid):
    """CAS-ViT: additive token mixers in all four stages, and batch norms throughout, those of the outputs too.

    Args:
        dims, depths, mlp_ratio, drop_path_rate, **common: as of `Pyramid`.
        qkv_bias: as of `AdditiveTokenMixer`.
        distilled: whether the classifier has a second last layer (see `TwoHeads`), as the published numbers of
            parameters count it. Weights of two are an error without it.
    """

    unused = ("layer_scale",)
    trunc_normal = ()  # all layers but the last keep PyTorch's initial weights

    def __init__(
        self, dims=(48, 56, 112, 220), depths=(2, 2, 4, 2), qkv_bias: bool = False, distilled: bool = True, **common
    ):
        self.qkv_bias, self.distilled = qkv_bias, distilled
        super().__init__(dims, depths, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(
            ConvNorm(in_channels, dim // 2, 3, stride=2, bias=True),
            nn.ReLU(inplace=True),
            ConvNorm(dim // 2, dim, 3, stride=self.strides[0] // 2, bias=True),
            nn.ReLU(inplace=True),
        )

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return ConvNorm(in_dim, dim, 3, stride=self.ratios[stage], bias=True)

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        return CASBlock(dim, AdditiveTokenMixer(dim, self.qkv_bias), self.mlp_ratio[stage], drop_path)

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return nn.BatchNorm2d(dim)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        if self.distilled:
            return TwoHeads(dim, num_classes)
        head = Head(dim, num_classes, before=nn.BatchNorm2d(dim))
        head.register_load_state_dict_pre_hook(refuse_second_layer)
        return head


_deep = dict(depths=(3, 3, 6, 3))

VARIANTS = {
    "cas_vit_xs": Variant(dict(), 3_200_700, None, 78.3, drop_path=0.1),
    "cas_vit_s": Variant(_deep | dict(dims=(48, 64, 128, 256)), 5_764_224, None, 80.9, drop_path=0.1),
    "cas_vit_m": Variant(_deep | dict(dims=(64, 96, 192, 384)), 12_421_520, None, 82.8, drop_path=0.1),
    "cas_vit_t": Variant(_deep | dict(dims=(96, 128, 256, 512)), 21_763_120, None, 83.9, drop_path=0.1),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

RULES: Rules = [
    (r"^patch_embed\.([03])\.", lambda m: f"stem.{int(m[1]) // 3 * 2}.conv."),
    (r"^patch_embed\.([14])\.", lambda m: f"stem.{int(m[1]) // 4 * 2}.norm."),
    (r"^network\.([0246])\.(\d+)\.", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}."),
    (r"^network\.([135])\.proj\.", lambda m: f"stages.{int(m[1]) // 2 + 1}.downsample.conv."),
    (r"^network\.([135])\.norm\.", lambda m: f"stages.{int(m[1]) // 2 + 1}.downsample.norm."),
    (r"\.local_perception\.network\.0\.", r".position.0.conv."),
    (r"\.local_perception\.network\.1\.", r".position.0.norm."),
    (r"\.local_perception\.network\.2\.", r".position.1."),
    (r"\.local_perception\.network\.4\.", r".position.3."),
    (r"\.attn\.", r".mixer."),
    (r"\boper_([qk])\.0\.block\.0\.", r"gates_\1.0.dw.conv."),
    (r"\boper_([qk])\.0\.block\.1\.", r"gates_\1.0.dw.norm."),
    (r"\boper_([qk])\.0\.block\.3\.", r"gates_\1.0.fc."),
    (r"\boper_([qk])\.1\.block\.1\.", r"gates_\1.1.fc."),
    (r"^norm([0246])\.", lambda m: f"norms.{int(m[1]) // 2}."),
    (r"^norm\.", r"head.before."),
    (r"^dist_head\.", r"head.distilled.fc."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

register(CASViT, VARIANTS, RULES)
