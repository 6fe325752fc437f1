"""RAVLT: a network of rank-augmented linear attention (RALA).

"Breaking the Low-Rank Dilemma of Linear Attention", CVPR 2025, arXiv 2411.07635; https://github.com/qhfan/RALA (no
licence file; the model card of the weights says MIT), whose weights load.

For each head, with queries and keys φ(x) = ELU(x) + 1, and R the rotation by the place of a pixel (RoPE):

    p_j = softmax_j(mean_i(q_i) · k_j / √d)                       # how much a key matters to the image; α_j = N p_j
    y_i = Σ_j (R q_i · R k_j) p_j v_j / (q_i · Σ_j p_j k_j + 1e-6)
    out = proj((y + depth-wise 5x5(v)) · o)                       # o, the gate, is a projection of x as q, k, v are

Both sums are taken over j first, so time and memory are linear in the number of pixels. The reference has α and divides
by N, which is the same; p needs no N, and so no care for the range of float16.

The title says linear, but the published networks use softmax attention in their last two stages (the authors confirm
it), with the same projections, rotation and gate: `RALASoftmax` here. The paper's output equation leaves the
denominator out, the code has it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.dispatch import without_autocast
from ..registry import MIXERS
from .layers import Block, ConvNorm, Head, Linear2d, Mlp, conv_stem, depthwise, heads_of
from .skeletons.options import per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------


def rotate(x: Tensor) -> Tensor:
    """Turn the channels of each pixel by its place: x (B, heads, H, W, d), d divisible by 4.

    The pairs (2m, 2m + 1) of the first half turn by row · f_m, those of the second by column · f_m, where f falls from
    1 to 1e-4. The result is in float32 at least. Source: RoFormer, arXiv 2104.09864, on two axes.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    height, width, dim = x.shape[-3:]
    frequency = 10000 ** -torch.linspace(0, 1, dim // 4, device=x.device, dtype=x.dtype)
    rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None, None] * frequency
    columns = torch.arange(width, device=x.device, dtype=x.dtype)[:, None] * frequency
    angle = torch.cat([rows.expand(height, width, -1), columns.expand(height, width, -1)], dim=-1)
    cos, sin = angle.cos(), angle.sin()
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def importance(q: Tensor, k: Tensor) -> Tensor:
    """p: how much each key matters to the mean query, (B, heads, N, 1), sums of 1. q, k are (B, heads, N, d)."""
    return (k @ q.mean(2).unsqueeze(-1) * q.shape[-1] ** -0.5).softmax(2)


