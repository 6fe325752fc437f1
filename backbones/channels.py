"""The channels that necks and heads must expect, filled in or checked before anything is built.

mmdet and mmseg want the channels of every map typed by hand, and a wrong number shows as an error of shapes somewhere
inside a convolution. A backbone of Attlas says its channels, so `fill_channels` writes them into the config.
"""

from collections.abc import Mapping, Sequence
from inspect import isclass, signature
from typing import Any

import torch
from mmengine import registry as root
from mmengine.registry import DefaultScope

from ..registry import MODELS, UnknownName
from .skeletons.backbone import Backbone
from .zoo import create

AUTO = "auto"
# Necks of mmdet that do not take the list of all channels in the order of the maps.
TAKES = {
    "YOLOV3Neck": lambda channels: channels[::-1],
    "CTResNetNeck": lambda channels: channels[-1],
}
# Heads of mmseg that read all maps without an in_index.
READ_ALL = ("MaskFormerHead", "Mask2FormerHead", "GuidedAttentionHead")


def fill_channels(model: dict, scope: str | None = None) -> None:
    """Write the channels of a backbone of Attlas into the config of the model around it, or check those that are there.

    - `neck` (of a list, the first): `in_channels`, the list of the backbone's channels.
    - `decode_head` and `auxiliary_head` of mmseg (one or a list): `in_channels`, of the maps that `in_index` names: a
      number for a number, a list for a list. The maps are the backbone's, or those of a neck whose config says
      `out_channels` and `num_outs`.

    A missing value, or 'auto', is filled in. Models without these parts, or with another backbone, are left alone.

    Args:
        model: config of a detector or a segmentor; changed in place.
        scope: library whose classes bare names mean (`default_scope` of the config); None for the one in force.

    Raises:
        ValueError: a given value is wrong; names it and the right one with the strides of the maps.
    """
    with DefaultScope.overwrite_default_scope(scope):  # mmdet's ResNet stays mmdet's
        _fill(model)


def _fill(model: dict) -> None:
    necks, heads = _list(model.get("neck")), _heads(model)
    if not (necks or heads) or not _is_ours(model.get("backbone")):
        return
    options = {key: value for key, value in model["backbone"].items() if key not in ("pretrained", "init_cfg")}
    with torch.device("meta"):
        backbone = MODELS.build(options)
    if backbone.num_classes is not None:
        raise ValueError(
            f"model.backbone {_name(options)} would be a classifier: a detector or a segmentor wants its maps. Give "
            "backbone=dict(..., out_indices=(0, 1, 2, 3))."
        )
    channels, strides = list(backbone.out_channels), list(backbone.out_strides)
    source = f"{_name(options)} gives {channels} channels at strides {strides}"
    if necks:
        take = TAKES.get(_type(necks[0]), lambda all_of_them: all_of_them)
        _settle(necks[0], "neck", take(channels), source)
        found = _channels_behind(necks[-1])
        if found is None:  # what its heads read is not known
            return
        channels, source = found, f"the neck {_type(necks[-1])} gives {found} channels"
    for place, head in heads:
        _settle(head, place, _wanted(head, place, channels, source), source)


def _settle(part: dict, place: str, right: int | list[int], source: str) -> None:
    """Fill `in_channels` of a part in, or check it."""
    given = part.get("in_channels", AUTO)
    if given == AUTO:
        if "in_channels" in part or _accepts(part):
            part["in_channels"] = right
        return
    if (list(given) if isinstance(given, Sequence) else given) != right:
        raise ValueError(
            f"model.{place}.in_channels of {_type(part)} is {given}, and must be {right}: {source}. Write "
            "in_channels='auto' to have it filled in."
        )


def _wanted(head: Mapping, place: str, channels: list[int], source: str) -> int | list[int]:
    """The channels of the maps that a head of mmseg reads, in the form that it wants them."""
    if "in_index" not in head and _type(head) in READ_ALL:
        return channels
    index = head.get("in_index", -1)  # of mmseg
    chosen = list(index) if isinstance(index, Sequence) else [index]
    for i in chosen:
        if not -len(channels) <= i < len(channels):
            raise ValueError(f"model.{place}.in_index is {index}, but there are {len(channels)} maps: {source}.")
    return [channels[i] for i in chosen] if isinstance(index, Sequence) else channels[index]


def _channels_behind(neck: Mapping) -> list[int] | None:
    """The channels of a neck's maps, where its config says them."""
    channels, count = neck.get("out_channels"), neck.get("num_outs")
    if isinstance(channels, int) and isinstance(count, int):
        return [channels] * count
    return list(channels) if isinstance(channels, Sequence) else None


def _heads(model: Mapping) -> list[tuple[str, dict]]:
    """The heads of mmseg with their places in the config."""
    found = []
    for place in ("decode_head", "auxiliary_head"):
        heads = _list(model.get(place))
        for number, head in enumerate(heads):
            name = place if len(heads) == 1 else f"{place}[{number}]"
            if "kernel_generate_head" in head:  # K-Net's frame around the head that reads the maps
                name, head = f"{name}.kernel_generate_head", head["kernel_generate_head"]
            found.append((name, head))
    return found


def _list(part: Any) -> list:
    return [] if part is None else [part] if isinstance(part, Mapping) else list(part)


def _is_ours(backbone: Mapping | None) -> bool:
    if backbone is None:
        return False
    try:
        with MODELS.switch_scope_and_registry(None) as registry:  # as `build` does
            found = registry.get(backbone["type"]) if isinstance(backbone["type"], str) else backbone["type"]
    except UnknownName:  # of a scope that is not imported yet; whoever builds it explains
        return False
    return found is create or (isclass(found) and issubclass(found, Backbone))


def _type(part: Mapping) -> str:
    kind = part["type"]
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


def _name(backbone: Mapping) -> str:
    return repr(backbone["name"]) if "name" in backbone else _type(backbone)


def _accepts(part: Mapping) -> bool:
    """Whether the class takes `in_channels`, itself or by the classes that it hands its arguments to. Taken for granted
    of a class that cannot be found."""
    name = _type(part)
    for registry in (root.MODELS, *root.MODELS.children.values()):
        found = registry.module_dict.get(name)
        if isclass(found):
            return any("in_channels" in signature(base.__init__).parameters for base in found.__mro__)  # type: ignore[misc]
    return True
