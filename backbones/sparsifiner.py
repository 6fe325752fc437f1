"""Sparsifiner: every query attends to the keys that a small predictor proposes for it.

"Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers", CVPR 2023, arXiv
2303.13755; https://github.com/lim142857/Sparsifiner (MIT).

For queries and keys q, k (N, d) of a head, the predictor has two small layers of its own, and two tables P, Q (N, n):

    c = softmax(s q' (k'ᵀ P))       coefficients of a query, of which the 8 largest count
    score = c |Q|ᵀ                  entries of |Q| up to a threshold are 0; of the highest K scores are the keys

Pixels attend to K keys each, tokens beside the map (the class token) to all. The mask has no gradient: the predictor
learns from a loss between its scores, of all coefficients and the signed Q, and the attention of a dense network
(`SparsifinerDistiller`). In a training without one it is frozen.

The authors compute all logits and mask them. Here `kernels.top_keys` and `kernels.sparse_attention` do without: memory
grows like N K. Pixels that the class token looks at least can be dropped behind some blocks, and are gathered.

Where paper and code differ, the code counts: s is heads^-0.5, not that of the width of a head; |Q| in inference. In the
released code dropped pixels stay as zeros, which the class token sees as keys with a logit of 0: so it does here, by
their number. Its budget of keys shrinks for good once pixels are dropped; here it holds for one image.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.dispatch import slices
from ..kernels.sparse_attention import sparse_attention
from ..kernels.top_keys import largest, top_keys
from ..registry import MIXERS
from .layers import Attention, Block, Head, Patches, any_free, relu_convs
from .layers.position import resize_table
from .layers.pruning import Pruned, best, prune
from .skeletons import vit_names
from .skeletons.backbone import Notes
from .skeletons.isotropic import Isotropic, RowsHead
from .skeletons.options import check_shares, image_sides, per_stage
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------

# pairs of tokens whose scores are thresholded together: 32 MB of them in float32
PAIRS = 1 << 23


class ConnectivityPredictor(nn.Module):
    """Which keys are worth the attention of a query, see above. All heads share its weights.

    Args:
        width: channels d of a head.
        heads: number of heads, for the scale.
        size: height and width of the map for which the tables are built.
        reduce_tokens: how many tokens come on one column of the tables: n = int(N // reduce_tokens), N = 1 + height ·
            width.
        reduce_width: how many channels of a head come on one of q' and k'.
        coef_topk: number of coefficients of a query that count; None for all above `coef_threshold`.
        coef_threshold: coefficients up to it are 0, where `coef_topk` is None.
        basis_threshold: entries of |Q| up to it are 0.
        shared: whether Q is P.
        scale: factor s; heads^-0.5 by default.
        resize: whether a map of another size gets tables that are interpolated, along the pixels, and P scaled by the
            number of pixels, so that its sums keep their size. The authors do not define it. False refuses such maps.
            Tables of files of another size are treated alike, but that a shared one keeps its entries.

    The first row of the tables is that of the class token, and of all other tokens beside the map.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        size: Sequence[int],
        reduce_tokens: float = 6,
        reduce_width: int = 2,
        coef_topk: int | None = 8,
        coef_threshold: float = 0.0,
        basis_threshold: float = 0.02,
        shared: bool = False,
        scale: float | None = None,
        resize: bool = True,
    ):
        super().__init__()
        tokens = 1 + size[0] * size[1]
        if not 1 <= reduce_tokens <= tokens:
            raise ValueError(f"reduce_tokens={reduce_tokens} must lie in 1..{tokens}, the number of tokens")
        if not 1 <= reduce_width <= width:
            raise ValueError(f"reduce_width={reduce_width} must lie in 1..{width}, the channels of a head")
        rank, narrow = int(tokens // reduce_tokens), width // reduce_width
        if coef_topk is not None and not 1 <= coef_topk <= rank:
            raise ValueError(f"coef_topk={coef_topk} must lie in 1..{rank}, the columns of the tables, or be None")
        for name, bound in (("coef_threshold", coef_threshold), ("basis_threshold", basis_threshold)):
            if not 0 <= bound < math.inf:
                raise ValueError(f"{name}={bound} must be a number of at least 0")
        self.size = tuple(size)
        self.coef_topk, self.coef_threshold, self.basis_threshold = coef_topk, coef_threshold, basis_threshold
        self.scale, self.resize = heads**-0.5 if scale is None else scale, resize
        self.q, self.k = nn.Linear(width, narrow), nn.Linear(width, narrow)
        self.reduce = nn.Parameter(torch.empty(tokens, rank))
        self.restore = None if shared else nn.Parameter(torch.empty(tokens, rank))
        self.reset_weights()

    def reset_weights(self) -> None:
        for table in (self.reduce, self.restore):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)

    @property
    def checkpoint_resize(self) -> dict[str, Any]:
        scaled = self.restore is not None  # a shared table is P and Q
        return dict(reduce=partial(self._of_file, scaled=scaled), restore=self._of_file)

    def _of_file(self, table: Tensor, shape: Sequence[int], scaled: bool = False) -> Tensor:
        side = math.isqrt(len(table) - 1)
        if table.shape[1] != shape[1] or side * side != len(table) - 1:
            return table  # the loader reports the shapes
        share = (len(table) - 1) / math.prod(self.size) if scaled else 1.0
        return torch.cat([table[:1], self._resized(table[1:], (side, side), self.size) * share])

    def _resized(self, pixels: Tensor, size: Sequence[int], grid: Sequence[int]) -> Tensor:
        return resize_table(pixels.mT.unflatten(1, tuple(size)).unsqueeze(0), grid, "bilinear")[0].flatten(1).mT

    def tables(self, tokens: int, grid: Sequence[int], places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """P and Q of the rows (tokens, pixels) of a batch: (1 or B, N, n) each.

        Args:
            tokens: number of tokens beside the map.
            grid: height and width of the map.
            places: pixels of the grid that are left (B, K); None for all.

        Raises:
            ValueError: the grid is of another size, and `resize` is off.
        """
        other = any_free(grid) or tuple(grid) != self.size
        if other and not self.resize:
            raise ValueError(
                f"the map is {grid[0]} x {grid[1]} pixels, the predictor's tables are of {self.size[0]} x "
                f"{self.size[1]}: give images of that size, build it with that img_size, or with resize=True"
            )
        share = math.prod(self.size) / (grid[0] * grid[1]) if other else 1.0

        def rows(table: Tensor, factor: float) -> Tensor:
            pixels = self._resized(table[1:], self.size, grid) * factor if other else table[1:]
            pixels = pixels.unsqueeze(0) if places is None else pixels[places]
            return torch.cat([table[:1].expand(len(pixels), tokens, -1), pixels], 1)

        return rows(self.reduce, share), rows(self.reduce if self.restore is None else self.restore, 1.0)

    def extra_repr(self) -> str:
        return f"size={self.size}, resize={self.resize}"

    def coefficients(self, q: Tensor, k: Tensor, reduce: Tensor) -> Tensor:
        """(B, H, S, n) of queries q (B, H, S, d), with sums of 1, for the keys k (B, H, N, d) and P."""
        keys = self.k(k).mT @ reduce.unsqueeze(1)
        return (self.q(q) @ keys * self.scale).softmax(-1)

    def sparse(self, coefficients: Tensor, restore: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients that count, but for `coef_topk`, and the basis (1 or B, n, N)."""
        if self.coef_topk is None and self.coef_threshold > 0:
            coefficients = F.threshold(coefficients, self.coef_threshold, 0.0)
        return coefficients, F.threshold(restore.abs(), self.basis_threshold, 0.0).mT


@MIXERS.register_module()
class SparsifiedAttention(Attention):
    """Multi-head self-attention in which every pixel attends to the keys that a `ConnectivityPredictor` names.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        keep: keys of a query: their share of all tokens, above 0 and up to 1 (rounded up), or an integer above 1, their
            number. 1 is dense attention. Once pixels are dropped, a query has at most as many keys as pixels are left;
            the released code leaves out one key there even where it keeps all, as the number of all tokens does here.
        size: side of the map for which the predictor is built, or its height and width.
        score_threshold: None for those keys that score highest; a number for all that score more than it, as many as
            there are, which may be none.
        reconstruct: whether attention is dense while training, and the predictor learns from it; it is frozen else.
        **predictor: further arguments of `ConnectivityPredictor`.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`; with `tokens (B, T, C)`, which take part and attend to all keys, a pair
    of both. With a threshold, all scores of a few queries at a time exist, and their logits with a mask.
    """

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        qkv_bias: bool = True,
        keep: float = 0.25,
        size: int | Sequence[int] = 14,
        score_threshold: float | None = None,
        reconstruct: bool = False,
        **predictor,
    ):
        super().__init__(dim, heads, qkv_bias)
        number = isinstance(keep, (int, float)) and not isinstance(keep, bool)
        if not number or not (0 < keep <= 1 or (isinstance(keep, int) and keep > 1)):
            raise ValueError(f"keep={keep!r} must be a share of the keys above 0 and up to 1, or an integer above 1")
        if score_threshold is not None and not math.isfinite(score_threshold):
            raise ValueError(f"score_threshold={score_threshold} must be a finite number, or None")
        self.keep, self.score_threshold, self.reconstruct = keep, score_threshold, reconstruct
        height, width = (size, size) if isinstance(size, int) else size
        self.predictor = ConnectivityPredictor(dim // self.heads, self.heads, (height, width), **predictor)
        self.predictor.requires_grad_(reconstruct)  # in any other training nothing would reach it

    def budget(self, tokens: int, pixels: int, left: int) -> int:
        """The number of keys of a query.

        Args:
            tokens: number of tokens beside the map.
            pixels: number of pixels of the grid.
            left: number of pixels that are left of them, which bounds it if that is fewer.
        """
        whole = tokens + pixels
        number = int(self.keep) if self.keep > 1 else math.ceil(self.keep * whole)
        if number > whole:
            raise ValueError(f"keep={self.keep} keys of a query are more than the {whole} tokens that there are")
        return number if left == pixels else min(number, left)

    def _rows(self, x: Tensor, tokens: Tensor | None) -> tuple[Tensor, int]:
        rows = x.flatten(2).transpose(1, 2)
        return (rows, 0) if tokens is None else (torch.cat([tokens, rows], dim=1), tokens.shape[1])

    def keys(
        self, q: Tensor, k: Tensor, tokens: int, grid: Sequence[int], pruned: Pruned | None = None
    ) -> Tensor | None:
        """The keys (B, H, S, K) of queries q (B, H, S, d) among k (B, H, tokens + pixels, d), int32; None for all."""
        if self.keep == 1:
            return None
        count = self.budget(tokens, grid[0] * grid[1], k.shape[2] - tokens)
        if count == k.shape[2]:
            return None
        reduce, restore = self.predictor.tables(tokens, grid, None if pruned is None else pruned.places)
        found, basis = self.predictor.sparse(self.predictor.coefficients(q, k, reduce), restore)
        return top_keys(found, basis, count, self.predictor.coef_topk)

    def scores(
        self, x: Tensor, tokens: Tensor | None = None, signed: bool = False, pruned: Pruned | None = None
    ) -> Tensor:
        """The scores (B, heads, H · W, T + H · W) that the predictor gives all pairs; differentiable.

        Args:
            x: map (B, C, H, W).
            tokens: (B, T, C), or None.
            signed: whether all coefficients and the signed Q count, as in the loss that teaches the predictor.
            pruned: where the pixels x (B, C, 1, K) that are left belong; None where all are.
        """
        rows, count = self._rows(x, tokens)
        q, k, _ = self._split(rows)
        if pruned is None:
            return self._scores(q[:, :, count:], k, count, x.shape[-2:], signed)
        return self._scores(q[:, :, count:], k, count, pruned.others.shape[-2:], signed, pruned.places)

    def _scores(
        self,
        q: Tensor,
        k: Tensor,
        tokens: int,
        grid: Sequence[int],
        signed: bool = False,
        places: Tensor | None = None,
    ) -> Tensor:
        reduce, restore = self.predictor.tables(tokens, grid, places)
        found = self.predictor.coefficients(q, k, reduce)
        if signed:
            return found @ restore.mT.unsqueeze(1)
        found, basis = self.predictor.sparse(found, restore)
        return largest(found, self.predictor.coef_topk) @ basis.unsqueeze(1)

    def mask(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Which pairs attend (B, heads, T + H · W, T + H · W), bool, the queries first: to look at, as nothing needs
        it."""
        rows, count = self._rows(x, tokens)
        q, k, _ = self._split(rows)
        every = torch.ones(*k.shape[:2], count, k.shape[2], dtype=torch.bool, device=x.device)
        return torch.cat([every, self._kept(q[:, :, count:], k, count, x.shape[-2:])], 2)

    def _kept(self, q: Tensor, k: Tensor, tokens: int, grid: Sequence[int]) -> Tensor:
        """Which keys k of a map the queries q of pixels attend to, bool."""
        if self.score_threshold is not None:
            return self._scores(q, k, tokens, grid) > self.score_threshold
        kept = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.bool, device=q.device)
        index = self.keys(q, k, tokens, grid)
        return ~kept if index is None else kept.scatter_(3, index.long(), True)

    def _above(
        self, q: Tensor, k: Tensor, v: Tensor, threshold: float, tokens: int, grid: Sequence[int], pruned: Pruned | None
    ) -> Tensor:
        """Attention to the keys that score more than the threshold."""
        predictor, found = self.predictor, []
        with torch.no_grad():
            reduce, restore = predictor.tables(tokens, grid, None if pruned is None else pruned.places)
            coefficients, basis = predictor.sparse(predictor.coefficients(q, k, reduce), restore)
            coefficients, basis = largest(coefficients, predictor.coef_topk), basis.unsqueeze(1)
        step = max(1, PAIRS // max(1, k.shape[0] * k.shape[1] * k.shape[2]))
        for part in slices(0, q.shape[2], step):
            with torch.no_grad():
                kept = coefficients[:, :, part] @ basis > threshold
                some = kept.any(-1, keepdim=True)
            found.append(F.scaled_dot_product_attention(q[:, :, part], k, v, attn_mask=kept | ~some) * some)
        return torch.cat(found, 2)

    def mix(
        self, x: Tensor, tokens: Tensor | None = None, pruned: Pruned | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As `forward`, of pixels that are left of a grid, too.

        Returns:
            the map, the tokens, and how much the first token looks at every pixel, the mean of the heads (B, H · W).
        """
        rows, count = self._rows(x, tokens)
        q, k, v = self._split(rows)
        grid = x.shape[-2:] if pruned is None else pruned.others.shape[-2:]
        seen, parts, pixels = None, [], q[:, :, count:]
        if count:
            logits = q[:, :, :count] * q.shape[-1] ** -0.5 @ k.mT  # in this order they fit float16
            divisor = logits.logsumexp(-1, keepdim=True)
            if pruned is not None:  # dropped pixels are zeros: their logits are 0, and so are their values
                lost = grid[0] * grid[1] - x.shape[-2] * x.shape[-1]
                divisor = torch.logaddexp(divisor, torch.full_like(divisor, math.log(lost)))
            weights = torch.exp(logits - divisor)
            parts.append(weights.to(v.dtype) @ v)
            seen = weights[:, :, 0, count:].mean(1)
        index = None
        if self.training and self.reconstruct:
            parts.append(F.scaled_dot_product_attention(pixels, k, v))
        elif self.score_threshold is not None:
            parts.append(self._above(pixels, k, v, self.score_threshold, count, grid, pruned))
        else:
            with torch.no_grad():
                index = self.keys(pixels, k, count, grid, pruned)
            attend = F.scaled_dot_product_attention if index is None else partial(sparse_attention, index=index)
            parts.append(attend(pixels, k, v))
        rows = self.proj(torch.cat(parts, 2).transpose(1, 2).flatten(2))
        x = rows[:, count:].transpose(1, 2).unflatten(2, x.shape[-2:])
        return x, None if tokens is None else rows[:, :count], seen

    def forward(self, x: Tensor, tokens: Tensor | None = None):
        x, tokens, _ = self.mix(x, tokens)
        return x if tokens is None else (x, tokens)

    def attention_maps(self, x: Tensor, place: tuple[int, int], tokens: Tensor | None = None) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, heads, H, W). The sum is 1 less what
        goes to the tokens."""
        rows, count = self._rows(x, tokens)
        q, k, _ = self._split(rows)
        query = q[:, :, count + place[0] * x.shape[-1] + place[1], None]
        kept = self._kept(query, k, count, x.shape[-2:])
        weights = (query * q.shape[-1] ** -0.5 @ k.mT).masked_fill(~kept, -math.inf).softmax(-1).nan_to_num()
        return weights[..., count:].unflatten(-1, x.shape[-2:]).squeeze(2)


class SparsifiedBlock(Block):
    """A `Block` whose mixer is a `SparsifiedAttention`.

    `forward(x, tokens, pruned)` gives x, the tokens, and what `mix` says of the look of the first token.
    """

    places = ()  # for what is left of a pruned map has no neighbors

    def forward(self, x: Tensor, tokens: Tensor, pruned: Pruned | None = None):  # type: ignore[override]
        mixer: Any = self.mixer
        mixed_x, mixed_tokens, seen = mixer.mix(self.norm1(x), self.norm1(tokens), pruned)
        x, tokens = self._add(x, tokens, self.scale1, mixed_x, mixed_tokens)
        x, tokens = self._add(x, tokens, self.scale2, self.mlp(self.norm2(x)), self.mlp(self.norm2(tokens)))
        return x, tokens, seen


# --- network ---------------------------------------------------------------------------------------------------------


class Sparsifiner(Isotropic):
    """DeiT with `SparsifiedAttention` in all blocks; by the options of `Isotropic` any other plain vision transformer,
    such as DINOv2. Register tokens attend to all keys, too, and share the class token's row of the tables.

    Pixels that are dropped cost nothing behind their block. The maps of the dense form, which the authors do not have,
    hold every dropped pixel as it was last.

    Args:
        dim, depth, class_position, **common: as of `Isotropic`.
        heads: number of attention heads.
        keep: keys of a query; one value, or one for each block (see `SparsifiedAttention`).
        token_keep: share of the pixels that are left behind a block, above 0 and up to 1 (rounded up); one value, or
            one for each block, none above that before. Those stay that the class token looks at most. None are dropped
            in a training with `reconstruct`. It goes with any `keep`: keys are chosen among the pixels that are left.
        reduce_tokens, reduce_width, coef_topk, coef_threshold, basis_threshold, shared, scale, resize: as of
            `ConnectivityPredictor`.
        score_threshold, reconstruct: as of `SparsifiedAttention`.
        qkv_bias: whether queries, keys and values have a bias.
    """

    dense_names: Sequence[str] = (r"^rescale\.", r"\.predictor\.")  # files of DeiT have no predictors
    fixed_sizes = {
        suffix: dict.fromkeys(("height", "width"), "the number of keys of a query is a share of the pixels")
        for suffix in (".onnx", ".pt2")
    }
    block_type = SparsifiedBlock
    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights

    def __init__(
        self,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        *,
        keep: float | Sequence[float] = 0.25,
        token_keep: float | Sequence[float] = 1.0,
        reduce_tokens: float = 6,
        reduce_width: int = 2,
        coef_topk: int | None = 8,
        coef_threshold: float = 0.0,
        basis_threshold: float = 0.02,
        score_threshold: float | None = None,
        shared: bool = False,
        scale: float | None = None,
        resize: bool = True,
        reconstruct: bool = False,
        qkv_bias: bool = True,
        class_position: bool = True,
        patch_size: int = 16,
        img_size: int | Sequence[int] = 224,
        **common,
    ):
        self.token_keep = per_stage("token_keep", token_keep, depth, "blocks")
        if not all(0 < rate <= 1 for rate in self.token_keep):
            raise ValueError(f"token_keep={token_keep} must lie above 0 and up to 1")
        if any(rate > before for before, rate in zip(self.token_keep, self.token_keep[1:])):
            raise ValueError(f"token_keep={token_keep} must not rise: pixels that were dropped do not come back")
        mixer = dict(
            type="SparsifiedAttention",
            heads=heads,
            qkv_bias=qkv_bias,
            size=[-(-side // patch_size) for side in image_sides(img_size)],
            score_threshold=score_threshold,
            reconstruct=reconstruct,
            reduce_tokens=reduce_tokens,
            reduce_width=reduce_width,
            coef_topk=coef_topk,
            coef_threshold=coef_threshold,
            basis_threshold=basis_threshold,
            shared=shared,
            scale=scale,
            resize=resize,
        )
        mixers = [dict(mixer, keep=value) for value in per_stage("keep", keep, depth, "blocks")]
        super().__init__(dim, depth, mixers, 0, class_position, patch_size=patch_size, img_size=img_size, **common)

    @classmethod
    def check_values(cls, given: Mapping[str, Any]) -> None:
        super().check_values(given)
        check_shares("token_keep", given.get("token_keep", 1.0))

    def run(self, block: nn.Module, x: Tensor, tokens: Tensor | None, notes: Notes) -> tuple[Tensor, Tensor | None]:
        x, tokens, notes["seen"] = self.blocks.run(block, x, tokens, notes.get("pruned"))  # type: ignore[arg-type]
        return x, tokens

    @property
    def leaves_out(self) -> str:
        if min(self.token_keep) < 1:
            return "pixels"
        mixers: list[Any] = [block.mixer for block in self.blocks]
        return "keys" if any(mixer.keep != 1 or mixer.score_threshold is not None for mixer in mixers) else ""

    def prune(self, index: int, x: Tensor, tokens: Tensor | None, notes: Notes) -> tuple[Tensor, Tensor | None]:
        """As of `Isotropic`: behind the blocks that `token_keep` names."""
        rate, before, block = self.token_keep[index], notes.get("pruned"), self.blocks[index]
        if rate == 1 or (self.training and block.mixer.reconstruct):  # type: ignore[union-attr]
            return x, tokens
        grid = x if before is None else before.others
        count = math.ceil(rate * (grid.shape[-2] * grid.shape[-1]))
        if count < x.shape[-2] * x.shape[-1]:
            x, notes["pruned"] = prune(x, best(notes["seen"], count), before)
        return x, tokens

    @property
    def checkpoint_optional(self) -> Sequence[str]:
        return [*super().checkpoint_optional, r"\.predictor\.restore$"]  # a file has the shared table twice


class Times(nn.Module):
    """x times a number."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class TokenLabelRowsHead(RowsHead):
    """The head of a class token, and one of every pixel (arXiv 2104.10858).

    Args:
        dim, num_classes: as of `Head`.

    `forward(x (B, 1 + N, C), pre_logits, notes)` gives in inference the logits of the token, and half the largest of
    each class over the pixels; in training, with notes, (logits, logits of the pixels that are left (B, classes, h,
    w)).
    """

    def __init__(self, dim: int, num_classes: int):
        super().__init__(dim, num_classes, None)
        self.auxiliary = Head(dim, num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False, notes: Mapping[str, Any] | None = None):
        token = self.vector(x)
        if pre_logits or not self.num_classes:
            return token
        logits = self.fc(token)
        if self.training and not notes:
            return logits
        assert self.auxiliary is not None
        pixels = self.auxiliary.fc(x[:, 1:])
        if not self.training:
            return logits + 0.5 * pixels.amax(1)
        assert notes is not None
        return logits, pixels.transpose(1, 2).unflatten(2, notes["rest"].shape[-2:])

    def fused(self) -> "TokenLabelRowsHead":
        """Itself: inference needs both heads, and there are no batch norms."""
        return self


class SparsifinerLVViT(Sparsifiner):
    """LV-ViT with `SparsifiedAttention` in all blocks: convolutions before the patches, residual branches over `skip`,
    and a head that labels every pixel, too. In training it gives (logits, logits of every pixel (B, num_classes, h,
    w)).

    The mixing of tokens in LV-ViT's own training is left out, as the authors of Sparsifiner do.

    Args:
        dim, depth, heads, qkv_bias, mlp_ratio, eps, **common: as of `Sparsifiner` and `Isotropic`.
        skip: divisor of both residual branches.
        stem_dim: channels inside the stem.
        pixel_logits: whether the head labels every pixel, too.
        patch_size: side of the patches, even: the first convolution halves the image.
    """

    unused = ("layer_scale", "registers")

    def __init__(
        self,
        dim: int = 384,
        depth: int = 16,
        heads: int = 6,
        *,
        skip: float = 2.0,
        stem_dim: int = 64,
        pixel_logits: bool = True,
        qkv_bias: bool = False,
        mlp_ratio: float | Sequence[float] = 3.0,
        eps: float = 1e-5,
        patch_size: int = 16,
        **common,
    ):
        if patch_size % 2:
            raise ValueError(f"patch_size={patch_size} must be even: the first convolution halves the image")
        if not 0 < skip < math.inf:
            raise ValueError(f"skip={skip} must be a number above 0")
        self.skip, self.stem_dim = skip, stem_dim
        super().__init__(
            dim, depth, heads, qkv_bias=qkv_bias, mlp_ratio=mlp_ratio, eps=eps, patch_size=patch_size, **common
        )
        if pixel_logits and self.num_classes is not None:
            self.head = TokenLabelRowsHead(self.channels[-1], self.num_classes)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        patches = Patches(self.stem_dim, dim, self.patch_size // 2)
        return nn.Sequential(*relu_convs(in_channels, self.stem_dim), patches)

    def make_block(self, index: int, dim: int, drop_path: float) -> nn.Module:
        block: Any = super().make_block(index, dim, drop_path)
        block.scale1 = block.scale2 = Times(1 / self.skip)
        return block


def _size(dim: int, heads: int) -> dict:
    return dict(dim=dim, heads=heads)


# The authors published no weights; they claim an accuracy within 0.4 % of DeiT's. They did not train sparsifiner_tiny.
VARIANTS = {
    "sparsifiner_tiny": Variant(_size(192, 3), 5_918_632),
    "sparsifiner_small": Variant(_size(384, 6), 22_251_880),
    "sparsifiner_base": Variant(_size(768, 12), 86_768_872),
}

LV_VIT_VARIANTS = {"sparsifiner_lvvit_small": Variant({}, 26_420_112, size=224)}

# --- the authors' checkpoints, and those of plain vision transformers -------------------------------------------------

RULES: Rules = [
    (r"mask_predictor\.proj_c_([qk])\.", r"predictor.\1."),
    (r"mask_predictor\.proj_n$", r"predictor.reduce"),
    (r"mask_predictor\.proj_back_n$", r"predictor.restore"),
    *vit_names.RULES,
]

LV_VIT_RULES: Rules = [
    (r"^patch_embed\.(conv|bn)(\d)\.", lambda m: f"stem.{2 * int(m[2]) - 2}.{'conv' if m[1] == 'conv' else 'norm'}."),
    (r"^patch_embed\.proj\.", r"stem.6."),
    (r"^aux_head\.", r"head.auxiliary.fc."),
    *RULES,
]

register(Sparsifiner, VARIANTS, RULES)
register(SparsifinerLVViT, LV_VIT_VARIANTS, LV_VIT_RULES)
