"""One loader for the authors' checkpoints and ours: nothing is executed, and nothing is skipped in silence.

`read` opens safetensors files and those of torch.save, which `attlas.torch_files` reads without unpickling. `load` puts
a file into a network by the network's renaming rules and returns an `Account` of what became of every name. `save`
writes safetensors. MMEngine's `init_cfg` calls `load` once this module is imported; `attlas.engine` makes `read` and
`load` what the rest of MMEngine calls (`load_from`, `resume`, URLs).
"""

import logging
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper, weight_init
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from . import torch_files
from .files import near_files, printable, replacing

Rules = Sequence[tuple[str, str | Callable[[re.Match], str] | None]]
Resize = Mapping[str, Callable[[Tensor, torch.Size], Tensor]]

# Where published files keep their weights; of several, the first is taken, unless told otherwise.
CONTAINERS = (
    "state_dict", "model_state_dict", "model", "params_ema", "params", "module", "model_ema", "ema", "state_dict_ema",
    "ema_state_dict",
)  # fmt: skip
WHOLES = ("model.", "encoder.")  # before every name, where a larger module of the authors' had the network as a part
COUNTERS = {"n_averaged", "steps"}  # which averages of weights (PyTorch's, MMEngine's) keep beside `module.`


# --- reading ---------------------------------------------------------------------------------------------------------


