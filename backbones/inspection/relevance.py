"""Layer-wise relevance propagation (LRP) over any network: rules by operation, not by module.

    found = propagate(network, images, logit(3))
    found.inputs[0]         # (B, 3, H, W), signed
    print(found)            # the sum beside the score, for each sample

A forward pass runs the network's own code and sees every operation of PyTorch in it, whatever module, function or
operator of ours it is called from. Relevance is kept as R = x * g: a product of each value and a modified gradient g,
which every operation hands from its output y to its inputs x. The sum of x * g over the inputs of an operation equals
that of y * g over its outputs, but for what a constant adds (a bias, a position table, a class token): that share
stays with the constant, and `Relevance.kept` says how much it is. Without constants, the sum of the relevance of the
inputs is the score.

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
    passes to its values), or pass the gradient (AttnLRP); see `Rules`. log_softmax: to its input, as a shift by a
    constant.
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
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ...kernels.dispatch import decompositions
from .relevance_rules import FUSED, PAPER, PLAIN, Rules, cut, references, rule_of

__all__ = ["PAPER", "PLAIN", "NoRule", "Operation", "Relevance", "Rules", "operations", "propagate"]


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
    rules: Rules = PLAIN,
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
                "the score does not depend on the inputs by any operation that passes relevance: a softmax or sigmoid "
                "at the end gives weights, which are constant; take the logits before it"
            )
        with _recorded():
            found = torch.autograd.grad(scores.sum(), wanted, allow_unused=True)
    values = [torch.zeros_like(x) if g is None else (x.detach() * g) for x, g in zip(wanted, found)]
    of_inputs = [None if x is None else values.pop(0) for x in leaves]
    of_layers = {name: [values.pop(0) for _ in tape.kept[name]] for name in layers}
    return Relevance(of_inputs, of_layers, scores.detach())


def operations(
    network: nn.Module, inputs: Tensor | Sequence[Tensor], rules: Rules = PLAIN, at_inputs: bool = True
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
        with _recorded():
            for x in inputs:
                carries = at_inputs and x.is_floating_point()
                leaves.append(x.detach().clone().requires_grad_() if carries else None)
                run_on.append(tape.outer(x.detach().clone() if leaves[-1] is None else leaves[-1].clone()))
        stack.enter_context(tape)
        yield tape, leaves, lambda: network(*run_on)


@contextmanager
def _recorded() -> Iterator[None]:
    """Autograd as outside of a mode, whose handlers run without the key by which views know what they are views of."""
    views = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False)
    with torch.inference_mode(False), views, torch.enable_grad():
        yield


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
        self.references = {**decompositions(), **references()}

    # --- hooks of modules --------------------------------------------------------------------------------------------

    def enter(self, name: str, module: nn.Module, args: tuple) -> None:
        self.modules.append(name or type(module).__name__)

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.modules.pop()

    def keep(self, name: str, module: nn.Module, args: tuple, output: Any) -> Tensor:
        """Keep what a module gave, and go on with a copy of it: the network may write into it."""
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise ValueError(f"{name!r} gives a {type(output).__name__}; relevance is kept of a tensor of floats")
        with _recorded():
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
        with _recorded():
            return self._run(func, name, args, kwargs)

    def _run(self, func, name: str, args: tuple, kwargs: dict):
        inner, options = tree_map(self.inner, (args, kwargs))
        carries = any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves((inner, options)))
        in_place = func._schema.is_mutable
        base = name.removesuffix("_") if in_place else name
        if not carries or self.native:
            out = func(*inner, **options)
        else:
            rule: Any = rule_of(base)
            if rule is not None and rule[1] is None:
                out = func(*inner, **options)
            elif in_place:
                target = inner[0]
                plain = getattr(getattr(torch.ops.aten, base), func._overloadname)
                done = (rule[1] if rule else cut)(self.rules, plain, target.clone(), *inner[1:], **options)
                out = target.copy_(done)
            else:
                out = (rule[1] if rule else cut)(self.rules, func, *inner, **options)
            given = tree_leaves(out)
            if rule is not None or any(isinstance(x, Tensor) and x.is_floating_point() for x in given):
                self._count(func.name().partition(".")[0], rule[0] if rule else "")
        if in_place:
            return args[0] if func._schema.returns else None
        return tree_map(self.outer, out)

    def _count(self, name: str, rule: str) -> None:
        self.calls[name, rule] += 1
        self.places.setdefault((name, rule), {})[self.modules[-1] if self.modules else "the network"] = None
