"""Vision Remember: between two layers of a language model, each vision token reads its own region of the image again.

"Vision Remember: Alleviating Visual Forgetting in Efficient MLLM with Vision Feature Resample", arXiv 2506.03928,
without official code. The vision tokens V of an image, a contiguous span of the hidden states, attend to the features
of several layers of the vision encoder, each token to its own region only (dense/layers/local_resample.py has the
formula). A second module may follow, which a later version of the abstract names: self-attention, without a causal
mask, of the vision tokens and one token that stands for the text.

From the abstracts: between decoder layers, queries that have seen the text, several encoder layers side by side along
the channels, local regions, both modules. From a review: encoder layers 13, 18 and 23. All else is ours, and so may
differ from the paper: norms, heads and biases, the rule of the regions, zero at the start, one module for each place
with weights of its own, the decoder layers, the second module's form.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data import one_of
from ..layers import LocalResample

GUIDES = ("mean", "last")


class BidirectionalAttention(nn.Module):
    """Residual self-attention, without a mask, of the vision tokens of an image and of one text-guided token. The
    output projection is zero at the start. The text's own states are left as they are.

    Args:
        dim: channels D.
        heads: number of heads, which divides D.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        self.heads, self.norm = heads, nn.LayerNorm(dim)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, vision: Tensor, guide: Tensor) -> Tensor:
        """Vision tokens (N, K, D) and the text-guided token (N, D) of each image -> vision tokens."""
        normed = self.norm(torch.cat([vision, guide.unsqueeze(1)], dim=1))
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, x in ((self.q_proj, normed[:, :-1]), (self.k_proj, normed), (self.v_proj, normed))
        )
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return vision + self.out_proj(found).to(vision.dtype)


class VisionRemember(LocalResample):
    """What stands behind one decoder layer. At the start it changes nothing.

    Args:
        dim: channels D of the language model.
        vision_dim: channels C_v of the vision encoder.
        levels: number L of the encoder's layers that are read.
        heads: number of heads, which divides `inner`.
        inner: channels of q, k and v; D by default.
        halo: number of cells by which a region is larger on each side.
        levels_mode: "concat" or "sum", as of `LocalResample`.
        bidirectional: whether the second module follows. It has the same number of heads.
        guide: the text-guided token: "mean" of the prompt's hidden states, or the "last" of them.

    Raises:
        ValueError: sizes below 1, heads that do not divide, another mode or guide.
    """

    def __init__(
        self,
        dim: int,
        vision_dim: int,
        levels: int = 3,
        heads: int = 16,
        inner: int | None = None,
        halo: int = 0,
        levels_mode: str = "concat",
        bidirectional: bool = False,
        guide: str = "mean",
    ):
        one_of("guide", guide, GUIDES)
        super().__init__(dim, (vision_dim,) * levels, heads, inner, halo, levels_mode)
        self.guide, self.mutual = guide, BidirectionalAttention(dim, heads) if bidirectional else None

    def forward(
        self,
        hidden: Tensor,
        features: Sequence[Tensor],
        span: tuple[int, int],
        grid: tuple[int, int],
        feature_grid: tuple[int, int],
        prompt: Tensor | None = None,
    ) -> Tensor:
        """The hidden states with other vision tokens; all other positions are the same bit for bit.

        Samples of a batch share the span and the grids. Others are to be given one by one.

        Args:
            hidden: states (B, T, D) behind a decoder layer.
            features: L tensors (B, H·W, C_v), row by row, without class or register tokens.
            span: the vision tokens' first position, and the one behind their last; two equal numbers are no image.
            grid: rows and columns (h, w) of the vision tokens.
            feature_grid: rows and columns (H, W) of the features.
            prompt: text of the prompt (B, T), bool, for the second module; by default all that is outside the span.

        Raises:
            ValueError: a span outside the sequence, grids that do not fit the numbers of tokens.
        """
        batch, length = hidden.shape[:2]
        start, stop = span
        if not 0 <= start <= stop <= length:
            raise ValueError(f"span={tuple(span)} must lie in the {length} positions of the hidden states")
        if start == stop:
            return hidden
        _check_grid("grid", grid, stop - start, "the span")
        maps = [_on_grid(x, feature_grid) for x in features]
        places = torch.arange(start, stop, device=hidden.device).view(1, *grid).expand(batch, -1, -1)
        if prompt is None and self.mutual is not None:
            prompt = torch.ones(batch, length, dtype=torch.bool, device=hidden.device)
            prompt[:, start:stop] = False
        return self.update(hidden, torch.arange(batch, device=hidden.device), places, *self.read(maps), prompt)

    def update(
        self, hidden: Tensor, samples: Tensor, places: Tensor, k: Tensor, v: Tensor, prompt: Tensor | None = None
    ) -> Tensor:
        """The same for N images, each anywhere in the batch.

        Args:
            hidden: states (B, T, D).
            samples: sample of each image (N,), int64.
            places: position in the sequence of each vision token (N, h, w), int64.
            k, v: what `read` gave of the N images.
            prompt: text of the prompts (B, T), bool; only the second module asks for it.
        """
        at = samples[:, None, None].expand_as(places), places
        vision = self.resample(hidden[at], k, v)
        if self.mutual is not None:
            assert prompt is not None
            guide = _guides(hidden, prompt, self.guide)[samples]
            vision = self.mutual(vision.flatten(1, 2), guide).view_as(vision)
        return hidden.index_put(at, vision)


