"""What every backbone of Attlas is to its users, whatever stands inside: outputs, head, freezing, checkpointing.

A skeleton (`Pyramid`, `Isotropic`) adds the loop over its parts; a system adds the parts.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...registry import MIXERS
from ..layers import Blocks, averages, fill, fuse, plug
from .options import CheckedOptions

# `fixed_sizes` of networks whose operators go through windows one by one
FIXED_BY_WINDOWS = {
    ".onnx": dict.fromkeys(
        ("height", "width"), "written out for ONNX, the windows of free maps take many minutes to convert"
    )
}
Notes = dict[str, Any]  # what a network notes about a batch on its way from the stem to the head


class FeatureInfo(list):
    """Facts about the maps of a network, as timm has them: for each a dict of `num_chs`, `reduction` (the stride) and
    `module` (its name)."""

    def channels(self) -> list[int]:
        """Channels of every map."""
        return [level["num_chs"] for level in self]

    def reduction(self) -> list[int]:
        """Stride of every map."""
        return [level["reduction"] for level in self]

    def module_name(self) -> list[str]:
        """Name of the module that gives each map, before the norm of the output."""
        return [level["module"] for level in self]


class Backbone(BaseModule, metaclass=CheckedOptions):
    """Base of all networks of images. Two forms, by `num_classes`:

    - None: a backbone for dense prediction. `forward(image)` gives a tuple of the maps at `out_indices`, each behind a
      norm of its own; there is no head.
    - a number: a classifier. `forward(image)` gives logits (B, num_classes), or for 0 the features before the last
      layer (B, features). In training, some networks give auxiliary logits behind the logits.

    Args:
        channels, strides: channels and stride of the map of every level.
        num_classes: number of classes; see above.
        out_indices: levels whose maps are given, from 0; all by default.
        in_channels: channels of the image.
        frozen_stages: -1 to train everything; n to keep the stem and the first n stages as they are. Where the head has
            blocks, one more than there are stages keeps those, too.
        norm_eval: whether batch norms, and what else averages over batches, stay in inference mode while training
            (usual in detection).
        grad_checkpointing: whether training keeps only the input of every block for the backward pass, and computes the
            rest again.
        init_cfg: config of MMEngine; `dict(type="Pretrained", checkpoint=...)` loads the authors' files and ours.

    Attributes:
        out_channels, out_strides: channels and strides of the maps at `out_indices`; `map_sizes` gives their sizes.
        variant: the `Variant` that it was created as, by name; None if it was built by its class. It says how images
            are prepared for the published weights: `size`, `crop`, `interpolation`, `mean`, `std`.
    """

    variant: Any = None

    # what a system may set
    unused: Sequence[str] = ()  # options of its bases that it does not use (see CheckedOptions)
    variants: dict = {}  # name -> Variant
    checkpoint_rules: Sequence = ()  # renaming rules of attlas.checkpoint
    dense_names: Sequence[str] = (r"^norms\.",)  # expressions for parameters that the dense form alone has
    beside_backbone: Sequence[str] = ()  # expressions for names that the authors' files have beside "backbone."
    min_size = 1  # smaller images are padded with zeros, below and on the right
    level_modules = ""  # name of the list whose entry i gives the map of level i
    fixed_sizes: Mapping[str, Mapping[str, str]] = {}  # suffix of an export -> size that it fixes -> why
    rounds_up = True  # whether the strides round the size of a map up, or down
    trunc_normal: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)  # layers with such initial weights (std 0.02)

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
        levels = len(channels)
        if num_classes is not None and num_classes < 0:
            raise ValueError(f"num_classes={num_classes} must be at least 0, or None for a backbone without a head")
        if num_classes is not None and out_indices is not None:
            raise ValueError(
                f"num_classes={num_classes} makes a classifier, out_indices={out_indices} a backbone that gives maps: "
                "give one of them (forward_intermediates gives maps of a classifier)"
            )
        self.out_indices = _check_levels("out_indices", range(levels) if out_indices is None else out_indices, levels)
        self.channels, self.strides = tuple(channels), tuple(strides)
        self.out_channels = tuple(channels[i] for i in self.out_indices)
        self.out_strides = tuple(strides[i] for i in self.out_indices)
        self.num_classes, self.in_channels = num_classes, in_channels
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.grad_checkpointing = grad_checkpointing
        self.head: nn.Module | None = None
        self.norms = nn.ModuleDict()  # of the maps, by level; in the dense form

    @classmethod
    def check_values(cls, given: Mapping[str, Any]) -> None:
        """Refuse values of options that no network has; see `CheckedOptions`."""
        ratios = given.get("mlp_ratio", 1)
        for ratio in ratios if isinstance(ratios, Sequence) else (ratios,):
            if not isinstance(ratio, (int, float)) or ratio <= 0:
                raise ValueError(f"mlp_ratio must be a number above 0, or one for each part, got {ratios!r:.60}")

    def finish(self) -> None:
        """The end of construction, which a skeleton calls: initial weights, and what training leaves out.

        Raises:
            ValueError: the options leave a layer without channels.
        """
        for name, parameter in self.named_parameters():
            if not parameter.numel():
                raise ValueError(
                    f"{type(self).__name__}: {name} has shape {tuple(parameter.shape)}: the options leave no channels, "
                    "as a share of a few is 0"
                )
        self.apply(self.initialize)
        self.set_grad_checkpointing(self.grad_checkpointing)
        self.freeze(self.frozen_stages)

    @property
    def num_features(self) -> int:
        """Width of the vector that the last layer of a classifier reads; in the dense form that of the last level."""
        return self.channels[-1] if self.head is None else self.head.dim  # type: ignore[return-value]

    @property
    def checkpoint_optional(self) -> Sequence[str]:
        """Expressions for names that a file of the whole network holds and this form of it does without."""
        if self.head is None:  # the norms of a file are those of all levels, whatever it was trained with
            others = [i for i in range(len(self.channels)) if str(i) not in self.norms] if self.norms else []
            unread = [rf"^{self.level_modules}\.{i}\." for i in range(self.num_levels, len(self.channels))]
            return [r"^head\.", *(rf"^norms\.{i}\." for i in others), *unread]
        final = [] if self.num_classes else self.classifier_names()
        left_out = [r"^head\.auxiliary\."] if getattr(self.head, "auxiliary", None) is None else []
        return [*(rf"^{name}\." for name in final), *left_out]

    @property
    def feature_info(self) -> FeatureInfo:
        """Facts about the maps at `out_indices`; of a classifier, those of all levels."""
        return FeatureInfo(
            dict(num_chs=channels, reduction=stride, module=f"{self.level_modules}.{i}")
            for i, channels, stride in zip(self.out_indices, self.out_channels, self.out_strides)
        )

    def map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Heights and widths of the maps that the dense form gives for images of height x width."""
        sides = max(height, self.min_size), max(width, self.min_size)
        more = [stride - 1 if self.rounds_up else 0 for stride in self.out_strides]
        return [((sides[0] + n) // s, (sides[1] + n) // s) for n, s in zip(more, self.out_strides)]

    # --- what a skeleton brings --------------------------------------------------------------------------------------

    @abstractmethod
    def levels(self, image: Tensor, notes: Notes) -> Iterator[Tensor]:
        """The map of every level, one after the other, before the norms of the outputs.

        Args:
            image: (B, in_channels, H, W).
            notes: dict that parts of the network may write into for later ones: further levels, outputs, the head. It
                begins empty for every batch. The auxiliary head reads "auxiliary".
        """

    @property
    def num_levels(self) -> int:
        """How many maps `levels` gives."""
        return len(self.get_submodule(self.level_modules))

    @property
    def answer_layers(self) -> list[str]:
        """Names of the modules, in the order of the network, whose maps the logits (or, in the dense form, the maps)
        are made of: where an explanation looks."""
        return [f"{self.level_modules}.{i}" for i in range(self.num_levels)]

    @abstractmethod
    def frozen_parts(self) -> list[nn.Module]:
        """The modules that `frozen_stages` names, as far as it is of stages."""

    @abstractmethod
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that sort the parameters by depth for layer-wise decay, as timm defines them: `stem`, and
        `blocks` as (expression, None: by its numbers | (99999,): with the one before). What none matches, the last
        layers, comes last. `coarse`: by stage, not by block."""

    def plug(self, block: nn.Module, plugin: Mapping, dim: int) -> None:
        """Give a block of `dim` channels its plug-in, dict(type=..., **options), where the network has it."""
        plug(block, MIXERS.build({**plugin, "dim": dim}))

    def head_input(self, x: Tensor, notes: Notes) -> Tensor:
        """What the head reads, of the map of the last level."""
        return x

    def normed(self, level: int, x: Tensor, notes: Notes) -> Tensor:
        """The map of a level behind the norm of its output."""
        return self.norms[str(level)](x) if str(level) in self.norms else x

    # --- forward -----------------------------------------------------------------------------------------------------

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        notes: Notes = {}
        if self.num_classes is None:
            return tuple(self._maps(image, self.out_indices, True, notes))
        return self.forward_head(self.forward_features(image, notes), notes=notes)

    def forward_features(self, image: Tensor, notes: Notes | None = None) -> Tensor:
        """What the head reads. Into `notes`, an empty dict, goes what the network notes."""
        notes = {} if notes is None else notes
        x = None
        for x in self.levels(self.check(image), notes):  # noqa: B007
            pass
        assert x is not None
        return self.head_input(x, notes)

    def forward_head(self, x: Tensor, pre_logits: bool = False, notes: Notes | None = None) -> Any:
        """Logits of what `forward_features` gave, or with `pre_logits` what the last layer reads. Without the notes of
        `forward_features`, there are no auxiliary logits."""
        return self._head()(x, pre_logits, notes)

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
            norm: whether the maps are behind the norms of the dense form (where there are none, they are as they are).
            intermediates_only: whether the list of maps comes alone.

        Returns:
            (features, maps), maps in the order of the levels.
        """
        count = self.num_levels
        if isinstance(indices, int):
            if not 1 <= indices <= count:
                raise ValueError(f"indices={indices}: there are {count} levels")
            indices = range(count - indices, count)
        chosen = _check_levels("indices", range(count) if indices is None else indices, count)
        notes: Notes = {}
        if intermediates_only:
            return list(self._maps(image, chosen, norm, notes))
        maps, x = [], None
        for i, x in enumerate(self.levels(self.check(image), notes)):
            maps += [self.normed(i, x, notes) if norm else x] * chosen.count(i)
        assert x is not None
        return self.head_input(x, notes), maps

    def _maps(self, image: Tensor, chosen: tuple[int, ...], norm: bool, notes: Notes) -> Iterator[Tensor]:
        for i, x in enumerate(self.levels(self.check(image), notes)):
            for _ in range(chosen.count(i)):
                yield self.normed(i, x, notes) if norm else x
            if i == chosen[-1]:
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
            raise TypeError(f"image must be of floating point, normalized as in training, got {image.dtype}")
        if 0 in image.shape:
            raise ValueError(f"image is empty: shape {tuple(image.shape)}")
        return fill(image, least=self.min_size).contiguous(memory_format=torch.channels_last)

    def initialize(self, module: nn.Module) -> None:
        """Initial weights of one module; called for all of them, the inner ones first. A module that has a
        `reset_weights()` of its own is asked after its parts, and so has the last word on them."""
        layer: Any = module
        if isinstance(module, self.trunc_normal):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if hasattr(module, "reset_weights"):
            layer.reset_weights()

    # --- head --------------------------------------------------------------------------------------------------------

    def _head(self) -> Any:
        if self.head is None:
            raise RuntimeError(f"{type(self).__name__} was built without num_classes and has no head")
        return self.head

    def classifier_names(self) -> list[str]:
        """Names of the layers that make logits, the first one those of `forward`; none in the dense form."""
        return [] if self.head is None else [f"head.{name}" for name in self._head().final_layers]

    def get_classifier(self) -> nn.Module:
        """The last layer of the head."""
        self._head()
        return self.get_submodule(self.classifier_names()[0])

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the head new last layers.

        Args:
            num_classes: number of classes; 0 for no last layers.
            global_pool: how the head makes a vector of the map, by timm's names; None or what it is, "avg" or "token".
        """
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes} must be at least 0")
        if global_pool not in (None, self._head().pooling):
            raise ValueError(
                f"global_pool={global_pool!r}: the head of {type(self).__name__} pools by {self._head().pooling!r}, "
                "as its weights were trained; pool what forward_features gives to do otherwise"
            )
        self._head().reset(num_classes)
        self._head().to(next(self.parameters()))  # its device and dtype
        self.num_classes = num_classes

    def head_groups(self) -> list[tuple[str, tuple[int, ...] | None]]:
        """What a `group_matcher` ends with, for heads that have blocks."""
        return [(r"^head\.cls_token", (0,)), (r"^head\.blocks\.(\d+)", None)]

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def looks_like(self, state: Mapping[str, Tensor]) -> str:
        """A sentence that names the variants that a state dict is of, or "" if this network is one of them."""
        from ..zoo import looks_like  # here, because it imports this module

        return looks_like(state, self)

    # --- training ----------------------------------------------------------------------------------------------------

    def freeze(self, stages: int) -> None:
        """Another `frozen_stages`: -1 to train everything, n to keep the stem and the first n stages as they are."""
        most = len(self.strides) + hasattr(self.head, "blocks")
        if not -1 <= stages <= most:
            blocks = " and one more for the blocks of the head" if hasattr(self.head, "blocks") else ""
            raise ValueError(f"frozen_stages={stages} must be from -1 (none) to {most}, the number of stages{blocks}")
        for part in self._frozen():
            part.requires_grad_(True)
        self.frozen_stages = stages
        self.train(self.training)

    def _frozen(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        parts = self.frozen_parts()
        if self.frozen_stages > len(self.strides):
            parts += [part for name, part in self._head().named_children() if name in ("cls_token", "blocks")]
        return parts

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Another `grad_checkpointing`, for all blocks, those of the head too."""
        self.grad_checkpointing = enable
        for module in self.modules():
            if isinstance(module, Blocks):
                module.checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that their modules exempt from weight decay (by an attribute `no_weight_decay`)."""
        return {
            f"{prefix}.{name}".lstrip(".")
            for prefix, module in self.named_modules()
            if not isinstance(module, Backbone)  # itself, or a network inside it, whose modules follow
            for name in getattr(module, "no_weight_decay", ())
        }

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for part in self._frozen():
            part.eval()
            part.requires_grad_(False)
        if mode and self.norm_eval:
            for module in self.modules():
                if averages(module):
                    module.eval()
        return self

    def feedback(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What a network that learns from its own predictions makes of a batch in training: "loss", which is added to
        that of the classifier, and what is logged beside it. Nothing, for most.

        Args:
            logits: (B, num_classes), what the last `forward` gave.
            labels: int64 (B,); of mixed images the class that dominates.
        """
        return {}

    def log_vars(self) -> dict[str, Tensor]:
        """What training logs beside the losses: the means of what the parts of the network say in `log_vars()`."""
        parts = [part for part in self.modules() if not isinstance(part, Backbone)]
        said = [part.log_vars() for part in parts if hasattr(part, "log_vars")]
        names = dict.fromkeys(name for of_part in said for name in of_part)
        return {name: torch.stack([of_part[name] for of_part in said if name in of_part]).mean() for name in names}

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


def _check_levels(name: str, indices: Sequence[int], levels: int) -> tuple[int, ...]:
    """The levels that an argument names, counted from 0."""
    if isinstance(indices, int) or not all(isinstance(i, int) for i in indices):
        raise ValueError(f"{name}={indices!r} must be a tuple of levels, such as {tuple(range(levels))[-3:]}")
    chosen = tuple(i + levels if -levels <= i < 0 else i for i in indices)
    if not chosen or any(not 0 <= i < levels for i in chosen) or list(chosen) != sorted(chosen):
        raise ValueError(
            f"{name}={tuple(indices)} must be levels from 0 to {levels - 1} in ascending order: there are {levels}"
        )
    return chosen
