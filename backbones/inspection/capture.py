"""What passes through the layers of a network, and the gradient of a score there, in one pass and without a trace.

    seen = look(network, images, logit(3), ["stages.2", "stages.3"])
    seen[0].activation, seen[0].gradient      # (B, C, h, w) each

A layer is a module by name. `neck[1]` is the second of the tensors that a module gives; `relu#2` is the third call of
a module that runs several times, whose calls are never added up. Maps (B, C, H, W) are taken as they are. Rows of
tokens (B, N, C) become maps without prefix tokens, whose number and grid the model says, or the caller; they are never
guessed. "input" is what the network reads (its first argument).

What is captured is a copy of the layer's output, so that an operation in place behind it changes nothing. The network's
parameters take no gradients meanwhile, and the graph begins at the first of the layers: the memory is that of the
activations from there on.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..skeletons.backbone import Backbone
from ..skeletons.isotropic import Isotropic
from .targets import Scoring, ToMap, evaluate

Inputs = Tensor | tuple[Tensor, ...]  # what the network is called with


@dataclass
class Seen:
    """What passed through a layer."""

    layer: str
    activation: Tensor  # (B, C, h, w); of `look(..., grid=function)` (B, C, *places)
    gradient: Tensor  # of the score, alike
    entering: Tensor | None = None  # what the module read, where that was asked for


# --- nothing changes -------------------------------------------------------------------------------------------------


def _marks(network: nn.Module) -> dict[str, tuple]:
    marks: dict[str, tuple] = {}
    for name, module in network.named_modules():
        marks[f"the mode of {name or 'the network'}"] = (module.training,)
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        marks[f"the hooks of {name or 'the network'}"] = tuple(key for kind in hooks for key in kind)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        version = -1 if tensor.is_inference() else tensor._version
        marks[name] = (id(tensor), version, tensor.requires_grad, id(tensor.grad))
    return marks


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Hold a network to what it was: parameters and buffers (the same tensors, never written to), their `requires_grad`
    and `grad`, modes and hooks. Costs no memory.

    Raises:
        RuntimeError: one of these is another at the end.
    """
    held = [*network.parameters(), *network.buffers()]  # else the id of one that is replaced may be given again
    before = _marks(network)
    yield
    after = _marks(network)
    del held
    if changed := [name for name in {**before, **after} if before.get(name) != after.get(name)]:
        raise RuntimeError(f"looking at the network changed it: {', '.join(changed[:3])}")