def _guides(hidden: Tensor, prompt: Tensor, guide: str) -> Tensor:
    """The text-guided token of each sample (B, D)."""
    if not prompt.any(1).all():
        raise ValueError("the text-guided token needs a prompt with text in every sample")
    if guide == "last":
        last = (prompt * torch.arange(1, prompt.shape[1] + 1, device=prompt.device)).argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    weight = prompt.unsqueeze(-1)
    return hidden.masked_fill(~weight, 0).sum(1) / weight.sum(1)


def _check_grid(name: str, grid: tuple[int, int], count: int, of: str) -> None:
    if min(grid) < 1 or grid[0] * grid[1] != count:
        raise ValueError(f"{name}={tuple(grid)} has {grid[0] * grid[1]} cells, and {of} has {count} tokens")


def _on_grid(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, H·W, C) -> (B, H, W, C)."""
    count = features.shape[1]
    if count != grid[0] * grid[1]:
        more = "; class and register tokens must be left out" if count > grid[0] * grid[1] else ""
        raise ValueError(f"feature_grid={tuple(grid)} has {grid[0] * grid[1]} cells, and features have {count}{more}")
    return features.unflatten(1, grid)


class PooledProjector(nn.Module):
    """An efficient projector: the tokens of the encoder are averaged over the regions of a coarser grid, and then
    projected as before. It stands for the compressing projectors of the paper, which says that any will do.

    Args:
        projector: the model's own, from (N, K, C_v) to (N, K, D).
        feature_grid: rows and columns (H, W) of the tokens that it gets.
        grid: rows and columns (h, w) of the tokens that it gives.
    """

    def __init__(self, projector: nn.Module, feature_grid: tuple[int, int], grid: tuple[int, int]):
        super().__init__()
        self.projector, self.feature_grid, self.grid = projector, feature_grid, grid

    def forward(self, features: Tensor) -> Tensor:
        fine = _on_grid(features, self.feature_grid).permute(0, 3, 1, 2)
        return self.projector(F.adaptive_avg_pool2d(fine, self.grid).flatten(2).mT)


# --- in a model of transformers --------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What the encoder saw last."""

    feature_grid: tuple[int, int]
    tokens: int  # that the projector made of an image
    features: dict[int, Tensor]  # (N, prefix + H·W, C_v) by layer
    kept: dict[int, tuple[Tensor, Tensor]]  # keys and values of an insertion, where no gradient is asked for


@dataclass
class _Places:
    """Where the vision tokens of a prompt are."""

    samples: Tensor  # (N,)
    images: Tensor | None  # (N,), numbers in what the encoder saw; None where they are those, one by one
    tokens: Tensor  # (N, h, w)
    prompt: Tensor  # (B, T)