def read(path: str | Path, map_location: Any = "cpu", left_out: set[str] | None = None) -> dict:
    """Read a checkpoint without executing anything that it holds.

    Args:
        path: a safetensors file, or anything that torch.save wrote (see `attlas.torch_files`), under any name.
        map_location: the device of the tensors; a name or a torch.device.
        left_out: a set, which takes the names of all classes and functions whose objects were left out. A network among
            them becomes its state dict, another object the entries or items that it has, or None. By default a file
            with such objects is refused.

    Returns:
        What the file holds. A safetensors file gives `{"state_dict": tensors, "meta": metadata}`.

    Raises:
        FileNotFoundError: names the files near `path`; IsADirectoryError.
        ValueError: the file is broken, no checkpoint, or would have to be unpickled; says which classes it asks for,
            and what to do.
    """
    if re.match(r"\w+://", str(path)):
        raise ValueError(
            f"{printable(path)} is an address, and files are read here; load_from= and pretrained= take addresses."
        )
    path = Path(os.path.expanduser(path))  # which leaves a ~ of nobody as it is
    if not isinstance(map_location, (str, torch.device)):
        raise ValueError(f"map_location={map_location!r} must be a device, such as 'cpu' or 'cuda:0'.")
    device = torch.device(map_location)
    if path.is_dir():
        raise IsADirectoryError(
            f"{printable(path)} is a folder. In it: {_some(sorted(p.name for p in path.iterdir()))}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"The checkpoint {printable(path)} does not exist. {near_files(path)}")
    try:
        if _is_safetensors(path):
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            tensors = safetensors.torch.load_file(path, device=str(device))
            for tensor in tensors.values():
                torch_files.check_booleans(tensor)
            return {"state_dict": tensors, "meta": metadata}
        found = torch_files.read(path, device, left_out)
    except torch_files.Refused as error:
        raise ValueError(_refusal(path, error)) from None
    except Exception as error:
        said = f"{type(error).__name__}: {printable(error)}"
        raise ValueError(f"{printable(path)} cannot be read as a checkpoint: {said}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{printable(path)} holds a {type(found).__name__}, not a dictionary of tensors.")
    return found


def _is_safetensors(path: Path) -> bool:
    """By the first bytes, whatever the name: the length of a header, which is JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


# Modules of Python that act on files, processes, the network or the interpreter. No list of this kind is complete, and
# nothing depends on this one but what a refusal advises.
ACTING = {
    "_io", "_pickle", "asyncio", "bdb", "cProfile", "code", "codecs", "commands", "ctypes", "doctest", "ftplib", "http",
    "importlib", "io", "linecache", "marshal", "multiprocessing", "nt", "operator", "os", "pdb", "pickle", "pip",
    "platform", "posix", "profile", "pty", "runpy", "shutil", "signal", "site", "smtplib", "socket", "subprocess",
    "sys", "tempfile", "timeit", "trace", "urllib", "venv", "webbrowser", "zipimport",
}  # fmt: skip


BUILT_IN = {"__import__", "apply", "compile", "eval", "exec", "execfile", "file", "input", "open", "print", "setattr"}


def _acts(name: str) -> bool:
    """Whether no honest checkpoint names this: functions of the modules above, and built-in ones."""
    module, _, function = name.partition(".")
    return function in BUILT_IN if module == "builtins" else module in ACTING


def _refusal(path: Path, error: torch_files.Refused) -> str:
    if not any(error.names):
        return f"{printable(path)} cannot be read as a checkpoint: it holds {printable(error)}."
    names = set(error.names)
    with suppress(Exception):  # else the first name has to do
        torch_files.read(path, torch.device("meta"), names)
    asked = (
        f"{printable(path)} cannot be read without executing code that it names: {_some(sorted(names))}. Attlas never "
        "does. "
    )
    if strange := sorted(filter(_acts, names)):
        return asked + f"No honest checkpoint names {_some(strange)}: do not open this file, with other programs least."
    if str(path) != printable(path, 1000):  # what a terminal would obey is not offered for pasting
        return asked
    name = shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))
    command = f"python tools/publish.py {name} OUT.safetensors --float32 --leave-out"
    return asked + f"Its weights can be read without that, and everything else left out:\n  {command}"


def weights(checkpoint: Mapping, container: str | None = None) -> dict[str, Tensor]:
    """Find the tensors in what `read` returned: unwraps `state_dict`, `model` and the like, and a `module.` before
    every name, which DataParallel and averages of weights leave (`_orig_mod.` where torch.compile was).

    Args:
        checkpoint: what `read` returned.
        container: name under which the wanted ones are, such as "model_ema"; the first of CONTAINERS by default.

    Raises:
        ValueError: there are none, or no such container; says what there is.
    """
    state, _ = _unwrap(checkpoint, container)
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        places = container or ", ".join(CONTAINERS)
        inner = [name for name, value in state.items() if isinstance(value, Mapping)]
        choose = f". If they are under one of {_some(inner)}: container=NAME" if inner else ""
        raise ValueError(f"The checkpoint holds no tensors where they may be ({places}): {_some(state)}{choose}")
    if strange := [name for name in tensors if name != printable(name, 1000)]:
        raise ValueError(f"The checkpoint holds tensors whose names are no names: {_some(strange)}")
    if any(name.startswith("module.") for name in tensors):
        named = {name: value for name, value in tensors.items() if name not in COUNTERS}
        tensors = named if all(name.startswith("module.") for name in named) else tensors
    for wrapper in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors


def besides(checkpoint: Mapping, container: str | None = None) -> dict[str, int]:
    """The other containers of what `read` returned, which `weights` leaves alone, with their numbers of tensors."""
    found = {}
    for name, other in _unwrap(checkpoint, container)[1].items():
        count = sum(isinstance(value, Tensor) for value in _unwrap(other)[0].values())
        if count:
            found[name] = count
    return found


def _unwrap(checkpoint: Mapping, container: str | None = None) -> tuple[Mapping, dict[str, Mapping]]:
    """The innermost container, and those that stand beside the ones on the way to it."""
    state: Mapping = checkpoint
    others: dict[str, Mapping] = {}
    for _ in CONTAINERS:  # no more often: one might hold itself
        inside = {name: state[name] for name in CONTAINERS if isinstance(state.get(name), Mapping)}
        if container is not None and isinstance(state.get(container), Mapping):
            taken, container = container, None
        elif inside:
            taken = next(iter(inside))
        else:
            break
        others |= {name: value for name, value in inside.items() if name != taken}
        state = state[taken]
    if container is not None:
        there = [name for name, value in checkpoint.items() if isinstance(value, Mapping)]
        raise ValueError(f"container={container!r} is not in the checkpoint. In it: {_some(there or checkpoint)}.")
    return state, others


# --- loading ---------------------------------------------------------------------------------------------------------


@dataclass
class Account:
    """What became of every name of a file and of a network. Shapes are (of the file, of the network)."""

    source: str
    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    resized: dict[str, tuple] = field(default_factory=dict)
    mismatched: dict[str, tuple] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    besides: dict[str, int] = field(default_factory=dict)  # containers of the file that were left alone, and tensors

    @property
    def complete(self) -> bool:
        """Whether every tensor of the network came from the file, and the file holds no other (but ignored ones)."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        lines = [
            f"{self.source}: {len(self.loaded)} of the network's {total} tensors loaded "
            f"({len(self.renamed)} of them renamed, {len(self.resized)} resized)."
        ]
        shapes = {
            "resized": [f"{name} {tuple(old)} -> {tuple(new)}" for name, (old, new) in self.resized.items()],
            "left as they were, for their shape differs": [
                f"{name} {tuple(old)} in the file, {tuple(new)} here" for name, (old, new) in self.mismatched.items()
            ],
            "missing from the file": self.missing,
            "unexpected in the file": self.unexpected,
            "ignored on purpose": self.ignored,
        }
        lines += [f"  {what} ({len(names)}): {_some(names)}" for what, names in shapes.items() if names]
        lines += [
            f"  the file holds {name} besides, with {count} tensors; to take that: container={name!r}"
            for name, count in self.besides.items()
        ]
        return "\n".join(lines)


