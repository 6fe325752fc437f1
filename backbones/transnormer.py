"""TransNormerLLM: a causal network over tokens, of lightning attention, whose decoding state has a constant size.

"TransNormerLLM: A Faster and Better Large Language Model with Improved TransNormer", arXiv 2307.14995, and "Various
Lengths, Constant Speed" (TNL), arXiv 2405.17381. Weights of https://github.com/OpenNLPLab/TransnormerLLM (385M, 1B;
the code is Apache-2.0) and of https://github.com/Doraemonzzz/nanoTransNormer (MIT) load.

    x = E[tokens] √C;  each layer: x += attention(SRMSNorm(x)), x += SGLU(SRMSNorm(x));  logits = SRMSNorm(x) Eᵀ

SRMSNorm has no weights. SGLU is (x W₁ · x W₂) W₃, without an activation. The attention is a module of
`attlas.backbones.mixers.lightning_attention`; its slopes fall from layer to layer, and the last hardly decays.

The published networks turn queries and keys (LRPE) in the first layer alone, which the paper says. nanoTransNormer does
so in all layers but the first, does not scale the embedding, and has SGLUs of width 2 C: see `nano`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoint import Rules
from ..data import one_of
from ..registry import MODELS
from .layers import Linear, linear
from .mixers.lightning_attention import FORMS, layer_decay, srms_norm


class State(NamedTuple):
    """What sequences leave behind: their length, and for each layer (B, heads, d, e), float32. The size is constant."""

    position: int
    layers: tuple[Tensor, ...]


class SGLU(nn.Module):
    """(x W₁ · x W₂) W₃ of rows x (..., C).

    Args:
        dim: channels C.
        hidden: width between the layers.
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.l1, self.l2 = Linear(dim, hidden, bias=False), Linear(dim, hidden, bias=False)
        self.l3 = Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.l3(self.l1(x) * self.l2(x))


class Layer(nn.Module):
    """A layer of the network: attention, then SGLU, each with a norm before it and a shortcut around it."""

    def __init__(self, token_mixer: nn.Module, channel_mixer: nn.Module):
        super().__init__()
        self.token_mixer, self.channel_mixer = token_mixer, channel_mixer

    def forward(self, x: Tensor, state: Tensor | None, position: int) -> tuple[Tensor, Tensor]:
        y, state = self.token_mixer(srms_norm(x), state, position)
        x = x + y
        return x + self.channel_mixer(srms_norm(x)), state


RULES: Rules = [
    (r"^(transnormer\.)?wte\.", "embedding."),
    (r"^(transnormer\.)?h\.(\d+)\.", r"layers.\2."),
    (r"^(model\.)?embed_tokens\.", "embedding."),
    (r"^model\.layers\.", "layers."),
    (r"^lm_head\.", "head."),
]


