"""Networks by name: `create`, `names`, and how a system file brings in its variants."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint, download
from ..checkpoint import Rules
from ..config import load_config
from ..inference import config_within
from ..registry import MODELS
from . import published
from .skeletons.backbone import Backbone


@dataclass(frozen=True)
class Variant:
    """A published network: how to build it, and what was published of it.

    Args:
        options: keyword arguments of the class.
        params: number of learnable parameters with `classes` classes.
        gflops: published 10⁹ multiply-adds of an image of side `size`, or a mapping from sides to these; None where
            nothing was published.
        top1: published accuracy on ImageNet-1k in percent, or None.
        size: side of the image in classification.
        drop_path: rate of stochastic depth in the published training.
        classes: number of classes of the published head.
        mean, std: what images are normalized with, in levels of 0 to 255 (as `PackImage` takes them).
        interpolation: how images are resized.
        crop: side of the crop at the middle over the short side of the resized image. `Resize(int(size / crop))` and
            `CenterCrop(size)` give what was tested.
    """

    options: Mapping[str, Any]
    params: int
    gflops: float | Mapping[int, float] | None = None
    top1: float | None = None
    size: int = 224
    drop_path: float = 0.0
    classes: int = 1000
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    interpolation: str = "bicubic"
    crop: float = 0.875


_systems: dict[str, type[Backbone]] = {}  # by the name of the class


def register(
    system: type[Backbone],
    variants: Mapping[str, Variant],
    rules: Rules = (),
) -> None:
    """Make a class and its variants known by name, with the rules that rename the authors' checkpoints.

    A file may register several classes. Their names and those of the variants must be new.
    """
    known = {name for network in _systems.values() for name in network.variants}
    if twice := known & variants.keys():
        raise ValueError(f"these variants are registered already: {', '.join(sorted(twice))}")
    MODELS.register_module(module=system)
    system.variants = dict(variants)
    system.checkpoint_rules = [*rules]
    _systems[system.__name__] = system


def systems() -> dict[str, type[Backbone]]:
    """All registered classes by name; each has its `variants` by name."""
    return dict(_systems)


def variant(name: str) -> tuple[type[Backbone], Variant]:
    """The class and the variant of a name.

    Raises:
        ValueError: lists near names.
    """
    name = str(name)
    for system in _systems.values():
        if name in system.variants:
            return system, system.variants[name]
    known = names()
    near = difflib.get_close_matches(name.lower(), known, n=5, cutoff=0.5)
    near += [n for n in known if name.lower() in n and n not in near]
    hint = f"Near it: {', '.join(near)}." if near else "attlas.backbones.list() names all."
    raise ValueError(f"{name!r} is no variant of a backbone. {hint}")


def names(pattern: str = "*") -> list[str]:
    """Names of the variants that match a shell pattern; `attlas.backbones.list("*former*")`."""
    known = [name for system in _systems.values() for name in system.variants]
    return sorted(fnmatch.filter(known, pattern))


def create(
    name: str,
    pretrained: str | Path | Mapping | bool | None = None,
    container: str | None = None,
    fit_channels: bool = False,
    *,
    features_only: bool = False,
    **options,
) -> Backbone:
    """Build a published network.

    Args:
        name: name of a variant (`attlas.backbones.list()` names all).
        pretrained: file of the authors or of ours (its path, its URL or what it holds) to load now. True, or "auto",
            is the published one, which is downloaded the first time (see `attlas.backbones.published`). The last layer
            is left out where the number of classes differs. A file of another variant is an error that says what it
            looks like.
        container, fit_channels: which weights of the file, and whether its filters are fitted to another number of
            channels of the image (see `attlas.checkpoint.load`).
        **options: keyword arguments of the class, over those of the variant. `num_classes` is 1000 by default (None if
            `out_indices` is given): a classifier of images (B, 3, H, W). `out_indices=(0, 1, 2, 3)` makes a backbone
            that gives maps; `features_only=True`, as timm has it, one that gives those of all levels, or of
            `out_indices`. `attlas.backbones.systems()[class].options()` lists all.

    Returns:
        The network in training mode. Its `variant` is the entry of `variant(name)`, which says how images are prepared.

    Raises:
        ValueError: there is no such variant or option, the file does not fit, or no weights are published.
        attlas.download.DownloadError: the weights cannot be downloaded; says what to do.
    """
    system, found = variant(name)
    options = {**found.options, **options}
    if features_only:
        if options.get("num_classes") is not None:
            raise ValueError(
                f"features_only=True gives maps, num_classes={options['num_classes']} a classifier: give one of them"
            )
        options.setdefault("out_indices", None)  # all
    if "out_indices" not in options:
        options.setdefault("num_classes", found.classes)
    by_name = pretrained is True or (isinstance(pretrained, str) and pretrained == "auto")
    if by_name:
        published.find(name, system.variants)  # an error costs less before the network is built
    network = system(**options)
    network.variant = found
    if by_name:
        load(network, published.read(name), container, fit_channels, name=f"published weights of {name}")
    elif pretrained is not None and not isinstance(pretrained, bool):
        load(network, pretrained, container, fit_channels)
    return network


MODELS.register_module(name="NamedBackbone", module=create)


def find(what: str | Path, weights: str | Path | None = None, **options) -> Backbone:
    """A network for a tool: the variant of that name, or the backbone of the model of a config or of a checkpoint of a
    training, in inference mode.

    Args:
        what: name of a variant, or path of a config (it ends in .py) or of a checkpoint that holds its config, with its
            weights.
        weights: checkpoint to load, of the network alone or of a training.
        **options: keyword arguments over those of the variant or the config.

    Raises:
        ValueError: `weights` do not fill the whole network; the checkpoint holds no config.
    """
    if Path(what).suffix:
        if str(what).endswith(".py"):
            model = load_config(what).get("model") or {}
        else:
            model, weights = config_within(checkpoint.read(what), what)[0], weights or what
        if "backbone" not in model:
            raise ValueError(f"{what} has no model with a backbone")
        network = MODELS.build({**model["backbone"], **options})
    else:
        network = create(str(what), **options)
    if weights is not None:
        account = load(network, weights)
        if account.missing or account.mismatched:
            classes = next(
                (shapes[0][0] for name, shapes in account.mismatched.items() if name.endswith("weight")), None
            )
            hint = f" The file's last layer is for {classes} classes: num_classes={classes}." if classes else ""
            raise ValueError(f"{account}\nThe network would be partly untrained.{hint}")
    return network.eval()


def load(
    network: Backbone,
    source: str | Path | Mapping,
    container: str | None = None,
    fit_channels: bool = False,
    name: str | None = None,
) -> checkpoint.Account:
    """Load a checkpoint of the authors or of ours, log what became of every name, and return that account.

    Of a file of a larger model the names that begin with "backbone." count. A last layer for other classes stays as it
    is. Variants that differ in no name and no shape, such as nat_base and dinat_base, cannot be told apart. The other
    arguments are those of `attlas.checkpoint.load`.

    Raises:
        ValueError: shapes differ, or the file is of another variant; says of which.
    """
    found = source if isinstance(source, Mapping) else download.read(source, option="pretrained")
    state = checkpoint.weights(found, container)
    # of a detector, a segmentor or a classifier of ours, whose other parts are not for a backbone
    if inside := {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}:
        beside = {n: t for n, t in state.items() if any(re.match(pattern, n) for pattern in network.beside_backbone)}
        state = {**inside, **beside}
    last = [rf"^{name}\." for name in network.classifier_names()]
    if name is None and not isinstance(source, Mapping):
        name = str(source)
    account = checkpoint.load(network, state, ignore_mismatched=last, fit_channels=fit_channels, name=name)
    account.besides = checkpoint.besides(found, container)
    checkpoint.log(account)
    return account


def looks_like(state: Mapping[str, torch.Tensor], network: Backbone) -> str:
    """A sentence that names the variants that a state dict fits, with the fewest names left over; "" if there is none,
    or if one of them is built like `network`.

    The class of `network` is tried first, then the others. Variants of less than half or more than twice the size of
    the state dict are not built.
    """
    own = _inner_shapes(network, network.head is not None)
    size = sum(tensor.numel() for tensor in state.values())
    for system in sorted(_systems.values(), key=lambda system: not isinstance(network, system)):
        fitting: dict[str, tuple[int, bool]] = {}  # names left over, and whether it is built like `network`
        for name, found in system.variants.items():
            if not size / 2 <= found.params <= 2 * size:
                continue
            with torch.device("meta"):
                built = system(**{**found.options, "num_classes": found.classes})
            left = checkpoint.left_over(built, state, ignore=[rf"^{n}\." for n in built.classifier_names()])
            if left is not None:
                fitting[name] = left, _inner_shapes(built, network.head is not None) == own
        if fitting:
            fewest = min(left for left, _ in fitting.values())
            best = {name: same for name, (left, same) in fitting.items() if left == fewest}
            return "" if any(best.values()) else f"The file looks like {' or '.join(best)}."
    return ""


def _inner_shapes(network: Backbone, with_head: bool) -> dict[str, torch.Size]:
    """Of what neither the number of classes nor the dense form changes."""
    outer = [rf"^{name}\." for name in network.classifier_names()] if with_head else [r"^head\."]
    outer += network.dense_names
    return {name: value.shape for name, value in network.state_dict().items() if not _matches(name, outer)}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