@MIXERS.register_module()
class RALA(nn.Module):
    """Rank-augmented linear attention, see above.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 64 by default. C / heads must be divisible by 4.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. The features and sums of the attention are in float32 at least; those of
    `RALASoftmax` are in the dtype of the values, but for its rotation.
    """

    def __init__(self, dim: int, heads: int | None = None):
        super().__init__()
        self.heads = heads_of(type(self).__name__, dim, heads, head_dim=64, multiple=4)
        if dim // self.heads % 4:
            raise ValueError(
                f"{type(self).__name__}: dim / heads = {dim} / {self.heads} = {dim // self.heads} must be divisible by "
                "4: a head turns pairs of channels along two axes"
            )
        self.qkvo = Linear2d(dim, 4 * dim)
        self.lepe = depthwise(dim, 5)
        self.proj = Linear2d(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        """A map (B, C, H, W) of a projection as heads (B, heads, H, W, d)."""
        return x.permute(0, 2, 3, 1).unflatten(-1, (self.heads, -1)).permute(0, 3, 1, 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, value, gate = self.qkvo(x).chunk(4, dim=1)
        q, k, v = map(self._split, (q, k, value))
        y = self.attend(q, k, v).to(value.dtype)  # (B, heads, H, W, d)
        y = y.permute(0, 2, 3, 1, 4).flatten(-2).permute(0, 3, 1, 2)
        return self.proj((y + self.lepe(value)) * gate)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention alone, from the projections (B, heads, H, W, d)."""
        with without_autocast(v):
            q, turned_q, weighted_k, turned_k = self._features(q, k)
            numerator = turned_q @ (turned_k.transpose(-1, -2) @ v.flatten(2, 3).to(q.dtype))
            denominator = q @ weighted_k.sum(2).unsqueeze(-1)
            return (numerator / (denominator + 1e-6)).unflatten(2, v.shape[2:4])

    @staticmethod
    def _features(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, heads, N, d), float32 at least: φ(q) and the same turned, p φ(k) and the same turned."""
        height, width = q.shape[2:4]
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k = (F.elu(x.to(wide)).flatten(2, 3) + 1 for x in (q, k))
        k = k * importance(q, k)
        turned_q, turned_k = (rotate(x.unflatten(2, (height, width))).flatten(2, 3) for x in (q, k))
        return q, turned_q, k, turned_k

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """The weights that the pixel (row, column) `place` gives to every value, by head: (B, heads, H, W). The turned
        features make some of them negative."""
        height, width = x.shape[-2:]
        row, column = place
        q, k = (self._split(y) for y in self.qkvo(x).chunk(4, dim=1)[:2])
        q, turned_q, weighted_k, turned_k = self._features(q, k)
        i = row * width + column
        numerator = turned_k @ turned_q[:, :, i, :, None]
        denominator = (q[:, :, i] * weighted_k.sum(2)).sum(-1)[..., None, None]
        return (numerator / (denominator + 1e-6)).squeeze(-1).unflatten(-1, (height, width))


@MIXERS.register_module()
class RALASoftmax(RALA):
    """The twin of `RALA` with the same parameters: softmax(R q · R k / √d) v instead of the linear attention."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (rotate(x).flatten(2, 3).to(v.dtype) for x in (q, k))
        return F.scaled_dot_product_attention(q, k, v.flatten(2, 3)).unflatten(2, v.shape[2:4])

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, heads, H, W), sums of 1."""
        q, k = (rotate(self._split(y)) for y in self.qkvo(x).chunk(4, dim=1)[:2])
        logits = k.flatten(2, 3) @ q[:, :, place[0], place[1], :, None] * q.shape[-1] ** -0.5
        return logits.squeeze(-1).softmax(-1).unflatten(-1, x.shape[-2:])


# --- block -----------------------------------------------------------------------------------------------------------


class LocalMlp(Mlp):
    """Linear, GELU, plus a depth-wise 3x3 convolution of that, linear."""

    def __init__(self, dim: int, ratio: float):
        super().__init__(dim, ratio)
        self.dwconv = depthwise(self.fc1.out_features, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.fc1(x))
        return self.fc2(x + self.dwconv(x))


# --- network ---------------------------------------------------------------------------------------------------------

LETTERS = {"l": "RALA", "v": "RALASoftmax"}


class RAVLT(Pyramid):
    """Rank-augmented vision linear transformer.

    Args:
        dims, depths, mlp_ratio, layer_scale, drop_path_rate, **common: as of `Pyramid`.
        heads: number of attention heads; one, or one for each stage.
        flags: for each stage "l" (linear) or "v" (softmax), or one of these letters for each of its blocks, as in
            "llv"; one string, or one for each stage.
        features: width of the vector before the last layer.
    """

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (1, 2, 4, 8),
        flags: Sequence[str] = ("l", "l", "v", "v"),
        layer_scale: float | Sequence[float | None] | None = 1.0,
        mlp_ratio: float | Sequence[float] = 3.5,
        features: int = 1024,
        **common,
    ):
        self.heads, self.flags = per_stage("heads", heads, len(dims)), per_stage("flags", flags, len(dims))
        for flag, depth in zip(self.flags, depths):
            if len(flag) not in (1, depth) or not set(flag) <= LETTERS.keys():
                raise ValueError(f"flags={tuple(flags)}: {depth} blocks take 'l' or 'v', or {depth} of these letters")
        self.features = features
        super().__init__(dims, depths, mlp_ratio=mlp_ratio, layer_scale=layer_scale, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return conv_stem(in_channels, dim)

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return ConvNorm(in_dim, dim, 3, stride=2, bias=True)

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        flag = self.flags[stage]
        mixer = MIXERS.build(dict(type=LETTERS[flag[index % len(flag)]], dim=dim, heads=self.heads[stage]))
        mlp = LocalMlp(dim, self.mlp_ratio[stage])
        return Block(dim, mixer, mlp, drop_path, self.layer_scale[stage], position=depthwise(dim, 3))

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        before = nn.Sequential(ConvNorm(dim, self.features, bias=True), nn.SiLU())
        return Head(self.features, num_classes, before=before)


VARIANTS = {
    "ravlt_t": Variant({}, 14_897_768, 2.4, drop_path=0.1),
    "ravlt_s": Variant(
        dict(dims=(64, 128, 320, 512), depths=(3, 5, 9, 3), heads=(1, 2, 5, 8)), 25_591_208, 4.6, 84.4, drop_path=0.15
    ),
    "ravlt_b": Variant(
        dict(dims=(96, 192, 384, 512), depths=(4, 6, 12, 6), heads=(1, 2, 6, 8), layer_scale=(1, 1, 1e-6, 1e-6)),
        48_241_288,
        9.9,
        drop_path=0.4,
    ),
    "ravlt_l": Variant(
        dict(dims=(96, 192, 448, 640), depths=(4, 7, 19, 8), heads=(1, 2, 7, 10), layer_scale=1e-6),
        95_242_440,
        16.0,
        drop_path=0.55,
    ),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

RULES: Rules = [
    (r"\.RoPE\.angle$", None),  # frequencies, which a formula gives
    *((rf"^patch_embed\.proj\.{3 * i}\.", rf"stem.{2 * i}.conv.") for i in range(4)),
    *((rf"^patch_embed\.proj\.{3 * i + 1}\.", rf"stem.{2 * i}.norm.") for i in range(4)),
    *((rf"^layers\.{i}\.downsample\.", rf"stages.{i + 1}.downsample.") for i in range(3)),
    (r"\.downsample\.reduction\.", r".downsample.conv."),
    (r"^layers\.(\d)\.", r"stages.\1."),
    (r"\.norm(\d)\.norm\.", r".norm\1."),
    (r"\.attn\.", r".mixer."),
    (r"\.ffn\.", r".mlp."),
    (r"\.pos\.", r".position."),
    (r"\.gamma_(\d)$", r".scale\1.gamma"),
    (r"^extra_norms\.(\d)\.norm\.", r"norms.\1."),
    (r"^proj\.", r"head.before.0.conv."),
    (r"^norm\.", r"head.before.0.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

register(RAVLT, VARIANTS, RULES)