@contextmanager
def swapped(network: nn.Module, change: Callable[[str, nn.Parameter], Tensor], detach: bool = True) -> Iterator[None]:
    """Run a network with other parameters, whose own ones are laid aside, untouched, and come back whatever happens.

    Args:
        network: any.
        change: (name, parameter) -> the value that stands in for it. A parameter that several modules share is
            changed once.
        detach: whether the stand-ins take no gradients; else they are the values themselves.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    places = [(m._parameters, key, p) for m in network.modules() for key, p in m._parameters.items() if p is not None]
    others: dict[int, Tensor] = {}
    for _, _, parameter in places:
        if id(parameter) not in others:
            value = change(names[id(parameter)], parameter)
            others[id(parameter)] = nn.Parameter(value.detach(), requires_grad=False) if detach else value
    try:
        for table, key, parameter in places:
            table[key] = others[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for table, key, parameter in places:
            table[key] = parameter


def check_mode(network: nn.Module) -> None:
    """ValueError where a part of a network is in training mode: it would draw at random, or average over the batch."""
    training = [name or type(module).__name__ for name, module in network.named_modules() if module.training]
    if training:
        raise ValueError(
            f"{training[0]} is in training mode; an explanation is of a network in inference mode: call network.eval()"
        )


# --- tokens and maps -------------------------------------------------------------------------------------------------


class TokenGrid(NamedTuple):
    """Rows of tokens (B, prefix + height * width, C), row by row, as maps (B, C, height, width)."""

    prefix: int  # class and register tokens before the patches
    height: int
    width: int

    def __call__(self, rows: Tensor) -> Tensor:
        expected = self.prefix + self.height * self.width
        if rows.ndim != 3 or rows.shape[1] != expected:
            raise ValueError(
                f"{self.prefix} prefix tokens and a grid of {self.height} x {self.width} are rows (B, {expected}, C), "
                f"and the layer gives {tuple(rows.shape)}"
            )
        return rows[:, self.prefix :].transpose(1, 2).unflatten(2, (self.height, self.width))


def token_grid(network: nn.Module, height: int, width: int) -> TokenGrid | None:
    """The grid of tokens of a plain vision transformer for images of height x width, as the model itself says it:
    `Isotropic`, or a model of transformers with `embeddings` of patches. None of others."""
    found = [module for module in network.modules() if isinstance(module, Isotropic)]
    if len(found) == 1:
        (vit,) = found
        joined = [part for part in (vit.cls_token, vit.register_tokens) if part is not None]
        prefix = sum(part.weight.shape[-2] for part in joined)
        return TokenGrid(prefix, *vit.map_sizes(height, width)[-1])
    embeddings = [m for name, m in network.named_modules() if name.rpartition(".")[2] == "embeddings"]
    patches: Any = [getattr(module, "patch_embeddings", None) for module in embeddings]
    if found or len(embeddings) != 1 or not isinstance(getattr(patches[0], "projection", None), nn.Conv2d):
        return None
    names = ("cls_token", "distillation_token", "register_tokens")
    tokens = [getattr(embeddings[0], name, None) for name in names]
    prefix = sum(token.shape[1] for token in tokens if isinstance(token, Tensor))
    step = patches[0].projection.stride
    return TokenGrid(prefix, height // step[0], width // step[1])


def _as_map(x: Tensor, module: nn.Module, layer: str, network: nn.Module, inputs: tuple, grid: ToMap | None) -> Tensor:
    if grid is not None:
        found = grid(x)
        if found.ndim < 3 or found.shape[0] != len(x):
            raise ValueError(f"grid must give maps (B, C, ...) of {layer}, and gave {tuple(found.shape)}")
        return found
    sides: tuple[int, ...] = tuple(inputs[0].shape[-2:]) if inputs[0].ndim == 4 else ()
    if x.ndim == 4:
        if isinstance(module, (nn.Linear, nn.LayerNorm)):  # whose channels are last
            return x.permute(0, 3, 1, 2)
        if x.shape[2] == 1 and x.shape[3] > 1 and sides and "blocks" in layer:
            expected = token_grid(network, *sides)
            if expected is not None and tuple(x.shape[2:]) != expected[1:]:
                raise ValueError(
                    f"{layer} gives {x.shape[3]} pixels that are left of {expected.height} x {expected.width}, which "
                    "are no map: choose a layer before the network drops pixels"
                )
        return x
    if x.ndim == 3 and sides and (tokens := token_grid(network, *sides)) is not None:
        return tokens(x)
    raise ValueError(
        f"{layer} ({type(module).__name__}) gives shape {tuple(x.shape)}, and nothing in the network says how "
        "that is a map (B, C, H, W): give grid=TokenGrid(prefix, height, width), or a function of your own"
    )


# --- layers ----------------------------------------------------------------------------------------------------------

INPUT = "input"  # the layer that is no module
LAYER = re.compile(r"(?P<name>.*?)(\[(?P<entry>\d+)\])?(#(?P<call>\d+))?")


class _Watch:
    """What one module gives, call by call."""

    def __init__(self, module: nn.Module, entering: bool):
        self.module, self.entering = module, entering
        self.layers: list[tuple[str, int | None, int | None]] = []  # as asked for, entry, call
        self.calls = 0
        self.read: dict[int, Tensor] = {}
        self.caught: dict[tuple[str, int], Tensor] = {}

    def before(self, module: nn.Module, args: tuple) -> tuple | None:
        if not self.entering or not args or not isinstance(args[0], Tensor):
            return None
        self.read[self.calls] = args[0].clone()
        return None

    def after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        call, self.calls = self.calls, self.calls + 1
        for layer, entry, wanted in self.layers:
            if wanted in (None, call):
                output = self._catch(layer, entry, call, output)
        return output

    def _catch(self, layer: str, entry: int | None, call: int, output: Any) -> Any:
        if isinstance(output, Tensor):
            if entry is not None:
                raise ValueError(f"{layer}: the module gives one tensor, no tuple of several")
            caught = self.caught[layer, call] = _tracked(output, layer)
            return caught.clone()
        if not isinstance(output, (tuple, list)):
            raise ValueError(f"{layer} gives a {type(output).__name__}; a layer must give a tensor, or a tuple of them")
        if entry is None:
            maps = [i for i, x in enumerate(output) if isinstance(x, Tensor) and x.ndim == 4]
            if len(maps) != 1:
                raise ValueError(
                    f"{layer} gives {len(output)} things, {len(maps)} of them maps: say which, such as "
                    f"{layer.partition('#')[0]}[{maps[0] if maps else 0}]"
                )
            entry = maps[0]
        if entry >= len(output) or not isinstance(output[entry], Tensor):
            raise ValueError(f"{layer}: the module gives {len(output)} things, and number {entry} is no tensor of them")
        caught = self.caught[layer, call] = _tracked(output[entry], layer)
        entries = list(output)
        entries[entry] = caught.clone()
        return type(output)(*entries) if hasattr(output, "_fields") else type(output)(entries)


def _tracked(x: Tensor, layer: str) -> Tensor:
    if not x.is_floating_point():
        raise ValueError(f"{layer} gives {x.dtype} numbers, which have no gradient")
    return x if x.requires_grad else x.detach().requires_grad_()


def check_layers(network: nn.Module, layers: str | Sequence[str]) -> list[str]:
    """The names of layers as a list.

    Raises:
        ValueError: no layer, one twice, or one that the network has not; names modules that are near.
    """
    names = [layers] if isinstance(layers, str) else list(layers)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"layers must be names of modules, each once, got {names}")
    modules = dict(network.named_modules())
    for layer in names:
        name = LAYER.fullmatch(layer)["name"]  # type: ignore[index]
        if name not in modules and layer != INPUT:
            near = difflib.get_close_matches(name, modules, 4, 0.5)
            raise ValueError(
                f"{layer}: the network has no such module; "
                + (
                    f"near are {', '.join(near)}"
                    if near
                    else f"it has {', '.join(list(dict(network.named_children())))}"
                )
            )
    return names


@contextmanager
def watched(network: nn.Module, layers: Sequence[str], entering: bool = False) -> Iterator[dict[str, _Watch]]:
    """Catch what the layers give while the network runs; by the layers' names as they were asked for."""
    modules = dict(network.named_modules())
    watches: dict[str, _Watch] = {}
    for layer in (layer for layer in layers if layer in modules or layer != INPUT):
        match: Any = LAYER.fullmatch(layer)
        entry, call = (None if match[key] is None else int(match[key]) for key in ("entry", "call"))
        watch = watches.setdefault(match["name"], _Watch(modules[match["name"]], entering))
        watch.layers.append((layer, entry, call))
    handles = []
    try:
        for watch in watches.values():
            handles += [
                watch.module.register_forward_pre_hook(watch.before),
                watch.module.register_forward_hook(watch.after),
            ]
        yield {layer: watch for watch in watches.values() for layer, _, _ in watch.layers}
    finally:
        for handle in handles:
            handle.remove()


