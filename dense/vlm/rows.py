"""The attention of a few tokens, beside a fused attention that keeps none.

A fused attention gives no weights, and an eager one keeps all: layers x heads x T x T numbers, gigabytes for one image.
What is asked for is a row: how the last token looks at the vision tokens. Here a model keeps its fused attention
everywhere. At the layers asked for, queries and keys are looked at on their way into it, and

    a = mean over heads of softmax(q_last kᵀ · scale), over all keys, of which the vision tokens are kept

is computed beside it, in float32, from the cache of keys: O(T) for each layer and step. What the model computes is not
touched, and `look` checks that: it compares the logits with and without.

`rows_of` is for models of transformers, `class_rows` for any network whose attention is PyTorch's fused one.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NAME = "attlas_rows"  # of the attention function that is registered with transformers
Queries = str | Sequence[int]


def row_weights(
    query: Tensor,
    key: Tensor,
    rows: Sequence[int],
    scale: float | None = None,
    mask: Tensor | None = None,
    causal_from: int | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Some rows of softmax(q kᵀ · scale + mask), by the mean over the heads.

    Args:
        query: (B, heads, Q, d), with what positions do to it.
        key: (B, key heads, K, d); each serves heads / key heads heads side by side.
        rows: numbers R of the queries asked for, from 0.
        scale: factor of the products; d^-1/2 by default.
        mask: bool, True where a query looks, or what is added: (B or 1, heads or 1, Q, K or more); or (B, K), True at
            keys that are there; None for none.
        causal_from: number of the key at which the first query stands; keys behind a query's own are not looked at.
            None where the mask says it all.
        window: number of keys, the query's own the last, that a causal query looks at; None for all.
        softcap: c of logits c tanh(x / c); None for x.
        sinks: (heads,), a logit for each head that takes attention to nowhere; None for none.

    Returns:
        (B, R, K), float32. Nothing of Q x K is made.
    """
    chosen = torch.as_tensor(rows, device=query.device)
    wide = torch.promote_types(query.dtype, torch.float32)
    few, keys = query[:, :, chosen].to(wide), key.to(wide)
    batch, _, count, dim = few.shape
    grouped = few.unflatten(1, (keys.shape[1], -1)).flatten(2, 3)  # heads that share a key are rows of one product
    logits = (grouped @ keys.mT * (dim**-0.5 if scale is None else scale)).unflatten(2, (-1, count)).flatten(1, 2)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    length = keys.shape[2]
    if mask is not None:
        part = mask[:, None, None, :length] if mask.ndim == 2 else mask[:, :, chosen, :length]
        additive = part.is_floating_point()
        logits = logits + part if additive else logits.masked_fill(part == 0, -torch.inf)
    if causal_from is not None:
        ahead = torch.arange(length, device=query.device) - (causal_from + chosen[:, None])
        unseen = ahead > 0 if window is None else (ahead > 0) | (ahead <= -window)
        logits = logits.masked_fill(unseen, -torch.inf)
    if sinks is not None:
        logits = torch.cat([logits, sinks.to(wide)[None, :, None, None].expand(batch, -1, count, 1)], dim=-1)
    return logits.softmax(-1)[..., :length].mean(1).float()


# --- models of transformers ------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """What is recorded at one layer while a model decodes a sequence."""

    implementation: str  # of the attention that the model uses
    tokens: Tensor  # places of the N vision tokens in the sequence
    queries: Queries
    length: int = 0  # of the sequence so far
    total: Tensor | None = None  # (N,), over the queries that are averaged
    averaged: int = 0
    steps: list[Tensor] = field(default_factory=list)  # (N,), for each step

    def rows(self, count: int) -> list[int]:
        """Which of the next `count` tokens are asked for, from 0."""
        start, places = self.length, range(self.length, self.length + count)
        if self.queries == "last":
            return [count - 1]
        first = int(self.tokens[-1]) + 1
        wanted = places if isinstance(self.queries, str) else [int(place) for place in self.queries if place in places]
        return [place - start for place in wanted if place >= first]

    def take(self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: Mapping[str, Any]) -> None:
        if mask is not None and not isinstance(mask, Tensor):
            raise ValueError(f"a mask of {type(mask).__name__}: load the model with attn_implementation='sdpa'")
        count = query.shape[2]
        if count == key.shape[2]:  # the whole sequence: the first step, or any step without a cache
            self.length, self.total, self.averaged = 0, None, 0
        rows, self.length = self.rows(count), self.length + count
        first = max(0, self.length - key.shape[2])  # the place of the first key, where a window has dropped some
        if self.queries == "last":
            self.total, self.averaged = None, 0
        if rows:
            causal = options.get("is_causal")
            causal = getattr(module, "is_causal", True) if causal is None else causal
            said = mask is not None and mask.ndim == 4
            found = row_weights(
                query.detach(),
                key.detach(),
                rows,
                options.get("scaling"),
                mask,
                None if said or not causal else self.length - count - first,
                None if said else options.get("sliding_window"),
                options.get("softcap"),
                options.get("s_aux"),
            )[0]
            tokens = (self.tokens - first).to(found.device)
            kept = found[:, tokens.clamp(min=0)].masked_fill(tokens < 0, 0).sum(0)
            self.total = kept if self.total is None else self.total + kept
            self.averaged += len(rows)
        assert self.total is not None
        self.steps.append(self.total / self.averaged)