@MODELS.register_module()
class TransNormer(nn.Module):
    """TransNormerLLM, see above.

    Args:
        vocabulary: number of tokens.
        dim: channels C.
        depth: number of layers.
        heads: number of attention heads, which divides C.
        hidden: width of the SGLUs.
        form: attention of the layers: "transnormer", or "tnl" (TNL's module, which has no LRPE).
        lrpe: numbers of the layers that turn queries and keys.
        tied: whether the logits are products with the embedding; else they have a matrix of their own.
        scale_embedding: whether embeddings are multiplied by √C.

    `forward(tokens (B, N) int64, state)` gives the logits (B, N, vocabulary) of the token behind each, and a `State`.
    Given to the next call, that continues the sequences; None begins them.

    Raises:
        ValueError, TypeError: names the argument.
    """

    checkpoint_rules = RULES

    def __init__(
        self,
        vocabulary: int = 64_000,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 8,
        hidden: int = 2816,
        form: str = "transnormer",
        lrpe: Sequence[int] = (0,),
        tied: bool = True,
        scale_embedding: bool = True,
    ):
        super().__init__()
        sizes = dict(vocabulary=vocabulary, dim=dim, depth=depth, heads=heads, hidden=hidden)
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"TransNormer: {name}={size!r} must be a positive integer")
        one_of("TransNormer: form", form, tuple(FORMS))
        if isinstance(lrpe, str) or not isinstance(lrpe, Sequence):
            raise ValueError(f"TransNormer: lrpe={lrpe!r:.60} must be a sequence of layers, such as (0,)")
        if form == "tnl":
            if tuple(lrpe) not in ((), (0,)):
                raise ValueError(f"TransNormer: lrpe={tuple(lrpe)} belongs to form='transnormer', not 'tnl'")
            lrpe = ()
        if wrong := [i for i in lrpe if not isinstance(i, int) or i not in range(depth)]:
            raise ValueError(f"TransNormer: lrpe={tuple(lrpe)} must be layers from 0 to {depth - 1}, got {wrong[0]}")
        self.vocabulary, self.dim, self.heads = vocabulary, dim, heads
        self.scale = dim**0.5 if scale_embedding else 1.0
        self.embedding = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList(
            Layer(
                FORMS[form](dim, heads, layer_decay(i, depth), **(dict(lrpe=True) if i in lrpe else {})),
                SGLU(dim, hidden),
            )
            for i in range(depth)
        )
        self.head = None if tied else Linear(dim, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
        self.register_load_state_dict_pre_hook(_check_tied)

    @property
    def checkpoint_optional(self) -> list[str]:
        return [r"^head\.weight$"] if self.head is None else []

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        self._check(tokens, state)
        position, before = (0, [None] * len(self.layers)) if state is None else state
        x = self.embedding(tokens) * self.scale
        after = []
        for layer, kept in zip(self.layers, before):
            x, kept = layer(x, kept, position)
            after.append(kept)
        weight = self.embedding.weight if self.head is None else self.head.weight
        return linear(srms_norm(x), weight), State(position + tokens.shape[1], tuple(after))

    def _check(self, tokens: Tensor, state: State | None) -> None:
        if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64 or tokens.ndim != 2 or 0 in tokens.shape:
            got = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"tokens must be int64 of shape (B, N), none of them 0, got {got}")
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            lowest, highest = tokens.aminmax()
            if lowest < 0 or highest >= self.vocabulary:
                raise IndexError(f"tokens must lie in 0..{self.vocabulary - 1}, got values from {lowest} to {highest}")
        if state is not None and not (isinstance(state, State) and len(state.layers) == len(self.layers)):
            raise ValueError(
                f"state must be a State of {len(self.layers)} layers, as forward gives it, got {state!r:.80}"
            )


def _check_tied(network: TransNormer, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Refuse a file whose last layer would be lost."""
    own, embedding = state.get(f"{prefix}head.weight"), state.get(f"{prefix}embedding.weight")
    if network.head is None and own is not None and embedding is not None and not torch.equal(own, embedding):
        raise ValueError("TransNormer: the file has a last layer other than its embedding: build with tied=False")


# --- variants --------------------------------------------------------------------------------------------------------

# The models on the hub; the parameters are 24 (5 · 1024² + 3 · 1024 · 2816) or 16 (5 · 2048² + 3 · 2048 · 5632), the
# tied embedding, and θ of the first layer. Some files of the 385M have vocabulary=64_000.
VARIANTS: dict[str, dict[str, Any]] = {
    "transnormerllm_385m": dict(vocabulary=50_272, dim=1024, depth=24, heads=8, hidden=2816),
    "transnormerllm_1b": dict(vocabulary=64_000, dim=2048, depth=16, heads=16, hidden=5632),
}
PARAMS = {"transnormerllm_385m": 384_926_720, "transnormerllm_1b": 1_020_266_496}


def nano(depth: int = 12, dim: int = 768, heads: int = 12, vocabulary: int = 50_304) -> dict[str, Any]:
    """Options of `TransNormer` for a network as nanoTransNormer builds it; the defaults are its small one.

    Args:
        depth, dim, heads, vocabulary: as of `TransNormer`.
    """
    return dict(
        vocabulary=vocabulary, dim=dim, depth=depth, heads=heads, hidden=2 * dim, lrpe=range(1, depth),
        scale_embedding=False,
    )  # fmt: skip


def create(name: str, **options: Any) -> TransNormer:
    """A published network by name.

    Args:
        name: "transnormerllm_385m" or "transnormerllm_1b".
        **options: of `TransNormer`, over those of the variant.

    Raises:
        ValueError: there is no such variant; says the nearest.
    """
    return TransNormer(**{**VARIANTS[one_of("name", name, tuple(VARIANTS))], **options})
