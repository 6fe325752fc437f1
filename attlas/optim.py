"""What the papers' recipes ask of an optimizer and of its data: layer-wise decay, LAMB, Kar3, clipping, repeats."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import Tensor, nn
from torch.optim import Optimizer

from .data import one_of, positive
from .registry import DATA_SAMPLERS, HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS

# --- layer-wise decay ------------------------------------------------------------------------------------------------

WITH_PREVIOUS = 99999  # timm's mark of parameters that belong to the group before them in the order of depth


def layer_groups(names: Iterable[str], matcher: Mapping[str, Any]) -> dict[str, int | None]:
    """The depth of each parameter, by the expressions of a backbone's `group_matcher` (which have timm's meaning).

    Args:
        names: parameters, as the backbone names them.
        matcher: group -> a regular expression, or a list of (regular expression, suffix). The first expression that
            matches the beginning of a name decides. Its place among the groups, the numbers that it captured and the
            suffix (None or a tuple of numbers), in this order, are what the parameter is sorted by.

    Returns:
        The depth, counted from 0 without gaps; None for a name that no expression matches (a head).
    """
    rules: list[tuple[int, str, Sequence[int]]] = []
    for place, expressions in enumerate(matcher.values()):
        if isinstance(expressions, str):
            expressions = [(expressions, None)]
        rules += [(place, expression, suffix or ()) for expression, suffix in expressions]

    def key(name: str) -> tuple[int, ...] | None:
        for place, expression, suffix in rules:
            if found := re.match(expression, name):
                numbers = [int(text) for text in found.groups() if text and text.isdigit()]
                return (place, *numbers, *suffix)
        return None

    keys = {name: key(name) for name in names}
    depth, depths = -1, {}
    for found in sorted({k for k in keys.values() if k is not None}):
        depth += depth < 0 or found[-1] != WITH_PREVIOUS
        depths[found] = depth
    return {name: None if found is None else depths[found] for name, found in keys.items()}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Optimizers whose learning rate falls with the distance from the head, for every backbone that has a
    `group_matcher`: one alone, `ImageClassifier.backbone`, or that of a detector or a segmentor.

        optim_wrapper = dict(
            constructor="LayerDecayConstructor",
            paramwise_cfg=dict(layer_decay=0.7),
            optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
        )

    A layer has the learning rate lr * layer_decay^(layers behind it); what no layer claims (heads, necks) counts as the
    last layer, at lr itself. The `eta_min` of a cosine schedule is the same for all layers, and may lie above what the
    first ones begin with: use `eta_min_ratio`.

    Weights decay, except for those of one dimension and those that `no_weight_decay()` of the backbone or `no_decay`
    names.

    `paramwise_cfg`:
        layer_decay: in (0, 1]; None for one learning rate, and any model.
        coarse: a layer is a whole stage.
        norm_decay: factor on the weight decay of parameters of one dimension but biases (of norms, scales of layers).
        bias_decay: the same for biases.
        no_decay: regular expressions; a parameter of which one is found in the name has no weight decay.
    """

    DEFAULTS = dict(layer_decay=None, coarse=False, norm_decay=0.0, bias_decay=0.0, no_decay=())
    paramwise_cfg: dict

    def _validate_cfg(self) -> None:
        for key in self.paramwise_cfg:
            one_of("a key of paramwise_cfg", key, tuple(self.DEFAULTS))
        self.paramwise_cfg = {**self.DEFAULTS, **self.paramwise_cfg}
        decay = self.paramwise_cfg["layer_decay"]
        if decay is not None and not 0 < decay <= 1:
            raise ValueError(f"paramwise_cfg.layer_decay must lie in (0, 1] or be None, got {decay!r}")
        if self.base_lr is None:
            raise ValueError("optimizer.lr must be given: LayerDecayConstructor multiplies it.")

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = "", is_dcn_module=None) -> None:
        """Put one group for each (learning rate, weight decay) into `params`; frozen parameters are left out."""
        names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        backbones = topmost(module, lambda m: hasattr(m, "group_matcher"))
        factors, layers = self._factors(module, names, backbones)
        exempt = {
            join(prefix, name)
            for prefix, backbone in topmost(module, lambda m: callable(getattr(m, "no_weight_decay", None))).items()
            for name in backbone.no_weight_decay()
        }
        found: dict[tuple[float, float], list[str]] = {}
        for name in names:
            parameter = module.get_parameter(name)
            weight_decay = self.base_wd or 0.0
            if name in exempt or any(re.search(pattern, name) for pattern in self.paramwise_cfg["no_decay"]):
                weight_decay = 0.0
            elif name.rpartition(".")[2] == "bias":
                weight_decay *= self.paramwise_cfg["bias_decay"]
            elif parameter.ndim <= 1:
                weight_decay *= self.paramwise_cfg["norm_decay"]
            found.setdefault((factors[name], weight_decay), []).append(name)
        lines = [f"{len(found)} groups of parameters, {layers} layers with layer_decay"]
        lines += [f"  {'lr':>9}  {'decay':>7}  tensors  parameters  such as"]
        for (factor, weight_decay), members in sorted(found.items()):
            tensors = [module.get_parameter(name) for name in members]
            group = dict(params=tensors, lr=self.base_lr * factor)
            if self.base_wd is not None:  # or else the optimizer may have none
                group["weight_decay"] = weight_decay
            params.append(group)
            size = sum(tensor.numel() for tensor in tensors)
            decay = f"{weight_decay:>7.2g}  {len(tensors):>7}  {size:>10,}"
            lines.append(f"  {self.base_lr * factor:>9.3g}  {decay}  {members[0]}")
        print_log("\n".join(lines), logger="current")

    def _factors(
        self, model: nn.Module, names: list[str], backbones: Mapping[str, Any]
    ) -> tuple[dict[str, float], int]:
        """The factor on the learning rate of each parameter, and the number of layers."""
        decay, coarse = self.paramwise_cfg["layer_decay"], self.paramwise_cfg["coarse"]
        factors = dict.fromkeys(names, 1.0)
        if decay is None:
            return factors, 0
        if not backbones:
            raise ValueError(
                f"paramwise_cfg.layer_decay={decay}: no part of {type(model).__name__} has a group_matcher, which all "
                "backbones of Attlas have. Use one of them, or layer_decay=None."
            )
        layers = 0
        for prefix, backbone in backbones.items():
            inside = [name for name, _ in backbone.named_parameters()]  # frozen ones too: they are layers as well
            depths = layer_groups(inside, backbone.group_matcher(coarse=coarse))
            matched = {join(prefix, name): depth for name, depth in depths.items() if depth is not None}
            if not matched:
                raise ValueError(
                    f"{type(backbone).__name__}.group_matcher matches none of its parameters, such as {inside[:3]}"
                )
            layers = max(matched.values()) + 1
            others = any(name not in matched for name in names)
            last = layers if others else layers - 1
            factors |= {name: decay ** (last - matched[name]) for name in names if name in matched}
        return factors, layers