def _watched_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **options: Any
) -> Any:
    """What transformers calls at a watched layer: the row, and then the model's own attention on the same arguments."""
    watch: Watch = module.attlas_watch  # type: ignore[assignment]
    watch.take(module, query, key, attention_mask, options)
    return _own(module, watch.implementation)(module, query, key, value, attention_mask, *args, **options)


def _own(module: nn.Module, implementation: str) -> Callable:
    """The attention function that a module of transformers would call."""
    home = sys.modules[type(module).__module__]
    return home.ALL_ATTENTION_FUNCTIONS.get_interface(implementation, getattr(home, "eager_attention_forward", None))


def attentions(model: nn.Module) -> dict[int, nn.Module]:
    """The attentions of the decoder of a model of transformers, by number of the layer, that can be watched."""
    found = {}
    for module in model.get_decoder().modules():  # type: ignore[operator]
        home, number = sys.modules[type(module).__module__], getattr(module, "layer_idx", None)
        named = type(module).__name__.endswith("Attention")
        if named and isinstance(number, int) and hasattr(module, "config") and hasattr(home, "ALL_ATTENTION_FUNCTIONS"):
            found[number] = module
    return found


@contextmanager
def rows_of(
    model: nn.Module, layers: Sequence[int], tokens: Tensor, queries: Queries = "last"
) -> Iterator[dict[int, Watch]]:
    """Record the attention of some queries to the vision tokens, in every forward pass of one sequence.

    Args:
        model: a decoder, or what has `get_decoder()`, of transformers, with any attention but flex_attention.
        layers: numbers of the layers, from 0.
        tokens: places of the vision tokens in the sequence (N,), rising.
        queries: "last", the last token of each step; "text", the mean of all tokens behind the image up to there; or
            places in the sequence, behind the image, whose mean is the same for all steps.

    Raises:
        ValueError: a layer is not there, or cannot be watched; other queries.
    """
    from transformers import AttentionInterface

    found = attentions(model)
    if not len(layers) or not set(layers) <= set(found):
        raise ValueError(f"layers={list(layers)}: attention of this model can be watched at {sorted(found)}")
    check_queries(queries, int(tokens[-1]) + 1)
    AttentionInterface.register(NAME, _watched_attention)
    watches: dict[int, Watch] = {}
    own: dict[int, Any] = {layer: found[layer].config for layer in layers}
    try:
        for layer, config in own.items():
            module: Any = found[layer]
            watches[layer] = Watch(config._attn_implementation, tokens, queries)
            module.attlas_watch = watches[layer]
            # only this module's own view of the config: masks are made as the rest of the model wants them
            module.config = copy.deepcopy(config)
            module.config._attn_implementation = NAME
        yield watches
    finally:
        for layer, config in own.items():
            found[layer].config = config
            if layer in watches:
                del found[layer].attlas_watch


def check_queries(queries: Queries, behind: int) -> None:
    """Refuse queries that are none, or stand before the end of the image, whose tokens they do not all see."""
    if isinstance(queries, str):
        if queries not in ("last", "text"):
            raise ValueError(f"queries={queries!r} must be 'last', 'text', or places in the sequence")
    elif not len(queries) or min(queries) < behind or len(set(queries)) < len(queries):
        raise ValueError(f"queries={list(queries)} must be different places behind the image, from {behind} on")


@dataclass
class Look:
    """What a model looked at while it answered."""

    attention: (
        np.ndarray
    )  # (T, L, N), float32: of T steps and L layers to N vision tokens, mean over heads; no sums of 1
    layers: tuple[int, ...]
    queries: str  # whose attention it is, in words
    ids: list[int]  # T, that it generated
    difference: float  # greatest change of the first step's logits by looking


