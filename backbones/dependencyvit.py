"""DependencyViT: a vision transformer whose attention is a graph of dependencies, from which trees and pruning follow.

"Visual Dependency Transformers: Dependency Tree Emerges from Reversed Attention", CVPR 2023, arXiv 2304.03282. The
authors' repository, https://github.com/dingmyu/DependencyViT, has no code and no weights. This follows a
re-implementation from the paper (Apache-2.0): https://github.com/huggingface/pytorch-image-models/pull/2062, branch
dependencyvit of fffffgggg54/pytorch-image-models at 11e8739. Its author reports some two points less than the paper
for the tiny model, and held several readings of the paper possible. They are options here, his choice the default: the
biases of selector and controller, `layer_scale`, `prune_score`, and where messages `join` at the end.

Conventional attention collects; reversed attention sends. With A = softmax_j(q_i·k_j / √d), how token i (the child)
divides its message among all tokens j (its parents), the parent receives

    out_j = Σ_i A_ij P_i m_i v_i

in each head. P_i, a softmax over the heads, says in which of them the child speaks; m_i, a product of sigmoids over all
blocks so far, how much it still has to say. So m never grows. The sum M_ji of A_ij P_i m_i over the heads is the
dependency mask, (B, N, N), whose columns sum up to m; it is computed where it is asked for, and nowhere else. The
features behind the last norm are multiplied by m, so that silent tokens do not count in the mean.

DependencyViT-Lite drops the pixels of the smallest m on its way, between the attention and the MLP of some blocks.

Dense forms and trees are in the paper, but its exact rules are not known: what stands here is ours. The dense form
gives the normed map, without the factor m; pixels that were dropped keep the last value that they had, or are zero.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels.reversed_attention import reversed_attention
from ..registry import MIXERS
from .layers import Block, Linear, Pruned, best, heads_of, prune, put_back
from .skeletons import vit_names
from .skeletons.backbone import Notes
from .skeletons.isotropic import Isotropic
from .skeletons.options import check_shares, is_whole
from .zoo import Variant, register

# --- operator --------------------------------------------------------------------------------------------------------


class MessageController(nn.Module):
    """How much a token has to say, by itself: sigmoid(linear(gelu(linear(x)))), (B, N, C) -> (B, N), in (0, 1).

    Args:
        dim: channels C; half of them are inside.
        bias: whether the two layers have a bias.
    """

    def __init__(self, dim: int, bias: bool = False):
        super().__init__()
        self.fc1 = Linear(dim, dim // 2, bias=bias)
        self.activation = nn.GELU()
        self.fc2 = Linear(dim // 2, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fc2(self.activation(self.fc1(x))).squeeze(-1)
        return torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))  # products of many follow


@MIXERS.register_module()
class ReversedAttention(nn.Module):
    """Reversed attention, see above.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default.
        qkv_bias: whether queries, keys and values have a bias.
        selector_bias: whether the layer that selects heads has a bias.
        controller_bias: whether the layers that control messages have a bias.
        temperature: divisor of the logits of heads; smaller ones make a token speak in one head.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`; with `messages` (B, N), the m of the block before, a pair of it and of
    the new m, in float32 at least; with `received` also what every pixel receives, Σ_i M_ji, (B, N).
    """

    takes_messages = True

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        qkv_bias: bool = False,
        selector_bias: bool = False,
        controller_bias: bool = False,
        temperature: float = 0.1,
    ):
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"ReversedAttention: temperature={temperature} must be a number above 0")
        self.heads, self.temperature = heads_of("ReversedAttention", dim, heads), temperature
        self.head_selector = Linear(dim, self.heads, bias=selector_bias)
        self.message_controller = MessageController(dim, controller_bias)
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def _split(self, rows: Tensor, messages: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q, k, v (B, heads, N, d), the weights P m (B, heads, N), and m (B, N), of rows (B, N, C)."""
        q, k, v = self.qkv(rows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        m = self.message_controller(rows)
        m = m if messages is None else messages * m
        heads = (self.head_selector(rows) / self.temperature).softmax(-1)
        return q, k, v, (heads * m.unsqueeze(-1)).transpose(1, 2).to(v.dtype), m

    def forward(self, x: Tensor, messages: Tensor | None = None, received: bool = False):
        height, width = x.shape[-2:]
        q, k, v, weight, m = self._split(x.flatten(2).transpose(1, 2), messages)
        if received:  # one more channel, which carries the weights themselves
            v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
        out, arrived = reversed_attention(q, k, v, weight), None
        if received:
            out, arrived = out[..., :-1], out[..., -1].sum(1)
        x = self.proj(out.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, (height, width))
        if messages is None:
            return x
        return (x, m, arrived) if received else (x, m)

    def dependency_mask(self, x: Tensor, messages: Tensor | None = None) -> Tensor:
        """M (B, N, N), in float32 at least: entry (j, i) is what pixel j receives from pixel i. Its columns sum up to
        m."""
        q, k, weight = self._looked(x, messages)
        return torch.einsum("bhij,bhi->bji", (q @ k.transpose(-1, -2)).softmax(-1), weight)

    def attention_maps(self, x: Tensor, place: tuple[int, int], messages: Tensor | None = None) -> Tensor:
        """What the pixel (row, column) `place` receives from every pixel, by head: (B, heads, H, W), in float32 at
        least."""
        q, k, weight = self._looked(x, messages)
        norm = (q @ k.transpose(-1, -2)).logsumexp(-1)
        sent = torch.exp((q * k[:, :, place[0] * x.shape[-1] + place[1], None]).sum(-1) - norm)
        return (sent * weight).unflatten(-1, x.shape[-2:])

    def _looked(self, x: Tensor, messages: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q / √d, k (B, heads, N, d) and the weights P m (B, heads, N), wide enough for products of half types."""
        q, k, _, weight, _ = self._split(x.flatten(2).transpose(1, 2), messages)
        wide = torch.promote_types(q.dtype, torch.float32)
        return q.to(wide) * q.shape[-1] ** -0.5, k.to(wide), weight.to(wide)


# --- network ---------------------------------------------------------------------------------------------------------

# `fixed_sizes` where pixels are dropped
FIXED_BY_PRUNING = dict.fromkeys(
    ("height", "width"), "how many pixels of a free map are left takes an export minutes to reason about"
)
SCORES = ("message", "received", "both")
FILLS = ("last", "zero")
JOINS = ("after", "before")


class DependencyBlock(Block):
    """The pre-norm block of reversed attention, which may drop pixels between its two branches.

    Its mixer is a `ReversedAttention`.

    Attributes:
        keep: share of the pixels that stay, rounded down to whole pixels, of which one stays at least; None for all.
        score: score of pixels by which they stay; see `DependencyViT`.

    `forward(x (B, C, H, W), messages (B, N), pruned)` gives the same three: the map, or (B, C, 1, K) of what is left of
    it, its messages, and a `Pruned`, or None as long as nothing was dropped.
    """

    places = ()  # for what is left of a pruned map has no neighbors
    keep: Fraction | None = None
    score = "message"

    def forward(self, x: Tensor, messages: Tensor, pruned: Pruned | None):  # type: ignore[override]
        counts = self.keep is not None and self.score != "message"
        mixed, messages, *received = self.mixer(self.norm1(x), messages, received=counts)
        x = x + self.drop_path(self.scale1(mixed))
        if self.keep is not None:
            scores = messages if not counts else received[0] + (messages if self.score == "both" else 0)
            count = max(1, messages.shape[1] * self.keep.numerator // self.keep.denominator)
            index = best(scores.detach(), count)
            x, pruned = prune(x, index, pruned)
            messages = messages.gather(1, index)
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x)))), messages, pruned


class Dependencies(NamedTuple):
    """What depends on what in a block.

    Attributes:
        mask: M (B, N, N); entry (j, i) is what pixel j, the parent, receives from pixel i, the child.
        messages: m (B, N), the sums of the columns.
        places: (B, N), where the pixels stand on the grid of H x W patches, row by row.
        size: H and W.
    """

    mask: Tensor
    messages: Tensor
    places: Tensor
    size: tuple[int, int]


class DependencyViT(Isotropic):
    """DependencyViT, see above. There are no class and register tokens.

    Args:
        dim, depth, layer_scale, drop_path_rate, **common: as of `Isotropic`. Plug-ins go with no pruning only.
        heads, qkv_bias, selector_bias, controller_bias, temperature: as of `ReversedAttention`.
        prune_blocks: blocks that drop pixels, from 0, in rising order; none by default.
        prune_ratio: share a of the pixels that each of these drops. Of the first N about (1 - p a) N are left behind
            the p-th.
        prune_score: score of pixels, of which the highest stay: "message", their m; "received", what they receive in
            this block; or "both", the sum.
        fill: what the maps of the dense form have in place of pixels that were dropped: "last", the last value that
            they had, or "zero".
        join: whether the messages are multiplied to the features "after" the last norm, or "before" it.
    """

    unused = ("registers",)
    block_type = DependencyBlock

    def __init__(
        self,
        dim: int = 192,
        depth: int = 12,
        heads: int = 12,
        qkv_bias: bool = False,
        selector_bias: bool = False,
        controller_bias: bool = False,
        temperature: float = 0.1,
        layer_scale: float | Sequence[float | None] | None = 1e-6,
        prune_blocks: Sequence[int] = (),
        prune_ratio: float = 0.16,
        prune_score: str = "message",
        fill: str = "last",
        join: str = "after",
        **common,
    ):
        for name, value, words in (("prune_score", prune_score, SCORES), ("fill", fill, FILLS), ("join", join, JOINS)):
            if value not in words:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, words))}")
        self.shares = _shares(prune_blocks, prune_ratio, depth)
        if self.shares and common.get("plugins") is not None:
            raise ValueError(f"plugins see whole maps, and prune_blocks={prune_blocks} leaves parts of them")
        self.prune_score, self.fill, self.join = prune_score, fill, join
        mixer = dict(
            type="ReversedAttention",
            heads=heads,
            qkv_bias=qkv_bias,
            selector_bias=selector_bias,
            controller_bias=controller_bias,
            temperature=temperature,
        )
        super().__init__(dim, depth, mixer, class_token=None, layer_scale=layer_scale, **common)
        if self.shares:
            self.fixed_sizes = dict.fromkeys((".pt2", ".onnx"), FIXED_BY_PRUNING)

    @classmethod
    def check_values(cls, given: Mapping[str, Any]) -> None:
        super().check_values(given)
        check_shares("prune_ratio", given.get("prune_ratio", 0.0))

    @property
    def leaves_out(self) -> str:
        return "pixels" if self.shares else ""

    def make_block(self, index: int, dim: int, drop_path: float) -> nn.Module:
        block: Any = super().make_block(index, dim, drop_path)
        block.keep, block.score = self.shares.get(index), self.prune_score
        return block

    def run(self, block: nn.Module, x: Tensor, tokens: Tensor | None, notes: Notes) -> tuple[Tensor, Tensor | None]:
        """As of `Isotropic`; notes "messages", (B, N) of the pixels that are left, and "pruned" where some are not."""
        if "messages" not in notes:
            wide = torch.promote_types(x.dtype, torch.float32)
            notes["messages"] = x.new_ones(x.shape[0], x.shape[2] * x.shape[3], dtype=wide)
        pruned: Any = notes.get("pruned")
        x, notes["messages"], pruned = self.blocks.run(block, x, notes["messages"], pruned)
        if pruned is not None:
            notes["pruned"] = pruned
        return x, tokens

    def head_input(self, x: Tensor, notes: Notes) -> Tensor:
        """The pixels that are left after the last norm, times their messages: (B, N, C)."""
        messages, rest = notes["messages"].to(x.dtype), notes["rest"]
        if self.join == "after":
            return super().head_input(x, notes) * messages.unsqueeze(-1)
        return super().head_input(x, {**notes, "rest": rest * messages.view(len(rest), 1, *rest.shape[2:])})

    def normed(self, level: int, x: Tensor, notes: Notes) -> Tensor:
        if x.ndim == 4 and self.fill == "zero" and "pruned" in notes:
            normed = super().normed(level, notes["rest"], notes)
            zeros = normed.new_zeros(*normed.shape[:2], *x.shape[2:])
            return put_back(normed, notes["pruned"].places, zeros)
        return super().normed(level, x, notes)

    def dependencies(self, image: Tensor, block: int = -1) -> Dependencies:
        """The dependency mask of a block, which the network itself never makes.

        Args:
            image: (B, 3, H, W).
            block: number of the block, from 0; negative ones count from the last.
        """
        if not -len(self.blocks) <= block < len(self.blocks):
            raise ValueError(f"block={block}: there are {len(self.blocks)} blocks")
        block %= len(self.blocks)
        notes: Notes = {}
        found: dict[str, Any] = {}
        mixer: Any = self.blocks[block].mixer

        def take(_, inputs):
            found.update(inputs=inputs, pruned=notes.get("pruned"))

        handle = mixer.register_forward_pre_hook(take)
        try:
            for i, x in enumerate(self.levels(self.check(image), notes)):  # noqa: B007
                if i == block:
                    break
        finally:
            handle.remove()
        mask, pruned, size = mixer.dependency_mask(*found["inputs"]), found["pruned"], (x.shape[-2], x.shape[-1])
        if pruned is None:
            places = torch.arange(mask.shape[1], device=mask.device).expand(len(mask), -1)
        else:
            places = pruned.places
        return Dependencies(mask, mask.sum(1), places, size)


def _shares(blocks: Sequence[int], ratio: float, depth: int) -> dict[int, Fraction]:
    """Of the blocks that drop pixels, the share of them that stays: (1 - p a) / (1 - (p - 1) a)."""
    listed = isinstance(blocks, Sequence) and all(is_whole(i) and 0 <= i < depth for i in blocks)
    if not listed or sorted(set(blocks)) != list(blocks):
        raise ValueError(f"prune_blocks={blocks!r} must be blocks of 0 to {depth - 1}, in rising order")
    if len(blocks) * ratio >= 1:
        raise ValueError(
            f"prune_ratio={ratio} must be at least 0, and below 1 / {len(blocks)} for {len(blocks)} blocks "
            "that prune, so that pixels are left"
        )
    drop = Fraction(str(float(ratio)))  # as written, so that rounding down is exact
    return {block: (1 - (p + 1) * drop) / (1 - p * drop) for p, block in enumerate(blocks)}


# Widths as in the configurations of the re-implementation; nothing but the accuracy of others was published.
_TINY, _SMALL = dict(dim=192), dict(dim=384)
VARIANTS = {
    "dependencyvit_tiny": Variant(_TINY, 5_964_712, drop_path=0.1),
    "dependencyvit_small": Variant(_SMALL, 22_987_624, drop_path=0.1),
    "dependencyvit_lite_tiny": Variant(_TINY | dict(prune_blocks=(1, 4, 7, 10)), 5_964_712, drop_path=0.1),
}

# --- trees -----------------------------------------------------------------------------------------------------------


def dependency_tree(mask: Tensor, method: str = "arborescence") -> Tensor:
    """Parents of tokens, read from a dependency mask. The rule is ours: the paper's is not known.

    The root is the token that receives most from others. Of every other token i, the parent j receives most of what i
    sends: the largest M_ji, j ≠ i.

    Args:
        mask: (N, N), or (B, N, N) for a batch; entry (j, i) is what j receives from i.
        method: "argmax" for the parents alone, which may form cycles apart from the root; "arborescence" for the tree
            to that root with the largest sum of M_ji over all its edges (Edmonds' algorithm).

    Returns:
        parents, int64, of the shape (N,) or (B, N), -1 for the root. On the CPU.

    Raises:
        ValueError: another shape or method, or NaN or infinities in the mask.
    """
    if method not in TREES:
        raise ValueError(f"method={method!r} must be one of {', '.join(map(repr, TREES))}")
    if mask.ndim not in (2, 3) or mask.shape[-1] != mask.shape[-2] or not mask.shape[-1]:
        raise ValueError(f"mask must have shape (N, N) or (B, N, N) of at least one token, got {tuple(mask.shape)}")
    if not mask.isfinite().all():
        raise ValueError("mask must be finite")
    if mask.ndim == 3:
        trees = [dependency_tree(one, method) for one in mask]
        return torch.stack(trees) if trees else torch.empty(0, mask.shape[-1], dtype=torch.int64)
    weights = mask.detach().double().cpu().numpy().copy()
    np.fill_diagonal(weights, 0)
    root = int(weights.sum(1).argmax())
    np.fill_diagonal(weights, -np.inf)
    weights[:, root] = -np.inf
    return torch.from_numpy(TREES[method](weights, root))


def _strongest(weights: np.ndarray, root: int) -> np.ndarray:
    parents = weights.argmax(0)
    parents[root] = -1
    return parents


def _arborescence(weights: np.ndarray, root: int) -> np.ndarray:
    """Parents in the tree with the largest sum of weights[parent, child]. Nothing enters the root.

    As long as the strongest parents form a cycle, it becomes one node, named as its first: what enters it is worth the
    edge less the one of the cycle that it replaces. Then the nodes are opened again, the last one first.
    Source: Edmonds, "Optimum Branchings", 1967.
    """
    weights, opened = weights.copy(), []
    while cycle := _cycle(parents := _strongest(weights, root)):
        before, first = parents[cycle], cycle[0]
        gain = weights[:, cycle] - weights[before, cycle]
        entered, left = gain.argmax(1), weights[cycle].argmax(0)
        opened.append((cycle, before, np.array(cycle)[entered], np.array(cycle)[left]))
        into, out = gain.max(1), weights[cycle].max(0)
        weights[:, cycle], weights[cycle] = -np.inf, -np.inf
        weights[:, first], weights[first] = into, out
        # what is inside the new node neither enters nor leaves it
        weights[cycle, first], weights[first, cycle] = -np.inf, -np.inf
        weights[root, cycle[1:]] = 0  # until they are opened, the others hang below the root
    for cycle, before, entered, left in reversed(opened):
        first = cycle[0]
        outer = parents[first]
        leaving = parents == first
        leaving[cycle] = False
        parents[leaving] = left[leaving]
        parents[cycle] = before
        parents[entered[outer]] = outer
    return parents


def _cycle(parents: np.ndarray) -> list[int]:
    """A cycle of a graph in which every node but the roots (-1) has one parent; [] if there is none."""
    seen = np.full(len(parents), -1)
    for start in range(len(parents)):
        node, path = start, []
        while node >= 0 and seen[node] < 0:
            seen[node] = start
            path.append(node)
            node = parents[node]
        if node >= 0 and seen[node] == start:
            return path[path.index(node) :]
    return []


TREES = {"argmax": _strongest, "arborescence": _arborescence}

register(DependencyViT, VARIANTS, vit_names.RULES)  # the re-implementation has timm's names