def load(
    model: nn.Module,
    source: str | Path | Mapping,
    rules: Rules | None = None,
    prefix: str = "",
    resize: Resize | None = None,
    ignore_mismatched: Sequence[str] = (),
    container: str | None = None,
    fit_channels: bool = False,
    name: str | None = None,
) -> Account:
    """Load a checkpoint into a network, and say what became of every name.

    A network may have `checkpoint_parts`, beginnings of names ("visual."): of a file that holds names with one of them,
    these count, without it, and the rest is ignored. It may have `checkpoint_whole(state)`, which gives a state dict by
    its file's names with what such files leave out. It may have `looks_like(state)`, which names the variant that a
    state dict is of, if it is of another one than the network ("" else); and `dense_names`, expressions for names that
    files often lack. Then a file of another variant is an error.

    Args:
        model: the network; a wrapper (DistributedDataParallel, torch.compile and the like) is looked through.
        source: a file, or what `read` returned, or a state dict.
        rules: (regular expression, replacement) pairs that turn the file's names into the network's, each applied by
            `re.sub` to what the one before left; a replacement of None ignores the file's name on purpose. By default
            the network's `checkpoint_rules`, or if it has none those of its modules, each for the names below that
            module. They are for the authors' names: a file that fits better without them (one of ours) is taken as it
            is. Names of the network's `checkpoint_optional` (regular expressions over the new names) may be in the file
            without being in the network: the account calls them ignored.
        prefix: take only the file's names that begin so, without it ("backbone." from a detector's file). One of WHOLES
            that stands before every name of the file and before none of the network is taken away without being told.
        resize: for tables whose size depends on the setting (relative positions): functions (tensor, shape of the
            network's tensor) -> tensor by regular expression over the network's names; called where the shapes differ.
            By default those of the network's modules: each may have a `checkpoint_resize`, functions by the names of
            its own tensors. Tensors that differ in dimensions of size one only (a linear layer and a 1x1 convolution)
            are reshaped without being told.
        ignore_mismatched: regular expressions over the network's names; tensors of these whose shape differs are left
            as they are (a head for other classes), and the file may lack them. Any other difference of shape is an
            error.
        container: name under which the file has the wanted weights, such as "model_ema"; the first of CONTAINERS by
            default. The account says what the file holds besides.
        fit_channels: whether filters for an image of three channels are fitted to a network with other in_channels: to
            one channel by their sum over the three, to more by their repetition, scaled by 3 / in_channels.
        name: what the account and errors call the source; by default its path.

    Raises:
        ValueError: nothing fits, two names of different tensors become one, or shapes differ; the file is of another
            variant; there is no such container. Lists the names.
    """
    model = unwrapped(model)
    renamed_by = _renamer(model, rules)
    if resize is None:
        resize = _resizers(model)
    found = source if isinstance(source, Mapping) else read(source)
    account = Account(name or ("the given state" if isinstance(source, Mapping) else str(source)))
    state = weights(found, container)
    account.besides = besides(found, container)
    target = model.state_dict()

    if prefix:
        begins = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if not begins:
            raise ValueError(f"{account.source}: no name begins with prefix={prefix!r}. The file has {_some(state)}.")
        state = begins
    for whole in WHOLES:
        fits = any(name.startswith(whole) for name in target) or any(renamed_by(name) in target for name in state)
        if not fits and all(name.startswith(whole) for name in state):
            state = {name.removeprefix(whole): value for name, value in state.items()}
    for part in getattr(model, "checkpoint_parts", ()):
        if inside := {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}:
            account.ignored += [name for name in state if not name.startswith(part)]
            state = inside
    state = getattr(model, "checkpoint_whole", lambda state: state)(state)
    likely = getattr(model, "looks_like", lambda state: "")

    optional = getattr(model, "checkpoint_optional", ())
    new_names = {old: renamed_by(old) for old in state}
    old_names: dict[str, str | None] = {old: old for old in state}
    if _fitting(state, old_names, target, optional) >= _fitting(state, new_names, target, optional):
        new_names = old_names

    renamed: dict[str, Tensor] = {}
    for old, new in new_names.items():
        if new is None:
            account.ignored.append(old)
            continue
        if new in renamed and _same_values(renamed[new], state[old]):  # a part that was saved twice
            account.ignored.append(old)
            continue
        if new in renamed:
            raise ValueError(f"{account.source}: the rules turn two names into {new!r}; one of them is {old!r}.")
        if new != old:
            account.renamed[old] = new
        renamed[new] = state[old]

    for own in renamed.keys() & target.keys():
        shape, wanted = renamed[own].shape, target[own].shape
        if fit_channels and _reads_colors(shape, wanted):
            renamed[own] = _fit_channels(renamed[own], wanted[1])
        renamed[own] = _fit(own, renamed[own], wanted, resize)
        if renamed[own].shape != wanted:
            account.mismatched[own] = shape, wanted
        elif shape != wanted:
            account.resized[own] = shape, wanted
    refused = [own for own in account.mismatched if not _matches(own, ignore_mismatched)]
    if refused:
        shapes = ((own, *map(tuple, account.mismatched[own])) for own in refused[:10])
        lines = [f"  {own}: {old} in the file, {new} in the network" for own, old, new in shapes]
        raise ValueError(
            f"{account.source}: {len(refused)} of {len(target)} tensors have another shape than the network's:\n"
            + "\n".join([*lines, _reason(account, refused, likely, state)])
        )
    for own in account.mismatched:
        del renamed[own]
    # The module has the last word: hooks of its own may rename or convert what older versions saved.
    answer = model.load_state_dict(renamed, strict=False)
    absent = {*answer.missing_keys, *account.mismatched}
    account.loaded = [own for own in target if own not in absent]
    if all("num_batches_tracked" in own for own in account.loaded):  # which torch makes up for old files
        raise ValueError(
            f"{account.source}: no name of the file fits the network, so nothing was loaded.\n"
            f"  the file has     {_some(state)}\n  the network has  {_some(target)}\n"
            "Give prefix=, or rules=[(regular expression, replacement)], which a network publishes as checkpoint_rules."
            f"\n{likely(state)}".rstrip()
        )
    # a counter that files older than torch 0.4.1 lack, and that means nothing for inference
    account.missing = [n for n in answer.missing_keys if n not in account.mismatched and "num_batches_tracked" not in n]
    for own in answer.unexpected_keys:
        (account.ignored if _matches(own, optional) else account.unexpected).append(own)
    free = (*getattr(model, "dense_names", ()), *ignore_mismatched)
    lacking = [own for own in account.missing if not _matches(own, free)]
    if (lacking or account.unexpected) and (other := likely(state)):
        raise ValueError(f"{account}\n{other}")
    return account