def _call_of(layer: str, watch: _Watch) -> int:
    """The one call of a layer that was caught."""
    calls = [call for name, call in watch.caught if name == layer]
    if len(calls) == 1:
        return calls[0]
    name, hash_, _ = layer.partition("#")
    if not watch.calls:
        raise ValueError(f"{layer} did not run: the network takes another way from this input to its answer")
    if hash_:
        raise ValueError(f"{layer}: the module ran {watch.calls} times, #0 to #{watch.calls - 1}")
    raise ValueError(
        f"{layer} ran {watch.calls} times, and each call is a layer of its own: say which, {name}#0 to "
        f"{name}#{watch.calls - 1}"
    )


def as_inputs(inputs: Inputs) -> tuple[Tensor, ...]:
    """The arguments of a network as a tuple, outside of inference mode; the batch is the first dimension of the first.

    Raises:
        ValueError: no input, or an empty batch.
        TypeError: the first is no tensor of floats.
    """
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if not given or not isinstance(given[0], Tensor) or not given[0].is_floating_point():
        raise TypeError(f"inputs must be a tensor of floats, or a tuple that begins with one, got {inputs!r:.80}")
    if not given[0].numel():
        raise ValueError(f"inputs are empty: shape {tuple(given[0].shape)}")
    return tuple(x.clone() if isinstance(x, Tensor) and x.is_inference() else x for x in given)


