"""What every backbone of Attlas is to its users, whatever stands inside: outputs, head, freezing, checkpointing.

A skeleton (`Pyramid`, `Isotropic`) adds the loop over its parts; a system adds the parts.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..layers import fuse
from .options import CheckedOptions


class Backbone(BaseModule, metaclass=CheckedOptions):
    """Base of all networks of images. Two forms, by `num_classes`:

    - None: a backbone for dense prediction. `forward(image)` gives a tuple of the maps at `out_indices`, each behind a
      norm of its own; there is no head.
    - a number: a classifier. `forward(image)` gives logits (B, num_classes), or for 0 the features before the last
      layer (B, features).

    Args:
        num_classes: see above.
        out_indices: levels whose maps are given, from 0; all by default.
        in_channels: channels of the image.
        frozen_stages: -1 to train everything; n to keep the stem and the first n stages as they are.
        norm_eval: keep batch norms in inference mode while training (usual in detection).
        grad_checkpointing: keep only the input of every block for the backward pass, and compute the rest again.
        init_cfg: of MMEngine; `dict(type="Pretrained", checkpoint=...)` loads the authors' files and ours.

    Attributes:
        out_channels, out_strides: of the maps at `out_indices`; a map is (B, C, ceil(H / stride), ceil(W / stride)),
            unless the system says otherwise.
    """

    # what a system may set
    unused: Sequence[str] = ()  # options of its bases that it does not use (see CheckedOptions)
    variants: dict = {}  # name -> Variant
    checkpoint_rules: Sequence = ()  # renaming rules of attlas.checkpoint
    checkpoint_resize: dict = {}
    min_size = 1  # smaller images are padded with zeros, right and bottom

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        num_classes: int | None = None,
        out_indices: Sequence[int] | None = None,
        in_channels: int = 3,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        grad_checkpointing: bool = False,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        levels = self._level_count = len(channels)
        if num_classes is not None and num_classes < 0:
            raise ValueError(f"num_classes={num_classes} must be at least 0, or None for a backbone without a head")
        if num_classes is not None and out_indices is not None:
            raise ValueError(
                f"num_classes={num_classes} makes a classifier, out_indices={out_indices} a backbone that gives maps: "
                "give one of them (forward_intermediates gives maps of a classifier)"
            )
        if not -1 <= frozen_stages <= levels:
            raise ValueError(f"frozen_stages={frozen_stages} must be from -1 (none) to {levels}, the number of stages")
        self.out_indices = _check_indices(range(levels) if out_indices is None else out_indices, levels)
        self.out_channels = tuple(channels[i] for i in self.out_indices)
        self.out_strides = tuple(strides[i] for i in self.out_indices)
        self.num_classes, self.in_channels = num_classes, in_channels
        self._width = channels[-1]  # of the last level
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.grad_checkpointing = grad_checkpointing
        self.head: nn.Module | None = None
        self.norms = nn.ModuleDict()  # of the maps, by level; in the dense form

    @property
    def num_features(self) -> int:
        """Width of the vector that the last layer of a classifier reads; in the dense form that of the last level."""
        return self._width if self.head is None else self.head.dim  # type: ignore[return-value]

    @property
    def checkpoint_optional(self) -> Sequence[str]:
        """Names that a file of the whole network holds and this form of it does without."""
        if self.head is None:  # the file's norms are those of all levels, whatever it was trained with
            left_out = [i for i in range(self._level_count) if str(i) not in self.norms] if self.norms else []
            return (r"^head", *(rf"^norms\.{i}\." for i in left_out))
        return () if self.num_classes else (r"^head(\.\w+)*\.fc\.",)

    # --- what a skeleton brings --------------------------------------------------------------------------------------

    @abstractmethod
    def levels(self, image: Tensor) -> Iterator[Tensor]:
        """The map of every level, one after the other, before the norms of the outputs."""

    @property
    @abstractmethod
    def num_levels(self) -> int:
        """How many maps `levels` gives."""

    @abstractmethod
    def frozen_parts(self) -> list[nn.Module]:
        """The modules that `frozen_stages` names."""

    @abstractmethod
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort the parameters by depth for layer-wise decay, as timm defines them: `stem`, and
        `blocks` as (expression, None: by its numbers | (99999,): with the one before). The head, which none matches,
        comes last. `coarse`: by stage, not by block."""

    # --- forward -----------------------------------------------------------------------------------------------------

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.num_classes is not None:
            return self.forward_head(self.forward_features(image))
        return tuple(self._maps(image, self.out_indices, norm=True))

    def forward_features(self, image: Tensor) -> Tensor:
        """What the head reads: the map of the last level."""
        x = None
        for x in self.levels(self.check(image)):  # noqa: B007
            pass
        assert x is not None
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of what `forward_features` gave, or with `pre_logits` what the last layer reads."""
        if self.head is None:
            raise RuntimeError(f"{type(self).__name__} was built without num_classes and has no head")
        return self.head(x, pre_logits)

    def forward_intermediates(
        self,
        image: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of chosen levels, and what `forward_features` gives.

        Args:
            image: (B, in_channels, H, W).
            indices: levels; a number n for the last n; all by default.
            norm: apply the norms of the dense form (where there are none, the maps are as they are).
            intermediates_only: give the list of maps alone.

        Returns:
            (features, maps), maps in the order of the levels.
        """
        count = self.num_levels
        chosen = choose(indices, count)
        if intermediates_only:
            return list(self._maps(image, chosen, norm))
        wanted: dict[int, Tensor] = {}
        x = None
        for i, x in enumerate(self.levels(self.check(image))):
            if i in chosen:
                wanted[i] = self._norm(i, x) if norm else x
        return x, [wanted[i] for i in chosen]

    def _norm(self, level: int, x: Tensor) -> Tensor:
        return self.norms[str(level)](x) if str(level) in self.norms else x

    def _maps(self, image: Tensor, chosen: tuple[int, ...], norm: bool) -> Iterator[Tensor]:
        last = chosen[-1]
        for i, x in enumerate(self.levels(self.check(image))):
            for _ in range(chosen.count(i)):
                yield self._norm(i, x) if norm else x
            if i == last:
                return

    def check(self, image: Tensor) -> Tensor:
        """The image in channels-last memory, at least `min_size` in height and width.

        Raises:
            ValueError: not (B, in_channels, H, W), or empty.
            TypeError: not of floating point.
        """
        if not isinstance(image, Tensor):
            raise TypeError(f"image must be a tensor (B, {self.in_channels}, H, W), got {type(image).__name__}")
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f"image must have shape (B, {self.in_channels}, H, W), got {tuple(image.shape)}"
                + (": (B, H, W, C)? image.permute(0, 3, 1, 2)" if image.shape[-1:] == (self.in_channels,) else "")
            )
        if not image.is_floating_point():
            raise TypeError(f"image must be of floating point, normalised as in training, got {image.dtype}")
        if 0 in image.shape:
            raise ValueError(f"image is empty: shape {tuple(image.shape)}")
        height, width = (max(0, self.min_size - size) for size in image.shape[-2:])
        if height or width:
            image = nn.functional.pad(image, (0, width, 0, height))
        return image.contiguous(memory_format=torch.channels_last)

    def run(self, block: nn.Module, *inputs: Tensor) -> Any:
        """`block(*inputs)`, with activation checkpointing where that was asked for."""
        if not (self.grad_checkpointing and self.training and torch.is_grad_enabled()):
            return block(*inputs)
        if torch.compiler.is_compiling():  # which takes no context, and traces the averages once
            return checkpoint(block, *inputs, use_reentrant=False)
        return checkpoint(
            block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(block))
        )

    def initialise(self, module: nn.Module) -> None:
        """Initial weights of one module; called for all of them, the inner ones first. A module that has a
        `reset_weights()` of its own is asked after its parts, and so has the last word on them."""
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        reset: Any = getattr(module, "reset_weights", None)
        if reset is not None:
            reset()

    # --- head --------------------------------------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        """The last layer of the head."""
        if self.head is None:
            raise RuntimeError(f"{type(self).__name__} was built without num_classes and has no head")
        return self.head.fc  # type: ignore[return-value]

    def reset_classifier(self, num_classes: int) -> None:
        """Give the head a new last layer; 0 for none."""
        if self.head is None:
            raise RuntimeError(f"{type(self).__name__} was built without num_classes and has no head to reset")
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes} must be at least 0")
        self.head.reset(num_classes)  # type: ignore[operator]
        self.head.to(next(self.parameters()))  # its device and dtype
        self.num_classes = num_classes

    # --- training ----------------------------------------------------------------------------------------------------

    def freeze(self, stages: int) -> None:
        """Another `frozen_stages`: -1 to train everything, n to keep the stem and the first n stages as they are."""
        for part in self.frozen_parts() if self.frozen_stages >= 0 else []:
            part.requires_grad_(True)
        self.frozen_stages = stages
        self.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that their modules exempt from weight decay (by an attribute `no_weight_decay`)."""
        return {
            f"{prefix}.{name}".lstrip(".")
            for prefix, module in self.named_modules()
            if module is not self
            for name in getattr(module, "no_weight_decay", ())
        }

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for part in self.frozen_parts() if self.frozen_stages >= 0 else []:
            part.eval()
            part.requires_grad_(False)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    # --- inference ---------------------------------------------------------------------------------------------------

    def fuse(self) -> "Backbone":
        """Merge batch norms, and parallel or identity branches, into convolutions: the same output, fewer operations.
        For inference only, and for good; changes the network and returns it. With `pre_logits`, `forward_head` may give
        another vector then, of which the last layer makes the same logits."""
        if self.training:
            raise RuntimeError(f"{type(self).__name__} is in training mode; fusing is for inference: call eval() first")
        for name, child in self.named_children():
            setattr(self, name, fuse(child))
        return self


def choose(indices: int | Sequence[int] | None, levels: int) -> tuple[int, ...]:
    """The levels that `indices` of `forward_intermediates` mean."""
    if isinstance(indices, int):
        if not 1 <= indices <= levels:
            raise ValueError(f"indices={indices}: there are {levels} levels")
        indices = range(levels - indices, levels)
    return _check_indices(range(levels) if indices is None else indices, levels)


def _check_indices(indices: Sequence[int], levels: int) -> tuple[int, ...]:
    if isinstance(indices, int) or not all(isinstance(i, int) for i in indices):
        raise ValueError(f"out_indices={indices!r} must be a tuple of levels, such as {tuple(range(levels))[-3:]}")
    chosen = tuple(i + levels if -levels <= i < 0 else i for i in indices)
    if not chosen or any(not 0 <= i < levels for i in chosen) or list(chosen) != sorted(chosen):
        raise ValueError(
            f"out_indices={tuple(indices)} must be levels from 0 to {levels - 1} in ascending order: there are {levels}"
        )
    return chosen


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch norms leave their running averages alone: what is computed again must not be counted again."""
    kept = [
        (norm, norm.momentum, norm.num_batches_tracked)
        for norm in block.modules()
        if isinstance(norm, _BatchNorm) and norm.training and norm.num_batches_tracked is not None
    ]
    try:
        for norm, _, counter in kept:  # they still take the averages, so that the same tensors are saved as before
            norm.momentum, norm.num_batches_tracked = 0.0, counter.clone()
        yield
    finally:
        for norm, momentum, counter in kept:
            norm.momentum, norm.num_batches_tracked = momentum, counter
