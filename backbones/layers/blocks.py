"""Blocks that run one after the other, with activation checkpointing where it is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Blocks(nn.ModuleList):
    """A list of blocks. `forward(x)` runs them all; `run(block, *inputs)` runs one of them.

    A block may have a plug-in (see `plug`). With `checkpointing`, which `Backbone.set_grad_checkpointing` sets,
    training keeps only the inputs of a block for the backward pass, and computes the rest again.
    """

    checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = self.run(block, x)
        return x

    def run(self, block: nn.Module, *inputs: Tensor) -> Any:
        """`block(*inputs)`."""
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return _run(block, *inputs)
        if torch.compiler.is_compiling():  # which takes no context, and traces the averages once
            return checkpoint(_run, block, *inputs, use_reentrant=False)
        return checkpoint(
            _run, block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), statistics_kept(block))
        )


def plug(block: nn.Module, plugin: nn.Module) -> None:
    """Put a module (B, C, H, W) -> (B, C, H, W) into a block: at the place that the plug-in names, its attribute
    `place`, if it is one of the `places` of the block; else at the end of a residual branch. That is the place `end` of
    a block that has one, else on what the block adds to its input, x + plugin(block(x) - x), which its list, `Blocks`,
    does. What the block gives beside a map, such as tokens, stays as it is.

    Raises:
        ValueError: the block has not the place that the plug-in names.
    """
    place = getattr(plugin, "place", None)
    if place is not None and place not in getattr(block, "places", ()):
        raise ValueError(
            f"{type(plugin).__name__} stands at the place {place!r} of a block, which {type(block).__name__} has not; "
            "Block, DualBlock and LocalBlock of attlas.backbones.layers have it"
        )
    setattr(block, place or ("end" if hasattr(block, "end") else "plugin"), plugin)


def _run(block: nn.Module, *inputs: Tensor) -> Any:
    found, plugin = block(*inputs), getattr(block, "plugin", None)
    if plugin is None:
        return found
    x, *others = found if isinstance(found, tuple) else (found,)
    x = inputs[0] + plugin(x - inputs[0])
    return (x, *others) if others else x


def averages(part: nn.Module) -> bool:
    """Whether a module takes running averages over batches: a batch norm, or what counts batches and has a momentum as
    batch norms do."""
    return getattr(part, "num_batches_tracked", None) is not None


@contextmanager
def statistics_kept(block: nn.Module) -> Iterator[None]:
    """What averages over batches leaves its averages alone: what is computed again must not be counted again."""
    averaging: list[Any] = [part for part in block.modules() if averages(part) and part.training]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in averaging]
    try:
        for norm, _, counter in kept:  # they still take the averages, so that the same tensors are saved as before
            norm.momentum, norm.num_batches_tracked = 0.0, counter.clone()
        yield
    finally:
        for norm, momentum, counter in kept:
            norm.momentum, norm.num_batches_tracked = momentum, counter
