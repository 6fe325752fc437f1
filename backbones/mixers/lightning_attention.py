"""Lightning attention as a mixer: TNL's module and TransNormerLLM's, over sequences and over the rows of a map.

"Various Lengths, Constant Speed: Efficient Language Modeling with Lightning Attention", arXiv 2405.17381;
https://github.com/OpenNLPLab/lightning-attention (MIT). "TransNormerLLM", arXiv 2307.14995.

Both project a sequence x (B, N, C) to queries, keys and values, take `attlas.kernels.lightning_attention` of each head,
and multiply by a gate of x. They are different modules:

    TNL             q, k, v = SiLU(x W);  out = (LayerNorm(y) · sigmoid(x G₁ G₂)) O      G₁: C -> d, G₂: d -> C
    TransNormerLLM  q, k = SiLU(x W), v, u = x W;  out = (y / RMS(y) · u) O              LRPE may turn q and k

Norms are over all heads together. Heads decay by ALiBi's slopes, times a factor that falls from layer to layer. What a
sequence leaves behind is a state (B, heads, d, e) of constant size: from it the next tokens go on.

For maps nothing is published. `LightningAttention` reads the pixels row by row, as text is read (`ways=1`), or looks
from each pixel both ways along this sequence (`ways=2`); this is ours.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data import one_of
from ...kernels.lightning_attention import (
    alibi_slopes,
    lightning_attention,
    lightning_attention_both_ways,
    lightning_attention_step,
)
from ...registry import MIXERS
from ..layers import Linear, heads_of


def layer_decay(index: int, layers: int) -> float:
    """The factor of the slopes in layer `index` of `layers`: from 1 down to 1e-5, so that the last hardly decays."""
    return 1 - index / max(layers - 1, 1) + 1e-5


def srms_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x (..., C) / sqrt(mean of squares + eps), without weights: TransNormerLLM's SRMSNorm. It computes in float32 at
    least, and gives the dtype of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), x.shape[-1:], eps=eps).to(x.dtype)


class LRPE(nn.Module):
    """Linearized relative position: (x cos nθ, x sin nθ) of the token n, so that products depend on distances.

    Args:
        heads: number of attention heads.
        head_dim: channels d of a head.

    `forward(q, k, position)`, both (B, heads, N, d), gives both, (B, heads, N, 2d); the first token is number
    `position`. θ is learned. The angles are in float32 at least: half types do not tell neighbors beyond 2048 tokens.
    """

    def __init__(self, heads: int, head_dim: int):
        super().__init__()
        dim = heads * head_dim
        theta = 10000 ** (-2 / dim * torch.arange(dim, dtype=torch.float32))
        self.theta = nn.Parameter(theta.view(heads, 1, head_dim))

    def forward(self, q: Tensor, k: Tensor, position: int = 0) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(self.theta.dtype, torch.float32)
        places = torch.arange(position, position + q.shape[2], device=q.device, dtype=wide)
        angle = self.theta.to(wide) * places[:, None]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([q * cos, q * sin], dim=-1).to(q.dtype), torch.cat([k * cos, k * sin], dim=-1).to(k.dtype)


class SequenceAttention(nn.Module):
    """What both modules share: the heads and their decay.

    Args:
        dim: channels C.
        heads: number of attention heads, which divides C; heads of about 64 channels by default.
        decay: factor of ALiBi's slopes, at least 0; 0 for no decay.
        both_ways: whether a token looks at all tokens, not only at those before it. Then there is no state.

    `forward(x (B, N, C), state, position)` -> the same shape, and the state behind the last token, float32 (None with
    `both_ways`). `state` is what the tokens before left behind (None if there were none), `position` their number.

    Raises:
        ValueError: heads that do not divide the channels, a decay below 0, a state where there is none, or of another
            shape.
    """

    def __init__(self, dim: int, heads: int | None = None, decay: float = 1.0, both_ways: bool = False):
        super().__init__()
        self.heads, self.both_ways = heads_of(type(self).__name__, dim, heads, head_dim=64), both_ways
        if not 0 <= decay < float("inf"):
            raise ValueError(f"{type(self).__name__}: decay={decay} must be at least 0 and finite")
        # numbers, not a buffer: a network in half precision would round them
        self.slopes = [decay * slope for slope in alibi_slopes(self.heads).tolist()]

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, d)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    @abstractmethod
    def project(self, x: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k (B, heads, N, d), v (B, heads, N, e), and what `close` needs besides."""

    @abstractmethod
    def close(self, y: Tensor, gate: Tensor) -> Tensor:
        """The output of the module, from the heads side by side (B, N, C), which are in float32 where the gate is in
        float16."""

    def forward(self, x: Tensor, state: Tensor | None = None, position: int = 0) -> tuple[Tensor, Tensor | None]:
        q, k, v, gate = self.project(x, position)
        if q.dtype == torch.float16:  # whose numbers end at 65504: so the results stay in float32 until the norm
            q, k, v = q.float(), k.float(), v.float()
        slopes = torch.tensor(self.slopes, dtype=torch.float32, device=x.device)
        if self.both_ways:
            if state is not None:
                raise ValueError(f"{type(self).__name__}: state must be None with both_ways=True, which has none")
            y = lightning_attention_both_ways(q, k, v, slopes)
        elif x.shape[1] == 1 and not torch.is_grad_enabled():
            y, state = lightning_attention_step(q.squeeze(2), k.squeeze(2), v.squeeze(2), state, slopes)
            y = y.unsqueeze(2)
        else:
            y, state = lightning_attention(q, k, v, slopes, state)
        return self.close(y.transpose(1, 2).flatten(2), gate), state