def topmost(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> dict[str, Any]:
    """The modules by name that `wanted` accepts, without those inside another one."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if wanted(module) and not any(outer == "" or name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


# --- LAMB ------------------------------------------------------------------------------------------------------------


@OPTIMIZERS.register_module()
class LAMB(Optimizer):
    """LAMB (You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR 2020).

    Adam's step with decoupled weight decay, u = m̂ / (√v̂ + eps) + weight_decay * w, rescaled for each tensor to the
    length of its weights: w -= lr * (‖w‖ / ‖u‖) * u. As in the usual implementations, both moments are corrected for
    their start at zero, and tensors without weight decay (biases, norms), or of length zero, are not rescaled. The
    clipping of the whole gradient to length 1, which recipes add, is `optim_wrapper.clip_grad=dict(max_norm=1.0)`.
    """

    def __init__(self, params, lr: float = 1e-3, betas=(0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.01):
        if lr < 0 or eps < 0 or weight_decay < 0:
            raise ValueError(f"LAMB: lr={lr}, eps={eps} and weight_decay={weight_decay} must be at least 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"LAMB: betas={tuple(betas)} must lie in [0, 1)")
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step(weights, group["lr"], *group["betas"], group["eps"], group["weight_decay"])
        return loss

    def _step(self, weights: list[Tensor], lr: float, beta1: float, beta2: float, eps: float, weight_decay: float):
        for weight in weights:
            if not self.state[weight]:
                zeros = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
                self.state[weight] = dict(step=0, **zeros)
            self.state[weight]["step"] += 1
        states = [self.state[weight] for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)

        updates = torch._foreach_div(means, [1 - beta1 ** state["step"] for state in states])
        scales = torch._foreach_sqrt(torch._foreach_div(squares, [1 - beta2 ** state["step"] for state in states]))
        torch._foreach_add_(scales, eps)
        torch._foreach_div_(updates, scales)
        if weight_decay:
            torch._foreach_add_(updates, weights, alpha=weight_decay)
            lengths = zip(torch._foreach_norm(weights), torch._foreach_norm(updates))
            ratios = [torch.where((w > 0) & (u > 0), w / u, torch.ones_like(w)) for w, u in lengths]
            torch._foreach_mul_(updates, ratios)
        torch._foreach_add_(weights, updates, alpha=-lr)


# --- Kar3 ------------------------------------------------------------------------------------------------------------


@OPTIMIZERS.register_module()
class Kar3(Optimizer):
    """The optimizer of Terminator (HyperZZW, arXiv 2401.17948): steps of three signs.

    w -= lr * (sign(g) + sign(m1) + sign(m2)), with the gradient g and two averages of those before it, which then move
    on: m = β m + (1 - β) g. The averages begin as zero, whose sign is 0. There is no weight decay.
    """

    def __init__(self, params, lr: float = 1.2e-3, betas=(0.5, 0.95)):
        if not isinstance(lr, (int, float)) or not 0 <= lr < float("inf"):
            raise ValueError(f"Kar3: lr={lr!r} must be a number of at least 0, and finite")
        two = isinstance(betas, (list, tuple)) and len(betas) == 2
        if not two or not all(isinstance(beta, (int, float)) and 0 <= beta < 1 for beta in betas):
            raise ValueError(f"Kar3: betas={betas!r} must be two numbers in [0, 1)")
        super().__init__(params, dict(lr=lr, betas=betas))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step(weights, group["lr"], group["betas"])
        return loss

    def _step(self, weights: list[Tensor], lr: float, betas: Sequence[float]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {name: torch.zeros_like(weight) for name in ("average1", "average2")}
        torch._foreach_add_(weights, torch._foreach_sign(gradients), alpha=-lr)
        for name, beta in zip(("average1", "average2"), betas):
            averages = [self.state[weight][name] for weight in weights]
            torch._foreach_add_(weights, torch._foreach_sign(averages), alpha=-lr)
            torch._foreach_lerp_(averages, gradients, 1 - beta)


# --- adaptive gradient clipping --------------------------------------------------------------------------------------


def unit_norm(x: Tensor) -> Tensor:
    """The norm of each output unit of a tensor, in a shape that broadcasts to it; for vectors the whole norm."""
    dims = tuple(range(1, x.ndim)) if x.ndim > 1 else None
    return torch.linalg.vector_norm(x, dim=dims, keepdim=x.ndim > 1, dtype=torch.promote_types(x.dtype, torch.float32))


@torch.no_grad()
def adaptive_clip(parameters: Iterable[Tensor], clip_factor: float, eps: float = 1e-3) -> None:
    """Shorten, in place, every unit's gradient to at most clip_factor * max(norm of the unit's weights, eps)."""
    for parameter in parameters:
        if parameter.grad is not None:
            limit = clip_factor * unit_norm(parameter).clamp(min=eps)
            factor = limit / unit_norm(parameter.grad).maximum(limit)
            parameter.grad.mul_(factor.to(parameter.grad.dtype))


@HOOKS.register_module()
class AdaptiveClipHook(Hook):
    """Adaptive gradient clipping (Brock et al., "High-performance large-scale image recognition without
    normalization", ICML 2021) before every step of the optimizer.

    A hook and no optimizer wrapper, so that it goes with every wrapper, also the AmpOptimWrapper that `--amp` puts in
    the place of the config's. MMEngine's hooks have no moment between backward and step, so this one uses the
    optimizer's: there the gradients are complete, synchronised and without the loss scale.

    Args:
        clip_factor: the longest gradient of a unit, in lengths of its weights; 0.01 to 0.16 in the paper.
        eps: units are taken to be at least so long, so that zeros can grow.
        exclude: regular expressions over the model's names; a parameter in which one is found is not clipped. The paper
            leaves out the last linear layer.
    """

    def __init__(self, clip_factor: float = 0.01, eps: float = 1e-3, exclude: Sequence[str] = (r"(^|\.)head\.",)):
        if clip_factor <= 0 or eps <= 0:
            raise ValueError(f"AdaptiveClipHook: clip_factor={clip_factor} and eps={eps} must be positive")
        self.clip_factor, self.eps = clip_factor, eps
        self.exclude = [exclude] if isinstance(exclude, str) else list(exclude)

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        optimizer = runner.optim_wrapper.optimizer
        if getattr(optimizer, "_step_supports_amp_scaling", False) and hasattr(runner.optim_wrapper, "loss_scaler"):
            raise ValueError("AdaptiveClipHook: a fused optimizer divides by the loss scale too late; set fused=False.")
        names = [name for name, _ in model.named_parameters()]
        for pattern in self.exclude:
            if not any(re.search(pattern, name) for name in names):
                raise ValueError(
                    f"AdaptiveClipHook.exclude: {pattern!r} is found in no parameter of {type(model).__name__}; the "
                    f"last ones are {', '.join(names[-3:])}. exclude=[] clips all."
                )
        self._clipped = [
            parameter
            for name, parameter in model.named_parameters()
            if not any(re.search(pattern, name) for pattern in self.exclude)
        ]
        self._handle = optimizer.register_step_pre_hook(self._clip)

    def _clip(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        adaptive_clip(self._clipped, self.clip_factor, self.eps)

    def after_train(self, runner) -> None:
        self._handle.remove()


# --- repeated augmentation -------------------------------------------------------------------------------------------


@DATA_SAMPLERS.register_module()
class RepeatedAugmentSampler(DefaultSampler):
    """Repeated augmentation (Hoffer et al., CVPR 2020) as DeiT trains: `repeats` draws of an image lie side by side in
    the order of the epoch, so that with several processes each gets another one. An epoch has as many samples as the
    data set, hence a `repeats`-th of its images.

    For data sets that draw by (seed, epoch, item), as EpochSampler: every repeat has an epoch of its own.
    """

    def __init__(self, dataset, repeats: int = 3, shuffle: bool = True, seed: int | None = None):
        super().__init__(dataset, shuffle, seed)
        self.repeats = positive("RepeatedAugmentSampler.repeats", repeats)

    def __iter__(self) -> Iterator[int]:
        size = len(self.dataset)
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        items = torch.randperm(size, generator=generator).tolist() if self.shuffle else range(size)
        for place in range(self.rank, self.total_size, self.world_size):
            number, repeat = divmod(place, self.repeats)
            yield items[number % size] + (self.epoch * self.repeats + repeat) * size
