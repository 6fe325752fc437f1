"""Weighted convolution: a convolution whose kernel is multiplied by a density of the distance to its center.

"Optimal Weighted Convolution for Classification and Denosing", arXiv 2505.24558; written from its formula. With the
values den_1 to den_r of an axis, the outermost first, and of 2 r + 1 taps:

    W' = W Φ,    Φ_ij = α_i α_j,    α = (den_1, ..., den_r, 1, den_r, ..., den_1)

Φ is the same for all input and output channels; in 1-D it is α, in 3-D the product of three. W' is what convolves:
stride, padding, dilation, groups and bias are as ever. The density counts taps, not pixels, so that dilation does not
change it. It is fixed, or learned. `fold` multiplies it into the weight, after which inference costs what it costs
without.

Paper and code: the authors' code has one density for all axes, and learns one of a kernel of 7 taps alone. Here axes
may differ in size and density.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...registry import MODELS

Density = Sequence[float] | Sequence[Sequence[float]] | Mapping[int, Sequence[float]] | None
Model = TypeVar("Model", bound=nn.Module)


class _Weighted:
    """What the three classes share; it stands before the convolution's class in the bases."""

    plain: type[nn.Module]
    den: Tensor | None

    def __init__(self, *args: Any, den: Density = None, learned: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.set_density(den, learned)

    def reset_parameters(self) -> None:
        """The paper's initialization of weight and bias."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[attr-defined]
        if self.bias is not None:  # type: ignore[attr-defined]
            nn.init.zeros_(self.bias)  # type: ignore[attr-defined]

    def set_density(self: Any, den: Density, learned: bool = False) -> None:
        """Give the kernel a density, see the class."""
        values, self.spans = _laid_out(den, self.kernel_size)
        tensor = torch.tensor(values, dtype=self.weight.dtype, device=self.weight.device) if values else None
        if learned:
            self.register_parameter("den", None if tensor is None else nn.Parameter(tensor))
        else:
            self.register_buffer("den", tensor)

    def density(self: Any) -> Tensor:
        """Φ, in the shape of the kernel; it is differentiable in a learned density."""
        phi = self.weight.new_ones(())
        for axis, span in enumerate(self.spans, start=1):
            side = phi.new_empty(0) if self.den is None else self.den[span]
            alpha = torch.cat([side, side.new_ones(1), side.flip(0)])  # an axis without density: one 1 for all taps
            phi = phi * alpha.view(-1, *[1] * (len(self.spans) - axis))
        return phi.expand(self.kernel_size)

    def weighted(self: Any) -> Tensor:
        """W', in the shape of the weight."""
        return self.weight if self.den is None else self.weight * self.density()

    def forward(self: Any, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weighted(), self.bias)

    def fused(self: Any) -> nn.Module:
        """This convolution as a plain one, for `attlas.backbones.layers.fuse`. It changes its own class."""
        return fold(self)

    def _load_from_state_dict(self: Any, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As of any module; also of the authors', which saves `alfa` (α) and `Phi` (Φ) in place of a fixed `den`."""
        alpha, phi = (state_dict.pop(prefix + name, None) for name in ("alfa", "Phi"))
        if alpha is not None and phi is not None and self.den is not None:
            state_dict[prefix + "den"] = alpha.flatten()[: alpha.numel() // 2]
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]

    def extra_repr(self: Any) -> str:
        den = "None" if self.den is None else f"{[round(value, 4) for value in self.den.tolist()]}"
        learned = ", learned=True" if isinstance(self.den, nn.Parameter) else ""
        return f"{super().extra_repr()}, den={den}{learned}"  # type: ignore[misc]


def _laid_out(den: Density, kernel_size: tuple[int, ...]) -> tuple[list[float], list[slice]]:
    """All values of a density in one list, and where those of each axis are in it; axes of one tap have none.

    Raises:
        ValueError: see `WeightedConv2d`.
    """
    about = f"den={den!r} of kernel_size={tuple(kernel_size)}"
    if den is None:
        den = {size: [1.0] * (size // 2) for size in kernel_size if size > 1}
    if isinstance(den, Mapping):
        by_size = {size: _checked(values, size, about) for size, values in den.items()}
        axes: list[Any] = [size if size in by_size else None for size in kernel_size]
        found: dict[Any, list[float]] = {size: by_size[size] for size in axes if size is not None}
    elif not isinstance(den, Sequence) or isinstance(den, str):
        raise ValueError(f"{about} must be a list of values, a list for each axis, or lists by sizes of axes.")
    elif den and all(isinstance(values, Sequence) for values in den):
        if len(den) != len(kernel_size):
            raise ValueError(f"{about} has {len(den)} lists, and the kernel {len(kernel_size)} axes.")
        axes = list(range(len(den)))
        found = {axis: _checked(values, kernel_size[axis], about) for axis, values in enumerate(den)}
    else:
        axes = [size if size > 1 else None for size in kernel_size]
        found = {size: _checked(den, size, about) for size in axes if size is not None}
    spans: dict[Any, slice] = {None: slice(0, 0)}
    values: list[float] = []
    for key, own in found.items():
        spans[key] = slice(len(values), len(values) + len(own))
        values += own
    return values, [spans[axis] for axis in axes]


def _checked(values: Any, size: Any, about: str) -> list[float]:
    """The values of an axis of `size` taps, which must have so many, all finite numbers."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % 2 == 0:
        raise ValueError(
            f"{about}: a weighted axis must have an odd number of taps, with one in the center, not {size!r}. "
            "den={3: [0.7]} weights the axes of 3 taps, and leaves the others as they are."
        )
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != size // 2:
        raise ValueError(
            f"{about}: an axis of {size} taps takes {size // 2} values, from the outermost to the one beside the "
            f"center; got {values!r}. Kernels of several sizes take lists by size: den={{3: [0.7], 5: [0.2, 0.8]}}."
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{about}: {value!r} must be a finite number.")
    return [float(value) for value in values]


@MODELS.register_module()
class WeightedConv1d(_Weighted, nn.Conv1d):
    """`nn.Conv1d` with a density; see `WeightedConv2d`."""

    plain = nn.Conv1d


@MODELS.register_module()
class WeightedConv2d(_Weighted, nn.Conv2d):
    """`nn.Conv2d` with a density, see above. Any model of the mm libraries takes it by its `conv_cfg`:

        conv_cfg=dict(type="attlas.WeightedConv2d", den={3: [0.7]})

    A fixed density adds no parameter; a learned one as many as it has values. Its learning rate is a matter of
    `paramwise_cfg=dict(custom_keys={".den": dict(lr_mult=100)})`: the authors' is 100 times that of the weights.

    Args:
        *args, **kwargs: arguments of `nn.Conv2d`, with its defaults.
        den: density. A list of r values, the outermost first, is that of every axis of more than one tap, all of
            2 r + 1. A list of lists gives each axis its own (axes of one tap: []). A mapping has a list for each size
            of axes; axes of other sizes are left as they are, even ones among them. None is a density of 1 for all
            axes, which is the plain convolution.
        learned: whether the density is learned, from these values on; axes of one list, or of one size in a mapping,
            share it.

    The state dict has `den` beside `weight` and `bias`, where an axis has a density.

    Raises:
        ValueError: a weighted axis of an even number of taps; not the number of values that an axis takes; values that
            are no finite numbers.
    """

    plain = nn.Conv2d


@MODELS.register_module()
class WeightedConv3d(_Weighted, nn.Conv3d):
    """`nn.Conv3d` with a density; see `WeightedConv2d`."""

    plain = nn.Conv3d


WEIGHTED: dict[type[nn.Module], type[nn.Module]] = {
    cls.plain: cls for cls in (WeightedConv1d, WeightedConv2d, WeightedConv3d)
}


@torch.no_grad()
def convert(model: Model, den: Density = None, learned: bool = False, keep: str = "function") -> Model:
    """Make weighted convolutions of the plain ones of a model; `model` itself is changed and returned.

    Those of more than one tap change, and of these, where `den` is a mapping, the ones with an axis of a size in it.
    They must be `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d` themselves: a class of another library may compute something
    else. Weights are new parameters, so an optimizer is made afterwards.

    Args:
        model: any module.
        den, learned: as of `WeightedConv2d`.
        keep: what stays as it is: "function" divides the weights by the density, so that outputs stay equal;
            "weights".

    Raises:
        ValueError: no convolution changes; one does not fit the density (which one); a zero in a density whose
            function must be kept. The model is as it was then.
    """
    if keep not in ("function", "weights"):
        raise ValueError(f"keep={keep!r} must be 'function' or 'weights'")
    sizes: set[tuple[int, ...]] = set()
    found: list[Any] = []
    for name, module in model.named_modules():
        if type(module) not in WEIGHTED:
            continue
        sizes.add(taps := tuple(module.kernel_size))
        if any(size > 1 and (not isinstance(den, Mapping) or size in den) for size in taps):
            try:
                values, _ = _laid_out(den, taps)
            except ValueError as error:
                raise ValueError(f"{name or 'the convolution'}: {error}") from None
            if keep == "function" and 0 in values:
                raise ValueError(f"den={den!r} has a zero, so no weights keep the function: give keep='weights'")
            found.append(module)
    if not found:
        shown = ", ".join("x".join(map(str, taps)) for taps in sorted(sizes)) or "no convolution at all"
        raise ValueError(f"den={den!r} fits no convolution of {type(model).__name__}. In it: {shown}.")
    for conv in found:
        conv.__class__ = WEIGHTED[type(conv)]  # in place, so that whoever has the module, has the new one
        conv.set_density(den, learned)
        if keep == "function":
            conv.weight = nn.Parameter(conv.weight / conv.density(), conv.weight.requires_grad)
    return model


@torch.no_grad()
def fold(model: Model) -> Model:
    """Make plain convolutions of the weighted ones of a model, with weights W': outputs stay equal bit for bit.

    For inference and exports; `model` itself is changed and returned.
    """
    for module in model.modules():
        if isinstance(module, _Weighted):
            conv: Any = module
            conv.weight = nn.Parameter(conv.weighted().clone(), conv.weight.requires_grad)
            del conv.den, conv.spans
            conv.__class__ = conv.plain
    return model
