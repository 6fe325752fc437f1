"""Layer-wise relevance propagation (LRP) over any network: rules by operation, not by module.

    found = propagate(network, images, logit(3))
    found.inputs[0]         # (B, 3, H, W), signed
    print(found)            # the sum beside the score, for each sample

A forward pass runs the network's own code and sees every operation of PyTorch in it, whatever module, function or
operator of ours it is called from. Relevance is kept as R = x * g: a product of each value and a modified gradient g,
which every operation hands from its output y to its inputs x. The sum of x * g over the inputs of an operation equals
that of y * g over its outputs, but for what a constant adds (a bias, a position table, a class token): that share stays
with the constant, and `Relevance.kept` says how much it is. Without constants, the sum of the relevance of the inputs is
the score.

The rules:

linear (sum, mean, average pooling, views, padding, gathering, interpolation, Fourier transforms, ...), and residual
    additions: the gradient.
convolution (of any stride, groups, dilation, transposed), linear layer with constant weights: of `Rules`. Attention's
    products, and `bmm` with constant weights, are always "plain".
normalization: affine, with variances as constants; the mean that is subtracted is a linear part. Batch normalization of
    what a convolution or a linear layer gave is merged into it, where their rule is not plain: by the trace, with eps.
ReLU, leaky ReLU, maximum, sorting, max pooling, norms of vectors (all that scales with its input): the gradient. Where
    windows of a max pooling share a winner, `overlap` says what it gets.
activation (GELU, SiLU, tanh, ELU, softplus, hard swish, clamp, powers, ...): g (f(x) - f(0)) / x. With f(0) = 0
    relevance passes unchanged.
product of two values that both come from the input (q·k, weights·v, gates by multiplication, linear attention, dynamic
    convolution): half the gradient to each. A factor that is constant gets nothing, the other one everything.
division: all to the numerator.
softmax, sigmoid, exp, logsumexp: what they give are weights, which are constant (CP-LRP: all relevance of an attention
    passes to its values), or pass the gradient (AttnLRP); see `Rules`. log_softmax: to its input, as a shift by a constant.
reciprocal, 1/sqrt, log, rounding: a scale, which is constant.

A module that is called twice is two operations; an operation in place is one as well. What has no rule is listed, and
refused, before any relevance is propagated.

Sources: LRP, Bach et al. 2015; the rules of "Beyond saliency", arXiv 1712.08268 (Hey1Li/Salient-Relevance-Propagation);
weights of attention as constants, arXiv 2202.07304; halves of products and the softmax's gradient, AttnLRP, arXiv
2402.05602. The rules of activations (the secant), of divisions and of norms of vectors are ours.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ...kernels.dispatch import decompositions
from ...kernels.neighbor_moments import neighbor_moments_reference
from ...kernels.residual_norm import residual_norm_reference
from ...kernels.surface_attention import surface_attention_reference

LAYER_RULES = ("plain", "positive_weights", "positive_parts")
STABILIZER = 1e-9  # of the sums that the positive rules divide by


@dataclass(frozen=True)
class Rules:
    """Which of several published rules an operation has.

    Args:
        convolution, linear: "plain" splits by x w; with the bias in the divisor, so that its share stays with it.
            "positive_weights" (z+) splits by x max(w, 0), without the bias; meant for inputs of one sign.
            "positive_parts" splits by max(x w, 0), without the bias, for inputs of any sign.
        epsilon: stabilizer at least 0 of the "plain" rule: y / (y + epsilon sign(y)) of the relevance is passed on.
        overlap: of a max pooling, whether an input that wins in several windows gets the "sum", or what the last one
            brings ("overwrite"; the rest is lost, as in the published notebooks).
        weights: whether what softmax, sigmoid and exp give is "constant", or passes the "gradient".
    """

    convolution: str = "plain"
    linear: str = "plain"
    epsilon: float = 0.0
    overlap: str = "sum"
    weights: str = "constant"

    def __post_init__(self):
        for name, choices in (
            ("convolution", LAYER_RULES),
            ("linear", LAYER_RULES),
            ("overlap", ("sum", "overwrite")),
            ("weights", ("constant", "gradient")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {choices}")
        if not 0 <= self.epsilon < float("inf"):
            raise ValueError(f"epsilon={self.epsilon} must be a finite number of at least 0")


PAPER = Rules(linear="positive_weights")  # of arXiv 1712.08268; its notebooks have overlap="overwrite", too


class NoRule(ValueError):
    """Operations of a network that have no rule."""


@dataclass
class Relevance:
    """What `propagate` found.

    Attributes:
        inputs: relevance of each input, of its shape; None for one without floating point, or that carries none.
        layers: name of a module -> relevance of what it gave, one for each call.
        scores: (B,).
    """

    inputs: list[Tensor | None]
    layers: dict[str, list[Tensor]]
    scores: Tensor

    @property
    def sums(self) -> Tensor:
        """(B,), the sum of the relevance of the inputs of a sample."""
        found = [x.flatten(1).sum(1) for x in self.inputs if x is not None]
        return torch.stack(found).sum(0) if found else torch.zeros_like(self.scores)

    @property
    def kept(self) -> Tensor:
        """(B,), the rest of the score: what biases and other constants, and stabilizers, kept."""
        return self.scores - self.sums

    def __str__(self) -> str:
        rows = zip(self.scores.tolist(), self.sums.tolist(), self.kept.tolist())
        return "\n".join(
            f"sample {i}: relevance sums to {total:.4g}, score {score:.4g}; biases and other constants kept {kept:.4g}"
            for i, (score, total, kept) in enumerate(rows)
        )


@dataclass(frozen=True)
class Operation:
    """A kind of operation in a network: its name in PyTorch, its rule ("" for none), its calls, and where they are."""

    name: str
    rule: str
    calls: int
    modules: tuple[str, ...]


def propagate(
    network: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    score: Callable[[Any], Tensor],
    rules: Rules = Rules(),
    layers: Sequence[str] = (),
    at_inputs: bool = True,
) -> Relevance:
    """The relevance of every input value for a score of each sample.

    Args:
        network: in inference mode.
        inputs: of the network; the first axis of each is the batch.
        score: function of what the network gives -> (B,), differentiable. It is taken as it is, by its gradient: a
            logit, or a sum of values that the network gives, is split exactly.
        rules: see `Rules`.
        layers: names of modules, each of which gives a tensor; their relevance comes, too.
        at_inputs: whether relevance goes down to the inputs. Without, it stops at `layers`, and what lies before them
            needs no rule.

    Raises:
        ValueError: the network is in training mode, or has no such module, or a module is not called; an input or a
            score is NaN or infinite; the score does not depend on the inputs.
        NoRule: names every operation without a rule, and the modules that call it.
    """
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    _check(network, given, layers, at_inputs)
    with _trace(network, given, rules, layers, at_inputs) as (tape, leaves, call):
        output = call()
        missing = [row for row in tape.operations() if not row.rule]
        if missing:
            raise NoRule(_refusal(missing))
        tape.native = True
        scores = tape.inner(_scores(score, output, len(given[0])))
        for name in layers:
            if not tape.kept.get(name):
                raise ValueError(f"{name!r} is not called by the network")
        kept = [x for name in layers for x in tape.kept[name]]
        wanted = [x for x in leaves if x is not None] + kept
        if not scores.requires_grad:
            raise ValueError(
                "the score does not depend on the inputs by any operation that passes relevance: a softmax or sigmoid at "
                "the end gives weights, which are constant; take the logits before it"
            )
        with torch.inference_mode(False), torch.enable_grad():
            found = torch.autograd.grad(scores.sum(), wanted, allow_unused=True)
    values = [torch.zeros_like(x) if g is None else (x.detach() * g) for x, g in zip(wanted, found)]
    of_inputs = [None if x is None else values.pop(0) for x in leaves]
    of_layers = {name: [values.pop(0) for _ in tape.kept[name]] for name in layers}
    return Relevance(of_inputs, of_layers, scores.detach())


def operations(
    network: nn.Module, inputs: Tensor | Sequence[Tensor], rules: Rules = Rules(), at_inputs: bool = True
) -> list[Operation]:
    """The operations through which inputs reach the output, each with its rule; "" for one that has none.

    Args: as of `propagate`.
    """
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    _check(network, given, (), True)
    with _trace(network, given, rules, (), True) as (tape, _, call):
        call()
    return tape.operations()


def _check(network: nn.Module, inputs: Sequence[Any], layers: Sequence[str], at_inputs: bool) -> None:
    if network.training:
        raise ValueError(f"{type(network).__name__} is in training mode; relevance is of inference: call eval() first")
    if not inputs or not all(isinstance(x, Tensor) and x.ndim for x in inputs):
        raise ValueError("inputs must be a tensor, or several of them, with the batch as the first axis")
    if len({len(x) for x in inputs}) > 1 or not len(inputs[0]):
        raise ValueError(f"inputs must have one batch size, at least 1, got {[len(x) for x in inputs]}")
    for number, x in enumerate(inputs):
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise ValueError(f"input {number} has values that are NaN or infinite")
    if isinstance(layers, str):
        raise ValueError(f"layers={layers!r} must be a list of names of modules")
    known = dict(network.named_modules())
    for name in layers:
        if name not in known:
            last = name.rpartition(".")[2]
            near = [n for n in known if n.endswith(last)][:3] or [n for n, _ in network.named_children()]
            raise ValueError(f"{name!r} is no module of {type(network).__name__}. Near it: {', '.join(near)}")
    if not at_inputs and not layers:
        raise ValueError("at_inputs=False needs layers, where relevance stops")
    if at_inputs and not any(x.is_floating_point() for x in inputs):
        raise ValueError("no input is of floating point: give layers, and at_inputs=False")


def _scores(score: Callable[[Any], Tensor], output: Any, batch: int) -> Tensor:
    found = score(output)
    if not isinstance(found, Tensor) or found.shape != (batch,):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"the score must be ({batch},), a number for each sample, got {shape}")
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"the score of sample {(~torch.isfinite(found)).nonzero()[0].item()} is NaN or infinite")
    return found


def _refusal(missing: Sequence[Operation]) -> str:
    lines = [f"  {row.name}: {row.calls} calls, in {', '.join(row.modules)}" for row in missing]
    return "these operations have no rule:\n" + "\n".join(lines) + "\nRelevance can stop behind them (at_inputs=False)."


@contextmanager
def _trace(network, inputs, rules, layers, at_inputs) -> Iterator:
    """The tape, the leaves that stand for the inputs, and a function that runs the network on them."""
    tape, modules = Tape(rules), dict(network.named_modules())
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)  # a single operator without a rule
        for name in layers:
            stack.callback(modules[name].register_forward_hook(partial(tape.keep, name)).remove)
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(partial(tape.enter, name)).remove)
            stack.callback(module.register_forward_hook(tape.leave, always_call=True).remove)
        stack.enter_context(allow_mutation_on_saved_tensors())
        stack.enter_context(torch.inference_mode())
        leaves, run_on = [], []
        with torch.inference_mode(False), torch.enable_grad():
            for x in inputs:
                carries = at_inputs and x.is_floating_point()
                leaves.append(x.detach().clone().requires_grad_() if carries else None)
                run_on.append(tape.outer(x.detach().clone() if leaves[-1] is None else leaves[-1].clone()))
        stack.enter_context(tape)
        yield tape, leaves, lambda: network(*run_on)


class Tape(TorchDispatchMode):
    """Runs every operation of PyTorch once more above autograd, by its rule.

    Each tensor that the network sees is the detached twin of one with a graph. Both share their memory.
    """

    def __init__(self, rules: Rules):
        super().__init__()
        self.rules, self.native = rules, False
        self.kept: dict[str, list[Tensor]] = {}
        self.modules: list[str] = []
        self.calls: Counter[tuple[str, str]] = Counter()
        self.places: dict[tuple[str, str], dict[str, None]] = {}
        self.references = {**decompositions(), **_references()}

    # --- hooks of modules --------------------------------------------------------------------------------------------

    def enter(self, name: str, module: nn.Module, args: tuple) -> None:
        self.modules.append(name or type(module).__name__)

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.modules.pop()

    def keep(self, name: str, module: nn.Module, args: tuple, output: Any) -> Tensor:
        """Keep what a module gave, and go on with a copy of it: the network may write into it."""
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise ValueError(f"{name!r} gives a {type(output).__name__}; relevance is kept of a tensor of floats")
        with torch.inference_mode(False), torch.enable_grad():
            x = self.inner(output)
            if not x.requires_grad:
                x = x.detach().clone().requires_grad_()
            self.kept.setdefault(name, []).append(x)
            return self.outer(x.clone())

    # --- operations --------------------------------------------------------------------------------------------------

    @staticmethod
    def inner(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        twin = getattr(x, "_relevance", None)
        return x.detach() if twin is None else twin

    @staticmethod
    def outer(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        twin = x.detach()
        twin._relevance = x  # type: ignore[attr-defined]
        return twin

    def operations(self) -> list[Operation]:
        return [Operation(name, rule, n, tuple(self.places[name, rule])) for (name, rule), n in self.calls.items()]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().partition(".")[0].removeprefix("aten::")
        if name == "scaled_dot_product_attention":
            with self:
                return torch.ops.aten._scaled_dot_product_attention_math(*args, **kwargs)[0]
        if name in FUSED and not self.native:
            with self:
                return FUSED[name](*args, **kwargs)
        if func in self.references:
            with self:
                done = self.references[func](*args, **kwargs)
            if done is not NotImplemented:
                return done
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                done = func.decompose(*args, **kwargs)
            if done is not NotImplemented:
                return done
        with torch.inference_mode(False), torch.enable_grad():
            return self._run(func, name, args, kwargs)

    def _run(self, func, name: str, args: tuple, kwargs: dict):
        inner, options = tree_map(self.inner, (args, kwargs))
        carries = any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves((inner, options)))
        in_place = func._schema.is_mutable
        base = name.removesuffix("_") if in_place else name
        if not carries or self.native:
            out = func(*inner, **options)
        else:
            rule = _rule_of(base)
            if rule is not None and rule[1] is None:
                out = func(*inner, **options)
            elif in_place:
                target = inner[0]
                plain = getattr(getattr(torch.ops.aten, base), func._overloadname)
                done = (rule[1] if rule else _cut)(self.rules, plain, target.clone(), *inner[1:], **options)
                out = target.copy_(done)
            else:
                out = (rule[1] if rule else _cut)(self.rules, func, *inner, **options)
            given = tree_leaves(out)
            if rule is not None or any(isinstance(x, Tensor) and x.is_floating_point() for x in given):
                self._count(func.name().partition(".")[0], rule[0] if rule else "")
        if in_place:
            return args[0] if func._schema.returns else None
        return tree_map(self.outer, out)

    def _count(self, name: str, rule: str) -> None:
        self.calls[name, rule] += 1
        self.places.setdefault((name, rule), {})[self.modules[-1] if self.modules else "the network"] = None


# --- rules -----------------------------------------------------------------------------------------------------------


class _Instead(torch.autograd.Function):
    """The value of one tensor, with the gradient of another."""

    @staticmethod
    def forward(ctx, value: Tensor, carrier: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return None, grad


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad / 2


def _carries(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _constant(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _cut(rules: Rules, func, *args, **options):
    """What gives weights or a scale: its output is constant."""
    args, options = tree_map(_constant, (args, options))
    return func(*args, **options)


def _weights(rules: Rules, func, *args, **options):
    return (func if rules.weights == "gradient" else partial(_cut, rules, func))(*args, **options)


def _product(rules: Rules, func, *args, **options):
    """Half to each factor. The first argument of `addcmul` and `baddbmm` is added."""
    first = 1 if func.name().startswith(("aten::addcmul", "aten::baddbmm")) else 0
    factors = [x for x in args[first:] if _carries(x)]
    if len(factors) > 1:
        args = (*args[:first], *(_Half.apply(x) if _carries(x) else x for x in args[first:]))
    return func(*args, **options)


def _quotient(rules: Rules, func, x, y, **options):
    return func(x, _constant(y), **options)


def _secant(rules: Rules, func, x: Tensor, *args, **options):
    """g (f(x) - f(0)) / x; near 0 by a point at a small distance from it."""
    args, options = tree_map(_constant, (args, options))
    constant = x.detach()
    least = torch.full_like(constant, 1e-3)
    apart = torch.where(constant.abs() < least, torch.where(constant < 0, -least, least), constant)
    slope = (func(apart, *args, **options) - func(torch.zeros_like(constant), *args, **options)) / apart
    return _Instead.apply(func(constant, *args, **options), x * slope)


def _power(rules: Rules, func, x, exponent):
    if isinstance(x, Tensor) and not isinstance(exponent, Tensor) and exponent > 0:
        return _secant(rules, func, x, exponent)
    return _weights(rules, func, x, exponent) if not isinstance(x, Tensor) else _cut(rules, func, x, exponent)


def _variance(rules: Rules, func, x, *args, **options):
    return func(_Half.apply(x), *args, **options)


def _variance_and_mean(rules: Rules, func, x, *args, **options):
    return func(_Half.apply(x), *args, **options)[0], func(x, *args, **options)[1]


def _pass_on(rules: Rules, func, x, *args, **options):
    """The value of an operation, whose relevance goes to x unchanged."""
    return _Instead.apply(func(x.detach(), *args, **options), x)


def _not_detached(rules: Rules, func, x):
    return x.view_as(x)


def _first_linear(rules: Rules, func, x, *args, **options):
    """Linear in the first argument; the others, such as places, are weights."""
    args, options = tree_map(_constant, (args, options))
    return func(x, *args, **options)


def _lerp(rules: Rules, func, start, end, weight):
    return func(start, end, _constant(weight))


def _max_pool(rules: Rules, func, x, *args, **options):
    y, index = func(x, *args, **options)
    if rules.overlap == "sum":
        return y, index
    axes = len(args[0])
    flat = index.flatten(-axes)
    order = torch.arange(flat.shape[-1], device=x.device).expand_as(flat)
    last = torch.full_like(x.detach().flatten(-axes), -1, dtype=torch.int64).scatter_reduce(-1, flat, order, "amax")
    wins = (last.gather(-1, flat) == order).view_as(y)
    return _Instead.apply(y.detach(), y * wins), index


# Layers with constant weights.


@dataclass
class _Layer:
    """A linear map x, w -> y without its bias, so that a rule can run it on other weights."""

    run: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    weight: Tensor
    out_axis: int | None  # of the weight, None where a batch norm cannot be merged into it
    version: int = field(default=0)

    def relevant(self, value: Tensor, rule: str, scale: Tensor | None = None) -> Tensor:
        """`value`, with the relevance of a positive rule; `scale` of the outputs is merged into the weights."""
        weight = self.weight
        if scale is not None:
            shape = [1] * weight.ndim
            shape[self.out_axis or 0] = -1
            weight = weight * scale.view(shape)
        x, value = self.x, value.detach()
        if rule == "positive_weights":
            z = self.run(x, weight.clamp(min=0))
        else:
            z = self.run(x.clamp(min=0), weight.clamp(min=0)) + self.run(x.clamp(max=0), weight.clamp(max=0))
        return _Instead.apply(value, z * (value / (z + STABILIZER)).detach())


def _damped(rules: Rules, y: Tensor) -> Tensor:
    if not rules.epsilon:
        return y
    value = y.detach()
    share = value.abs() / (value.abs() + rules.epsilon)
    return _Instead.apply(value, y * share)


def _with_layer(rules: Rules, rule: str, plain: Tensor, layer: _Layer) -> Tensor:
    if rule == "plain" and not rules.epsilon:
        return plain
    y = _damped(rules, plain) if rule == "plain" else layer.relevant(plain, rule)
    layer.version = y._version
    y._layer = (layer, rule, plain)  # type: ignore[attr-defined]  for a batch norm that follows
    return y


def _convolution(rules: Rules, func, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    options = (stride, padding, dilation, transposed, output_padding, groups)
    if _carries(weight):
        x = _Half.apply(x) if _carries(x) else x
        return func(x, _Half.apply(weight) if _carries(x) else weight, bias, *options)
    layer = _Layer(lambda x, weight: func(x, weight, None, *options), x, weight, None if transposed else 0)
    return _with_layer(rules, rules.convolution, func(x, weight, bias, *options), layer)


def _matrices(rules: Rules, func, *args, **options):
    """mm(x, w) and addmm(bias, x, w)."""
    *bias, x, weight = args
    if _carries(x) and _carries(weight):
        return func(*bias, _Half.apply(x), _Half.apply(weight), **options)
    y = func(*args, **options)
    if not _carries(x) or (bias and _carries(bias[0])) or options:
        return y
    return _with_layer(rules, rules.linear, y, _Layer(torch.mm, x, weight, 1))


def _batch_norm(rules: Rules, func, x, weight, bias, mean, variance, training, momentum, eps):
    out = func(x, weight, bias, mean, variance, training, momentum, eps)
    if training:  # statistics of the batch, or of an instance
        axes = [axis for axis in range(x.ndim) if axis != 1]
        value = x.detach()
        scale = (value.var(axes, correction=0, keepdim=True) + eps).rsqrt()
        if weight is not None:
            scale = scale * weight.view(-1, *[1] * (x.ndim - 2))
        return _Instead.apply(out[0].detach(), (x - x.mean(axes, keepdim=True)) * scale), *out[1:]
    layer, rule, plain = getattr(x, "_layer", (None, "", None))
    if layer is None or layer.out_axis is None or layer.version != x._version:
        return out
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    if rule == "plain":
        return _damped(rules, func(plain, weight, bias, mean, variance, training, momentum, eps)[0]), *out[1:]
    return layer.relevant(out[0], rule, scale), *out[1:]


def _layer_norm(rules: Rules, func, x, shape, weight, bias, eps):
    y, mean, scale = func(x.detach(), shape, weight, bias, eps)
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    carrier = (x - x.mean(axes, keepdim=True)) * scale
    return _Instead.apply(y, carrier if weight is None else carrier * weight), mean, scale


def _group_norm(rules: Rules, func, x, weight, bias, n, channels, size, groups, eps):
    y, mean, scale = func(x.detach(), weight, bias, n, channels, size, groups, eps)
    rows = x.reshape(n, groups, -1)
    carrier = ((rows - rows.mean(-1, keepdim=True)) * scale.view(n, groups, 1)).view(x.shape)
    if weight is not None:
        carrier = carrier * weight.view(-1, *[1] * (x.ndim - 2))
    return _Instead.apply(y, carrier), mean, scale


def _rms_norm(rules: Rules, func, x, shape, weight, eps):
    y, scale = func(x.detach(), shape, weight, eps)
    return _Instead.apply(y, x * scale if weight is None else x * scale * weight), scale


# What stands for several operations.


def _flash_attention(q, k, v, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None):
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        ahead = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(ahead, float("-inf"))
    if attn_mask is not None:
        logits = logits + attn_mask
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


def _glu(x, dim=-1):
    a, b = x.chunk(2, dim)
    return a * b.sigmoid()


FUSED = {"_scaled_dot_product_flash_attention_for_cpu": _flash_attention, "glu": _glu}


def _references() -> dict:
    """Operators of ours that exports keep whole, by their definitions."""
    ours = torch.ops.attlas
    return {
        ours.neighbor_moments.default: neighbor_moments_reference,
        ours.residual_norm.default: residual_norm_reference,
        ours.surface_attention.default: surface_attention_reference,
    }


_NATIVE = {
    "linear": """
        view _unsafe_view _reshape_alias reshape alias permute transpose t expand slice select unbind split
        split_with_sizes unsafe_split chunk unsqueeze squeeze diagonal unfold as_strided clone copy _to_copy lift_fresh
        cat stack constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d roll flip repeat index _unsafe_index index_select gather scatter scatter_add index_add
        index_copy index_put _index_put_impl index_fill masked_fill masked_scatter masked_select where take tril triu
        pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im add sub rsub neg sum nansum mean cumsum trace
        avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d
        upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d
        upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _fft_r2c _fft_c2r
        _fft_c2c complex real imag view_as_real view_as_complex _conj conj conj_physical resolve_conj _neg_view fill
        slice_scatter select_scatter diag_embed scatter_reduce attlas::gather_neighbors attlas::scatter_neighbors""",
    "scales with its input": """
        relu leaky_relu prelu _prelu_kernel rrelu_with_noise threshold abs amax amin max min maximum minimum fmax fmin
        aminmax topk sort cummax cummin kthvalue median linalg_vector_norm norm std cdist _cdist_forward _euclidean_dist
        hypot attlas::gather_max""",
}
_MADE: dict[str, tuple[Callable, str]] = {
    "activation": (
        _secant,
        """gelu silu tanh erf elu celu selu hardswish hardtanh relu6 softplus softshrink hardshrink mish clamp clamp_min
        clamp_max sqrt square log1p expm1 sin cos tan sinh asinh atan""",
    ),
    "power": (_power, "pow"),
    "weights": (_weights, "_softmax _safe_softmax softmax sigmoid hardsigmoid exp exp2 logsumexp"),
    "constant": (_cut, "new_zeros new_ones new_empty new_full zeros_like ones_like empty_like full_like"),
    "scale": (
        _cut,
        "log log2 log10 rsqrt reciprocal floor ceil round trunc sign heaviside floor_divide remainder fmod",
    ),
    "shift by a constant": (_pass_on, "_log_softmax"),
    "product": (_product, "mul bmm baddbmm addcmul mv dot linalg_cross"),
    "to the numerator": (_quotient, "div true_divide"),
    "square": (_variance, "var"),
    "square and mean": (_variance_and_mean, "var_mean"),
    "linear in the first": (_first_linear, "grid_sampler_2d grid_sampler_3d embedding attlas::three_interpolate"),
    "linear in both ends": (_lerp, "lerp"),
    "value kept": (_not_detached, "detach"),
    "max pooling": (
        _max_pool,
        "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d",
    ),
    "convolution": (_convolution, "convolution"),
    "linear layer": (_matrices, "mm addmm"),
    "batch norm": (_batch_norm, "native_batch_norm cudnn_batch_norm"),
    "layer norm": (_layer_norm, "native_layer_norm"),
    "group norm": (_group_norm, "native_group_norm"),
    "RMS norm": (_rms_norm, "_fused_rms_norm"),
}
_RULES: dict[str, tuple[str, Callable | None]] = {
    **{name: (rule, None) for rule, names in _NATIVE.items() for name in names.split()},
    **{name: (rule, function) for rule, (function, names) in _MADE.items() for name in names.split()},
}


def _rule_of(name: str) -> tuple[str, Callable | None] | None:
    """The rule of an operation: its name, and a function that runs it, None for PyTorch's own gradient."""
    return _RULES.get(name)