class Insertions(nn.Module):
    """Vision Remember in a LLaVA-shaped model of transformers; `insert` makes it, and says what it does."""

    def __init__(
        self,
        model: Any,
        encoder_layers: Sequence[int] | None,
        decoder_layers: Sequence[int] | None,
        grid: tuple[int, int] | None,
        options: dict[str, Any],
    ):
        super().__init__()
        inner = getattr(model, "model", model)
        shaped = hasattr(inner, "vision_tower") and hasattr(inner, "multi_modal_projector")
        if not shaped or hasattr(model.config, "image_grid_pinpoints"):
            raise ValueError(
                f"{type(model).__name__} must be of LLaVA's shape: with a vision_tower, a multi_modal_projector, and "
                "one grid of tokens for an image"
            )
        tower, projector = inner.vision_tower, inner.multi_modal_projector
        encoder, decoder = _layers(tower), _layers(model.get_decoder())
        depth = len(encoder)
        if encoder_layers is None:
            encoder_layers = sorted({max(0, depth * share // 24 - 1) for share in (14, 19, 24)})
        if decoder_layers is None:
            decoder_layers = sorted({len(decoder) // 4, len(decoder) // 2})
        for name, chosen, all_of in (("encoder", encoder_layers, encoder), ("decoder", decoder_layers, decoder)):
            if not len(chosen) or len({*chosen}) < len(chosen) or not {*chosen} <= {*range(len(all_of))}:
                raise ValueError(
                    f"{name}_layers={list(chosen)} must be different layers of the {name}, 0 to {len(all_of) - 1}"
                )
        text, vision = model.config.get_text_config(), model.config.vision_config
        self.encoder_layers, self.decoder_layers, self.grid = tuple(encoder_layers), tuple(decoder_layers), grid
        self.image_token, self.patch = model.config.image_token_id, vision.patch_size
        options = dict(heads=text.num_attention_heads) | options
        dims = text.hidden_size, vision.hidden_size, len(encoder_layers)
        self.behind = nn.ModuleList(VisionRemember(*dims, **options) for _ in decoder_layers)
        self._asked: tuple[Tensor, Tensor | None, Tensor | None]
        self._seen: _Seen | None = None
        self._places: _Places | None = None
        self.hooks = [
            tower.register_forward_pre_hook(self._start, with_kwargs=True),
            model.register_forward_pre_hook(self._ask, with_kwargs=True),
            projector.register_forward_hook(self._count),
            *(encoder[i].register_forward_hook(self._keeper(i)) for i in encoder_layers),
            *(decoder[i].register_forward_hook(self._updater(n)) for n, i in enumerate(decoder_layers)),
        ]

    def _start(self, tower: nn.Module, args: tuple, kwargs: dict) -> None:
        images = args[0] if args else kwargs["pixel_values"]
        height, width = (side // self.patch for side in images.shape[-2:])
        self._seen = _Seen((height, width), 0, {}, {})

    def _keeper(self, layer: int) -> Callable:
        def keep(module: nn.Module, args: tuple, output: Any) -> None:
            if self._seen is not None:
                self._seen.features[layer] = output if isinstance(output, Tensor) else output[0]

        return keep

    def _count(self, projector: nn.Module, args: tuple, output: Tensor) -> None:
        if self._seen is not None:
            self._seen.tokens = output.shape[-2]

    def _ask(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """Keep what says where the images of this call are, until the next one: a backward may compute layers again."""
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            raise ValueError("images are found by their tokens: give input_ids, not inputs_embeds alone")
        self._asked, self._places = (ids, kwargs.get("attention_mask"), kwargs.get("labels")), None
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")  # by `generate`, before this call
        if kwargs.get("pixel_values") is None and encoded is None:
            self._seen = None  # images of an earlier call are not those of this one

    def _locate(self) -> _Places | None:
        """The vision tokens of this call, once the encoder has seen its images; None without an image."""
        ids, mask, labels = self._asked
        vision = ids == self.image_token
        if self._places is not None or not vision.any():
            return self._places
        if self._seen is None or not self._seen.features:
            raise ValueError("the prompt has vision tokens, but the encoder has seen no image: give pixel_values")
        grid = self.grid or _similar(self._seen.feature_grid, self._seen.tokens)
        size, known = grid[0] * grid[1], len(next(iter(self._seen.features.values())))
        counts = vision.sum(1)
        repeats, rest = divmod(int(counts.sum()), size * known)
        if rest or not repeats or (counts % size).any() or len(ids) % repeats:
            raise ValueError(
                f"grid={tuple(grid)}: {counts.tolist()} vision tokens in {len(ids)} prompts are not those of "
                f"the {known} images that the encoder saw"
            )
        samples, tokens = vision.nonzero(as_tuple=True)
        samples = samples.view(-1, size)[:, 0]
        images = None
        if repeats > 1:  # `generate` repeats each prompt, one copy behind the other, for beams and for several answers
            own = torch.arange(known, device=ids.device).split((counts[::repeats] // size).tolist())
            images = torch.cat([some for some in own for _ in range(repeats)])
        text = ~vision
        if mask is not None and mask.ndim == 2:
            text = text & (mask[:, -ids.shape[1] :] != 0)
        if labels is not None:
            text = text & ((labels != -100).cumsum(1) == 0)  # an answer must not be seen before it is given
        self._places = _Places(samples, images, tokens.view(-1, *grid), text)
        return self._places

    def _updater(self, number: int) -> Callable:
        def update(module: nn.Module, args: tuple, output: Any) -> Any:
            places = self._locate()
            if places is None:
                return None
            hidden = output if isinstance(output, Tensor) else output[0]
            k, v = (x.to(hidden.device) for x in self._read(number))
            if places.images is not None:
                k, v = (x[places.images.to(x.device)] for x in (k, v))
            samples, tokens, prompt = (x.to(hidden.device) for x in (places.samples, places.tokens, places.prompt))
            hidden = self._module(number).update(hidden, samples, tokens, k, v, prompt)
            return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

        return update

    def _module(self, number: int) -> VisionRemember:
        found = self.behind[number]
        assert isinstance(found, VisionRemember)
        return found

    def _read(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values of an insertion: once for what the encoder saw, unless a gradient is asked for."""
        seen, module = self._seen, self._module(number)
        assert seen is not None
        if torch.is_grad_enabled() or number not in seen.kept:
            height, width = seen.feature_grid
            features = [seen.features[layer] for layer in self.encoder_layers]
            if features[0].shape[1] < height * width:
                raise ValueError(f"the encoder gives {features[0].shape[1]} tokens for {height} x {width} patches")
            weight = module.k_proj.weight
            maps = [x[:, -height * width :].unflatten(1, (height, width)).to(weight) for x in features]
            kept = module.read(maps)
            if torch.is_grad_enabled():
                return kept
            seen.kept[number] = kept
        return seen.kept[number]


def insert(
    model: Any,
    encoder_layers: Sequence[int] | None = None,
    decoder_layers: Sequence[int] | None = None,
    grid: tuple[int, int] | None = None,
    **options: Any,
) -> Insertions:
    """Put Vision Remember behind layers of a LLaVA-shaped model of transformers.

    Its modules become the model's `vision_remember`, of the model's dtype and device, so that they are trained, moved
    and saved with it. They run where a prompt with an image is read: decoding with a cache of keys does not call them.
    Keys and values are computed once for the images that the encoder saw last, unless gradients are asked for. Prompts
    may have several images, none, and padding on either side. All images of one call are of one size, as LLaVA's are.
    Models that cut an image into tiles (LLaVA-NeXT) are refused: their tokens are no grid.

    The text-guided token of the second module is made of what stands before the first label, so that no answer is seen
    in training before it is given; without labels, as in decoding, of all text of the call. With gradient checkpointing
    a backward must come before the next call.

    Args:
        model: the model, with `vision_tower` and `multi_modal_projector`.
        encoder_layers: blocks of the vision encoder that are read, from 0, behind the block and before the final norm.
            By default 13, 18 and 23 of 24 blocks (of other encoders those at the same shares of the depth: ours).
        decoder_layers: layers of the language model, from 0, behind each of which a module stands. By default ours:
            those at a quarter and at half of the depth.
        grid: rows and columns of the projector's tokens; by default of the proportions of the encoder's grid.
        **options: of `VisionRemember`. The number of heads is the language model's by default.

    Returns:
        The insertions; `remove(model)` takes them out again.

    Raises:
        ValueError: a layer that is not there, a model of another shape, options that do not fit. And when the model
            runs: vision tokens that are no grid, or not those of the images.
    """
    if getattr(model, "vision_remember", None) is not None:
        raise ValueError(f"{type(model).__name__} has vision_remember already: remove(model) first")
    found = Insertions(model, encoder_layers, decoder_layers, grid, options)
    weight = model.get_input_embeddings().weight
    model.vision_remember = found.to(device=weight.device, dtype=weight.dtype).train(model.training)
    return found


def remove(model: Any) -> None:
    """Take out what `insert` put into a model: it computes as before."""
    found = getattr(model, "vision_remember", None)
    if found is None:
        raise ValueError(f"{type(model).__name__} has no vision_remember")
    for hook in found.hooks:
        hook.remove()
    del model.vision_remember


def _layers(module: nn.Module) -> nn.ModuleList:
    """The blocks of an encoder or a decoder."""
    lists = [x for name, x in module.named_modules() if isinstance(x, nn.ModuleList) and "layer" in name.split(".")[-1]]
    if not lists:
        raise ValueError(f"{type(module).__name__} has no list of layers")
    return max(lists, key=len)


def _similar(feature_grid: tuple[int, int], count: int) -> tuple[int, int]:
    """A grid of `count` cells with the proportions of a finer one."""
    height, width = feature_grid
    rows = math.isqrt(count * height // width)
    if not rows or rows * rows * width != count * height or count % rows:
        raise ValueError(
            f"{count} vision tokens of an image are no grid of the proportions of {height} x {width}: give "
            "grid=(rows, columns)"
        )
    return rows, count // rows
