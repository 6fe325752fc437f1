"""What characterizes MobileNetV2 as a host: the network of mm, with plug-ins where the channels are many."""

import pytest
import torch
from networks import close, fill, fill_others, image

from attlas import backbones, checkpoint
from attlas.backbones.mixers.ela import ELA, CoordinateAttention
from attlas.backbones.mobilenet_v2 import RULES_CA, MobileNetV2


def test_equals_the_one_of_mm():
    pytest.importorskip("mmdet")
    from mmdet.models.backbones import MobileNetV2 as Other

    other = Other(out_indices=(0, 1, 2, 3, 4, 5, 6))
    fill_others(other)
    network = MobileNetV2().eval()
    theirs = [value for name, value in other.state_dict().items() if not name.startswith("conv2.")]
    network.load_state_dict(dict(zip(network.state_dict(), theirs, strict=True)))
    for got, expected in zip(network(image(75, 50)), other(image(75, 50)), strict=True):
        close(got, expected)


def renamed(network, parts, plain):
    """The state dict by the names of a file: numbers of blocks and of their parts."""
    names, number = {}, 0
    for s, stage in enumerate(network.stages):
        for b in range(len(stage.blocks)):
            number += 1
            for part, theirs in (plain if number == 1 else parts).items():
                names[f"stages.{s}.blocks.{b}.{part}."] = f"features.{number}.conv.{theirs}."
    state = {}
    for name, value in network.state_dict().items():
        for ours, theirs in names.items():
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
        state[name] = value
    return state


def test_torchvisions_names():
    network = fill(backbones.create("mobilenet_v2", num_classes=5))
    plain = {"depthwise.conv": "0.0", "depthwise.norm": "0.1", "reduce.conv": "1", "reduce.norm": "2"}
    parts = {"expand.conv": "0.0", "expand.norm": "0.1", "depthwise.conv": "1.0", "depthwise.norm": "1.1"}
    state = renamed(network, {**parts, "reduce.conv": "2", "reduce.norm": "3"}, plain)
    ends = {"stem.0.conv": "features.0.0", "stem.0.norm": "features.0.1", "head.fc": "classifier.1"}
    ends |= {"head.before.0.conv": "features.18.0", "head.before.0.norm": "features.18.1"}
    state = {
        ends.get(n.rpartition(".")[0], n.rpartition(".")[0]) + "." + n.rpartition(".")[2]: v for n, v in state.items()
    }
    assert {"features.1.conv.2.running_mean", "features.17.conv.1.1.bias", "classifier.1.bias"} <= state.keys()
    again = backbones.create("mobilenet_v2", num_classes=5)
    assert backbones.load(again, state).complete
    assert torch.equal(again.eval()(image(64, 64)), network(image(64, 64)))


def test_names_of_coordinate_attention():
    """Of the repository's network: consecutive numbers, and the gate's parts by its first names."""
    network = fill(backbones.create("mobilenet_v2_ca", num_classes=5))
    plain = {"depthwise.conv": "0", "depthwise.norm": "1", "reduce.conv": "3", "reduce.norm": "4"}
    parts = {"expand.conv": "0", "expand.norm": "1", "depthwise.conv": "3", "depthwise.norm": "4"}
    parts |= {"inner.reduce.conv": "6.conv1", "inner.reduce.norm": "6.bn1", "inner.rows": "6.conv2"}
    parts |= {"inner.columns": "6.conv3", "reduce.conv": "7", "reduce.norm": "8"}
    state = renamed(network, parts, plain)
    ends = {"stem.0.conv": "features.0.0", "stem.0.norm": "features.0.1", "head.fc": "classifier.1"}
    ends |= {"head.before.0.conv": "conv.0", "head.before.0.norm": "conv.1"}
    state = {
        ends.get(n.rpartition(".")[0], n.rpartition(".")[0]) + "." + n.rpartition(".")[2]: v for n, v in state.items()
    }
    assert {"features.2.conv.6.conv3.bias", "features.17.conv.8.weight", "conv.1.bias"} <= state.keys()
    again = backbones.create("mobilenet_v2_ca", num_classes=5)
    account = checkpoint.load(again, state, RULES_CA)
    assert account.complete, str(account)
    assert torch.equal(again.eval()(image(64, 64)), network(image(64, 64)))


def test_places():
    """Inside: in the sixteen blocks that widen, at their width; at the end: in all, at that of the block."""
    ela = dict(type="ELA", fit=True)
    with torch.device("meta"):
        inner, end = (MobileNetV2(plugins=ela, plugin_place=place) for place in ("inner", "end"))
        coordinates = backbones.create("mobilenet_v2_ca")
    inside = [part.conv.in_channels for part in inner.modules() if isinstance(part, ELA)]
    assert inside == [96, 144, 144, *[192] * 3, *[384] * 4, *[576] * 3, *[960] * 3][: len(inside)]
    assert len(inside) == 16
    assert [part.conv.in_channels for part in end.modules() if isinstance(part, ELA)] == [
        dim for dim, depth in zip(end.dims, end.depths) for _ in range(depth)
    ]
    assert sum(isinstance(part, CoordinateAttention) for part in coordinates.modules()) == 16
    block, x = fill(MobileNetV2(plugins="SE")).stages[2].blocks[1], torch.randn(1, 32, 6, 5)
    y = block.activation(block.depthwise(block.activation(block.expand(x))))
    close(block(x), x + block.reduce(block.inner(y)))
    with pytest.raises(ValueError, match="ELA: dim=144 channels must be divisible by the groups"):
        MobileNetV2(plugins=dict(type="ELA", variant="T"))
    with pytest.raises(ValueError, match="MobileNetV2: plugin_place='outer' must be one of"):
        MobileNetV2(plugin_place="outer")