def unwrapped(model: nn.Module) -> nn.Module:
    """The network in a wrapper: of torch.compile, DistributedDataParallel and the like."""
    while True:
        if "_orig_mod" in model._modules:
            model = model._orig_mod  # type: ignore[assignment]
        elif not hasattr(model, "checkpoint_rules") and _is_wrapper(model):
            model = model.module  # type: ignore[assignment]
        else:
            return model


def _reason(account: Account, refused: list[str], likely: Callable[[Mapping], str], state: Mapping) -> str:
    """Why shapes differ, and what can be done about it."""
    if all(_reads_colors(*account.mismatched[name]) for name in refused):
        channels = account.mismatched[refused[0]][1][1]
        return (
            f"The file is for images of 3 channels, the network was built with in_channels={channels}. To fit the "
            "file's filters to that: fit_channels=True."
        )
    reason = "The file is of another variant, or the network was built with other options."
    if all("head" in name for name in refused):
        reason += (
            " Or it has a head for other classes; to leave that as it is: "
            r"ignore_mismatched=[r'(^|\.)head\.'] (a top-level variable of a config, or a key of its init_cfg)."
        )
    return f"{reason}\n{likely(state)}".rstrip()


def _reads_colors(shape: torch.Size, wanted: torch.Size) -> bool:
    """Whether a file's tensor is the filters of a convolution over three channels, and the network's over others."""
    return len(shape) == len(wanted) == 4 and shape[1] == 3 != wanted[1] and _without(shape) == _without(wanted)