def look(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    layers: Sequence[int],
    queries: Queries = "last",
    max_new_tokens: int = 32,
    tolerance: float = 0.0,
) -> Look:
    """Generate greedily, with the model's cache of keys, and record what it looks at at each step.

    First the model reads the prompt without a look. Its logits must be the same with one, else nothing is returned.

    Args:
        model: a vision-language model of transformers, in inference mode.
        inputs: what its processor gave for one prompt with one image, on the model's device.
        layers, queries: as of `rows_of`.
        max_new_tokens: most steps; the step that gave the end token is the last.
        tolerance: greatest difference of logits that is let pass. More than 0 is for devices whose kernels give other
            numbers at each call.

    Raises:
        ValueError: of a batch, without an image, or as of `rows_of`.
        RuntimeError: the logits differ; the model passed an attention by.
    """
    ids = inputs["input_ids"]
    if ids.shape[0] != 1:
        raise ValueError(f"input_ids of shape {tuple(ids.shape)}: one prompt at a time")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
    tokens = vision_tokens(model.config, ids)
    if not isinstance(queries, str) and len(queries) and max(queries) >= ids.shape[1]:
        raise ValueError(f"queries={list(queries)}: the prompt has {ids.shape[1]} tokens")
    plain = greedy(model, inputs, 1)
    with rows_of(model, layers, tokens, queries) as watches:
        seen = greedy(model, inputs, max_new_tokens)
    difference = float((plain.logits[0].float() - seen.logits[0].float()).abs().max())
    if not difference <= tolerance:
        raise RuntimeError(f"looking changed the logits by {difference:.3g}, and tolerance is {tolerance}")
    made = seen.sequences[0, ids.shape[1] :].tolist()
    if short := [layer for layer, watch in watches.items() if len(watch.steps) != len(made)]:
        raise RuntimeError(f"layers {short} of {type(model).__name__} did not call their attention once a step")
    text = {"last": "the last token of each step", "text": "the mean of all tokens behind the image"}
    said = text[queries] if isinstance(queries, str) else f"the mean of the tokens at {list(queries)}"
    attention = torch.stack([torch.stack(watches[layer].steps) for layer in layers], dim=1).float().cpu().numpy()
    return Look(attention, tuple(layers), said, made, difference)


def vision_tokens(config: Any, ids: Tensor) -> Tensor:
    """Places (N,) of the vision tokens in a prompt (1, T).

    Raises:
        ValueError: the config names no image token, or there is none in the prompt.
    """
    token = getattr(config, "image_token_id", None)
    token = getattr(config, "image_token_index", None) if token is None else token
    if token is None:
        raise ValueError(f"{type(config).__name__} names no image token (image_token_id)")
    found = (ids[0] == token).nonzero().flatten()
    if not len(found):
        raise ValueError(f"the prompt has no image token ({token})")
    return found


@torch.no_grad()
def greedy(model: Any, inputs: Mapping[str, Tensor], max_new_tokens: int) -> Any:
    """`generate` of transformers: the most likely token, without penalties, whatever the model's own generation config
    says beside its special tokens. Gives `sequences` (1, T + steps) and `logits`, (1, words) for each step."""
    from transformers import GenerationConfig

    own = model.generation_config
    end = own.eos_token_id
    pad = own.pad_token_id if own.pad_token_id is not None else end[0] if isinstance(end, list) else end
    special = dict(bos_token_id=own.bos_token_id, eos_token_id=end, pad_token_id=pad)
    try:
        model.generation_config = GenerationConfig(**special)
        return model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    finally:
        model.generation_config = own


# --- other networks --------------------------------------------------------------------------------------------------


class _Fused(TorchFunctionMode):
    """Gives the arguments of every call of PyTorch's fused attention to a function, and calls it."""

    def __init__(self, take: Callable):
        super().__init__()
        self.take = take

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.take(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def class_rows(network: Any, images: Tensor) -> Tensor:
    """How the class token of a vision transformer looks at the patches, at every block where it does.

    Args:
        network: an `Isotropic` with a class token, in inference mode.
        images: (B, 3, H, W), normalized.

    Returns:
        (B, L, N), float32: mean over the heads; L attentions in which the class token looks at itself, other tokens and
        N = h · w patches, in their order.

    Raises:
        ValueError: the network has no class token, is no `Isotropic`, or no attention of it is so (it drops pixels, or
            does not use PyTorch's fused attention); looking changed the output.
    """
    if getattr(network, "cls_token", None) is None:
        raise ValueError(f"{type(network).__name__} has no class token")
    count = network.joining(1).shape[1]
    rows, columns = (-(-side // network.patch_size) for side in images.shape[-2:])
    found: list[Tensor] = []

    def take(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *_: Any, scale: Any = None, **__: Any):
        queries, keys = query.shape[-2], key.shape[-2]
        if query.ndim == 4 and keys == count + rows * columns and queries in (1, count, keys):
            found.append(row_weights(query, key, [0], scale, attn_mask)[:, 0, count:])

    plain = network(images)
    with _Fused(take):
        seen = network(images)
    pairs = zip(*((plain, seen) if isinstance(plain, tuple) else ((plain,), (seen,))))
    if not all(torch.equal(one, other) for one, other in pairs):
        raise RuntimeError(f"looking changed the output of {type(network).__name__}")
    if not found:
        raise ValueError(
            f"{type(network).__name__}: no attention of its class token to {rows} x {columns} patches goes through "
            "scaled_dot_product_attention"
        )
    return torch.stack(found, dim=1)