class TNLAttention(SequenceAttention):
    """TNL's module, see above; the arguments are those of `SequenceAttention`."""

    def __init__(self, dim: int, heads: int | None = None, decay: float = 1.0, both_ways: bool = False):
        super().__init__(dim, heads, decay, both_ways)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (Linear(dim, dim, bias=False) for _ in range(4))
        self.norm = nn.LayerNorm(dim)
        head_dim = dim // self.heads
        self.output_gate = nn.Sequential(Linear(dim, head_dim, bias=False), Linear(head_dim, dim, bias=False))

    def project(self, x: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v = (self._split(F.silu(layer(x))) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return q, k, v, self.output_gate(x)

    def close(self, y: Tensor, gate: Tensor) -> Tensor:
        weight, bias = self.norm.weight.to(y.dtype), self.norm.bias.to(y.dtype)
        y = F.layer_norm(y, self.norm.normalized_shape, weight, bias, self.norm.eps)
        return self.o_proj(y.to(gate.dtype) * torch.sigmoid(gate))


class TransNormerAttention(SequenceAttention):
    """TransNormerLLM's module, see above.

    Args:
        dim, heads, decay, both_ways: as of `SequenceAttention`.
        lrpe: whether `LRPE` turns queries and keys, which doubles the channels d of the state.
    """

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        decay: float = 1.0,
        both_ways: bool = False,
        lrpe: bool = False,
    ):
        super().__init__(dim, heads, decay, both_ways)
        self.qkvu_proj, self.out_proj = Linear(dim, 4 * dim, bias=False), Linear(dim, dim, bias=False)
        self.lrpe = LRPE(self.heads, dim // self.heads) if lrpe else None

    def project(self, x: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v, u = self.qkvu_proj(x).chunk(4, dim=-1)
        q, k, v = self._split(F.silu(q)), self._split(F.silu(k)), self._split(v)
        if self.lrpe is not None:
            q, k = self.lrpe(q, k, position)
        return q, k, v, u

    def close(self, y: Tensor, gate: Tensor) -> Tensor:
        return self.out_proj(srms_norm(y).to(gate.dtype) * gate)


FORMS = {"tnl": TNLAttention, "transnormer": TransNormerAttention}


@MIXERS.register_module()
class LightningAttention(nn.Module):
    """Lightning attention to the pixels of a map, in the order in which text is read.

    Args:
        dim: channels C.
        heads: number of attention heads, which divides C; heads of about 64 channels by default.
        form: "tnl" or "transnormer", see above.
        ways: 1: a pixel sees those above it, and those to the left in its row; 2: it sees all.
        decay: factor of ALiBi's slopes, by which a pixel counts less the farther it is along the sequence; 0 for none.
        lrpe: whether `LRPE` turns queries and keys; of "transnormer" alone.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. Time and memory are linear in H W.

    Raises:
        ValueError: names the argument.
    """

    checkpoint_rules = [(r"^(?!attention\.)", "attention.")]  # the authors' files hold the module over sequences

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        form: str = "tnl",
        ways: int = 2,
        decay: float = 1.0,
        lrpe: bool = False,
    ):
        super().__init__()
        one_of("LightningAttention: form", form, tuple(FORMS))
        if isinstance(ways, bool) or ways not in (1, 2):
            raise ValueError(f"LightningAttention: ways={ways} must be 1 or 2")
        if lrpe and form != "transnormer":
            raise ValueError(f"LightningAttention: lrpe={lrpe} belongs to form='transnormer', not {form!r}")
        heads = heads_of("LightningAttention", dim, heads, head_dim=64)
        options = dict(lrpe=True) if lrpe else {}
        self.attention = FORMS[form](dim, heads, decay, both_ways=ways == 2, **options)

    def forward(self, x: Tensor) -> Tensor:
        rows, _ = self.attention(x.flatten(2).transpose(1, 2))
        return rows.transpose(1, 2).unflatten(2, x.shape[-2:])