@torch.inference_mode(False)
def look(
    network: nn.Module,
    inputs: Inputs,
    score: Scoring,
    layers: str | Sequence[str],
    grid: ToMap | None = None,
    entering: bool = False,
) -> list[Seen]:
    """What passes through layers, and the gradient of a score there: one pass forward and one backward for all.

    Args:
        network: any module in inference mode; it is called as `network(*inputs)`.
        inputs: tensor (B, ...), or a tuple of the arguments.
        score: output -> (B,), see `targets`.
        layers: names of modules, each once; see the top of this file.
        grid: how what the layers give becomes maps, where neither their shape nor the network says it: a `TokenGrid`,
            or a function tensor -> (B, C, *places). It is used for all layers.
        entering: whether what the modules read is kept, too (the first argument).

    Returns:
        A `Seen` for each layer, in the order of `layers`, detached.

    Raises:
        ValueError: a layer that the network has not, that did not run, whose output is no map, or on which the score
            does not depend; a score that is NaN; a network in training mode.
        RuntimeError: the network changed itself while it ran.
    """
    names, given = check_layers(network, layers), as_inputs(inputs)
    check_mode(network)
    with unchanged(network), swapped(network, lambda name, parameter: parameter.detach()), torch.enable_grad():
        with watched(network, names, entering) as watches:
            first = given[0]
            if INPUT in names and INPUT not in watches:
                first = given[0].detach().requires_grad_()
            output = network(first if first is given[0] else first.clone(), *given[1:])
        calls = {layer: _call_of(layer, watch) for layer, watch in watches.items()}
        scores = evaluate(score, output, len(given[0]))
        tensors = [watches[layer].caught[layer, calls[layer]] if layer in watches else first for layer in names]
        gradients: Sequence[Any] = [None] * len(tensors)
        if scores.requires_grad:
            gradients = torch.autograd.grad(scores, tensors, torch.ones_like(scores), allow_unused=True)
    found = []
    for layer, tensor, gradient in zip(names, tensors, gradients):
        if gradient is None:
            raise ValueError(f"the score does not depend on {layer}: nothing leads from its output to the score")
        watch = watches.get(layer)
        arguments = watch.module if watch else network, layer, network, given, grid
        maps = _as_map(tensor.detach(), *arguments), _as_map(gradient, *arguments)
        read = watch.read.get(calls[layer]) if watch else None
        found.append(Seen(layer, *maps, None if read is None else read.detach()))
    return found


# --- which layers ----------------------------------------------------------------------------------------------------


def default_layers(network: nn.Module, count: int = 1) -> list[str]:
    """The last layers of a network of ours whose maps the answer is made of, in the order of the network.

    They are the last `answer_layers` of its backbone.

    Args:
        network: a `Backbone`, or a model with one.
        count: number of layers, as far as there are so many.

    Raises:
        ValueError: there is no backbone of ours in it, or there are several.
    """
    found: dict[str, Backbone] = {}
    for name, module in network.named_modules():
        if isinstance(module, Backbone) and not any(name.startswith(f"{outer}.".lstrip(".")) for outer in found):
            found[name] = module
    if len(found) != 1:
        said = f"it has {', '.join(found)}" if found else "it has none"
        raise ValueError(f"layers must be given: a default is known of networks with one backbone of Attlas; {said}")
    ((name, backbone),) = found.items()
    return [f"{name}.{layer}".lstrip(".") for layer in backbone.answer_layers[-count:]]