def _same_values(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _without(shape: torch.Size) -> tuple[int, ...]:
    return (*shape[:1], *shape[2:])


def _fit_channels(filters: Tensor, channels: int) -> Tensor:
    """Filters (N, 3, h, w) for another number of channels, which gives maps of a like size."""
    if channels == 1:
        return filters.sum(1, keepdim=True)
    repeated = filters.repeat(1, -(-channels // 3), 1, 1)[:, :channels]
    return repeated * (3 / channels)


def left_over(model: nn.Module, state: Mapping[str, Tensor], ignore: Sequence[str] = ()) -> int | None:
    """How many names of a state dict the network has no place for, under its rules or as they are; None if the state
    dict lacks a tensor of the network, or has it in a shape that the network cannot resize.

    Args:
        ignore: regular expressions over the network's names; these need not fit.
    """
    names = model.state_dict()
    wanted = {
        name: value.shape
        for name, value in names.items()
        if "num_batches_tracked" not in name and not _matches(name, ignore)
    }
    resized, optional = _resizers(model), getattr(model, "checkpoint_optional", ())
    for renamed_by in (_renamer(model), _renamer(model, ())):
        renamed = {new: value for old, value in state.items() if (new := renamed_by(old)) is not None}
        if all(
            name in renamed and (_same(renamed[name].shape, shape) or _matches(name, resized))
            for name, shape in wanted.items()
        ):
            return sum(name not in names and not _matches(name, optional) for name in renamed)
    return None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _resizers(model: nn.Module) -> Resize:
    """The functions that modules have for their own tensors, by expressions for the network's names."""
    return {
        f"^{re.escape(f'{prefix}.{name}'.lstrip('.'))}$": function
        for prefix, module in model.named_modules()
        for name, function in getattr(module, "checkpoint_resize", {}).items()
    }


def _same(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes differ in dimensions of size one only, as those of a linear layer and a 1x1 convolution do."""
    return [n for n in one if n != 1] == [n for n in other if n != 1]


def _is_wrapper(model: nn.Module) -> bool:
    return is_model_wrapper(model) or isinstance(model, BaseTTAModel)


def _renamer(model: nn.Module, rules: Rules | None = None) -> Callable[[str], str | None]:
    """What renames a file's names for a network: the given rules, else those of the network, else those of its parts,
    each for the names below that part."""
    if rules is None:
        rules = getattr(model, "checkpoint_rules", None)
    if rules is not None:
        return partial(rename, rules=rules)
    parts = [(f"{name}.", part.checkpoint_rules) for name, part in model.named_modules() if _has_rules(part)]

    def by_part(name: str) -> str | None:
        for prefix, of_part in parts:  # a whole before its parts
            if name.startswith(prefix):
                new = rename(name.removeprefix(prefix), of_part)
                return None if new is None else prefix + new
        return name

    return by_part


def _has_rules(module: nn.Module) -> bool:
    return getattr(module, "checkpoint_rules", None) is not None


def rename(name: str, rules: Rules) -> str | None:
    """A name of a file by renaming rules, one after the other; None if one of them leaves it out."""
    if any(replacement is None and re.search(pattern, name) for pattern, replacement in rules):
        return None
    for pattern, replacement in rules:
        if replacement is not None:
            name = re.sub(pattern, replacement, name)
    return name


def _fitting(
    state: Mapping[str, Tensor],
    names: Mapping[str, str | None],
    target: Mapping[str, Tensor],
    optional: Sequence[str],
) -> tuple[int, int]:
    """Count the tensors that have a place of their size under the given names, and those that may be left over."""
    placed = sum(
        new is not None and new in target and target[new].numel() == state[old].numel() for old, new in names.items()
    )
    return placed, sum(new is None or _matches(new, optional) for new in names.values())


def _fit(name: str, tensor: Tensor, shape: torch.Size, resize: Resize) -> Tensor:
    if tensor.shape == shape:
        return tensor
    for pattern, function in resize.items():
        if re.search(pattern, name):
            return function(tensor, shape)
    return tensor.reshape(shape) if _same(tensor.shape, shape) else tensor


def _some(names: Any, count: int = 8) -> str:
    more = len(names) - count
    return ", ".join(printable(name) for name in islice(names, count)) + (f" and {more} more" if more > 0 else "")


@WEIGHT_INITIALIZERS.register_module(name="Pretrained", force=True)
class PretrainedInit(weight_init.PretrainedInit):
    """`init_cfg=dict(type='Pretrained', checkpoint=..., prefix=...)` with an account of what was loaded. Its other keys
    are `ignore_mismatched`, `container` and `fit_channels`, as of `load`.

    Takes the place of MMEngine's own in every scope; that one loads what fits, be it nothing, and goes on.
    """

    def __init__(
        self,
        checkpoint,
        prefix=None,
        map_location="cpu",
        ignore_mismatched=(),
        container=None,
        fit_channels=False,
    ):
        super().__init__(checkpoint, prefix, map_location)
        self.options = dict(ignore_mismatched=ignore_mismatched, container=container, fit_channels=fit_channels)

    def __call__(self, module: nn.Module) -> None:
        from .engine import CheckpointLoader  # here, because MMEngine's Runner imports OpenCV

        found = CheckpointLoader.load_checkpoint(self.checkpoint, self.map_location)
        prefix = f"{self.prefix.rstrip('.')}." if self.prefix else ""
        log(load(module, found, prefix=prefix, name=str(self.checkpoint), **self.options))
        if hasattr(module, "_params_init_info"):
            weight_init.update_init_info(module, init_info=self._get_init_info())


def log(account: Account) -> None:
    """Write an account into MMEngine's log, as a warning unless it is complete."""
    print_log(str(account), logger="current", level=logging.INFO if account.complete else logging.WARNING)


# --- saving ----------------------------------------------------------------------------------------------------------


def save(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict as a safetensors file, whole or not at all. Metadata is text by name."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path={str(path)!r} must end in .safetensors: that is what is written.")
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}  # own memory for each
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, dict(metadata or {}))
