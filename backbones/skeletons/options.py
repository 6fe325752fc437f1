"""Options of networks: which a class has, what is said of one that it lacks, and how a value is spread over stages."""

import difflib
import inspect
from abc import ABCMeta
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch

# What other libraries call an option of ours.
SPELLINGS = {
    "depth": ("depths",),
    "drop_path": ("drop_path_rate",),
    "embed_dim": ("dims", "dim"),
    "embed_dims": ("dims", "dim"),
    "features_only": ("out_indices",),
    "image_size": ("img_size",),
    "in_chans": ("in_channels",),
    "init_values": ("layer_scale",),
    "input_size": ("img_size",),
    "layer_scale_init_value": ("layer_scale",),
    "mlp_ratios": ("mlp_ratio",),
    "num_heads": ("heads",),
    "pretrained": ("init_cfg",),
    "use_checkpoint": ("grad_checkpointing",),
    "window_size": ("window", "kernel_size"),
    "with_cp": ("grad_checkpointing",),
}


class CheckedOptions(ABCMeta):
    """The type of network classes: an option that a class does not use is refused, however the class is called.

    The options of a class are the parameters of its own `__init__`, and those of its bases that are keyword-only there,
    as long as each passes further keywords on. (What a base takes by position, the class in front of it sets.) A class
    names those of its bases that it does not use in `unused`. Values that no network can have are refused by the class
    method `check_values`, before any `__init__` computes with them.
    """

    unused: Sequence[str] = ()

    def check_values(cls, given: Mapping[str, Any]) -> None:
        """Refuse values that the class is called with, by name of the option; what was left to default is not there."""

    def options(cls) -> list[str]:
        """Names of all options, those of the class itself first."""
        return [name for name, used in cls._parameters().items() if used]

    def _parameters(cls) -> dict[str, bool]:
        """Parameters of the class and its bases, and whether the class uses them."""
        found: dict[str, bool] = {}
        unused: set[str] = set()
        own = True
        for base in cls.__mro__:
            init = vars(base).get("__init__")
            if init is not None:
                parameters = list(inspect.signature(init).parameters.values())[1:]
                for parameter in parameters:
                    if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                        used = parameter.name not in unused and (own or parameter.kind == parameter.KEYWORD_ONLY)
                        found.setdefault(parameter.name, used)
                own = False
                if all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters):
                    break
            unused |= set(vars(base).get("unused", ()))
        return found

    def __call__(cls, *args, **options):
        known = cls._parameters()
        for name in options:
            if not known.get(name):
                raise ValueError(cls._refusal(name))
        by_place = zip(list(inspect.signature(cls.__init__).parameters)[1:], args)
        cls.check_values({**dict(by_place), **options})
        return super().__call__(*args, **options)

    def _refusal(cls, name: str) -> str:
        options = cls.options()
        if name in cls._parameters():
            return f"{cls.__name__} does not use the option {name!r}. It has {', '.join(options)}."
        near = [other for other in SPELLINGS.get(name, ()) if other in options]
        near = near or difflib.get_close_matches(name, options)
        return f"{cls.__name__} has no option {name!r}. " + (
            f"Near it: {', '.join(near)}." if near else f"It has {', '.join(options)}."
        )


def per_stage(name: str, value: Any, stages: int, parts: str = "stages") -> tuple:
    """The value of an option for every stage.

    Args:
        name: name of the option, for the error.
        value: list or tuple with one entry for each stage, or anything else, for all stages.
        stages: number of stages.
        parts: word for them in the error, where they are something else ("branches").
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (value,) * stages
    if len(value) != stages:
        raise ValueError(f"{name} must have one entry for each of the {stages} {parts}, got {tuple(value)}")
    return tuple(value)


def is_whole(value: Any) -> bool:
    """Whether a value is an integer. A bool is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_whole(name: str, values: Iterable[Any], least: int = 1) -> None:
    """Raises ValueError, with the name of the option, if a value is something else than an integer of at least that."""
    for value in values:
        if not is_whole(value) or value < least:
            raise ValueError(f"{name} must be whole, at least {least}, got {value!r:.60}")


def check_shares(name: str, values: Any) -> None:
    """Raises ValueError, with the name of the option, if a value, or one of a sequence, is no number in [0, 1]."""
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    for value in values if listed else [values]:
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise ValueError(f"{name} must be a number in [0, 1], got {value!r:.60}")


def image_sides(img_size: Any) -> tuple[int, int]:
    """Height and width in pixels of the option `img_size`, which is one number for both, or two."""
    height, width = per_stage("img_size", img_size, 2, "sides")
    if not all(is_whole(side) and side > 0 for side in (height, width)):
        raise ValueError(f"img_size={img_size!r} must be a number of pixels, at least 1, or a height and a width")
    return height, width


def mixers_per_stage(mixers: Any, stages: int) -> list[dict]:
    """The option `mixers` as one dict(type=..., **options) for each stage."""
    return [_named("mixers", mixer) for mixer in per_stage("mixers", mixers, stages)]


def plugins_per_stage(plugins: Any, stages: int) -> list[dict | None]:
    """The option `plugins` as one dict(type=..., **options) for each stage, or None where it has no plug-in."""
    return [None if plugin is None else _named("plugins", plugin) for plugin in per_stage("plugins", plugins, stages)]


def _named(option: str, mixer: Any) -> dict:
    named = dict(type=mixer) if isinstance(mixer, str) else dict(mixer)
    if "type" not in named:
        raise ValueError(f"{option}: {named} does not say its type; a mixer is a name, or dict(type=name, **options)")
    return named


def drop_path_rates(rate: float, count: int) -> list[float]:
    """Rates of stochastic depth of `count` blocks, which grow linearly from 0 to `rate`."""
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate={rate} must be in [0, 1)")
    return torch.linspace(0, rate, count, device="cpu").tolist()
