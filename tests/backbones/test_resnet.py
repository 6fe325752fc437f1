"""What characterizes ResNet as a host: the network of mm and torchvision, with plug-ins at two places of its branch."""

import pytest
import torch
from networks import close, fill, fill_others, image
from torch import nn

from attlas import backbones, checkpoint
from attlas.backbones.mixers.ela import ELA
from attlas.backbones.resnet import Bottleneck, ResNet

SMALL = dict(dims=(32, 64, 128, 256), depths=(1, 2, 1, 1))
COUNTS = {
    "T": (11_702_952, 25_662_760),
    "B": (11_706_792, 25_692_968),
    "S": (11_770_152, 26_191_400),
    "L": (11_800_872, 26_433_064),
}


@pytest.mark.parametrize("variant", COUNTS)
def test_parameters_with_ela(variant):
    """On the output of every block."""
    with torch.device("meta"):
        networks = [backbones.create(f"resnet{n}", plugins=dict(type="ELA", variant=variant)) for n in (18, 50)]
    assert tuple(sum(p.numel() for p in network.parameters()) for network in networks) == COUNTS[variant]


def mm_resnet(plugin, **options):
    pytest.importorskip("mmdet")
    from mmdet.models.backbones import ResNet as Other
    from mmengine.registry import DefaultScope, init_default_scope

    plugins = None if plugin is None else [dict(cfg=plugin, position="after_conv3")]
    with DefaultScope.overwrite_default_scope("mmdet"):
        init_default_scope("mmdet")
        other = Other(base_channels=8, stem_channels=8, plugins=plugins, **options)
    fill_others(other)
    return other


@pytest.mark.parametrize("depth", [18, 50])
def test_equals_the_one_of_mm(depth):
    """By torchvision's names, which mm's have, in the dense form."""
    other = mm_resnet(None, depth=depth)
    dims = (8, 16, 32, 64) if depth == 18 else SMALL["dims"]
    depths = (2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)
    network = ResNet(dims, depths, bottleneck=depth == 50).eval()
    account = backbones.load(network, other.state_dict())
    assert account.complete, str(account)
    x = image(75, 50)
    for got, expected in zip(network(x), other(x)):
        close(got, expected)


def test_equals_the_one_of_mm_with_a_plugin():
    """`after_conv3` is our "end" of the branch."""
    other = mm_resnet(dict(type="attlas.ELA", variant="B"), depth=50)
    network = ResNet(SMALL["dims"], (3, 4, 6, 3), plugins="ELA").eval()
    state = {name.replace(".ela.", ".end."): value for name, value in other.state_dict().items()}
    account = backbones.load(network, state)
    assert account.complete, str(account)
    for got, expected in zip(network(image(75, 50)), other(image(75, 50))):
        close(got, expected)


def test_the_classifier_by_torchvisions_names():
    network = fill(backbones.create("resnet18", num_classes=5))
    state = dict(network.state_dict())
    for ours, theirs in (("stem.0.conv", "conv1"), ("stem.0.norm", "bn1"), ("head.fc", "fc")):
        state = {name.replace(ours, theirs): value for name, value in state.items()}
    for stage in range(4):
        state = {name.replace(f"stages.{stage}.blocks.", f"layer{stage + 1}."): value for name, value in state.items()}
    for ours, theirs in (("shortcut.conv", "downsample.0"), ("shortcut.norm", "downsample.1")):
        state = {name.replace(ours, theirs): value for name, value in state.items()}
    for number in (1, 2):
        state = {name.replace(f"conv{number}.conv", f"conv{number}"): value for name, value in state.items()}
        state = {name.replace(f"conv{number}.norm", f"bn{number}"): value for name, value in state.items()}
    assert {"conv1.weight", "layer4.1.bn2.running_var", "layer2.0.downsample.1.bias", "fc.bias"} <= state.keys()
    again = backbones.create("resnet18", num_classes=5)
    assert checkpoint.load(again, state).complete
    assert torch.equal(again.eval()(image(64, 64)), network(image(64, 64)))


@pytest.mark.parametrize("place", ["end", "inner"])
def test_places(place):
    """The gate weighs the branch before the addition, or what its 3x3 convolution gives."""
    network = fill(
        ResNet(**SMALL, plugins=[None, dict(type="ELA", variant="T", fit=True), None, None], plugin_place=place)
    )
    gates = {name: part for name, part in network.named_modules() if isinstance(part, ELA)}
    assert [*gates] == [f"stages.1.blocks.{i}.{place}" for i in (0, 1)]
    block, x = network.stages[1].blocks[1], torch.randn(2, 64, 9, 6)
    y = torch.relu(block.conv2(torch.relu(block.conv1(x))))
    y = block.conv3(block.inner(y) if place == "inner" else y)
    close(block(x), torch.relu(x + (block.end(y) if place == "end" else y)))
    plain = Bottleneck(64, 64).eval()
    plain.load_state_dict(block.state_dict(), strict=False)
    assert not torch.allclose(block(x), plain(x))


def test_bad_options():
    with pytest.raises(ValueError, match=r"ResNet: plugin_place='outer' must be one of \('end', 'inner'\)"):
        ResNet(plugin_place="outer")
    with pytest.raises(ValueError, match="ELA: dim=8 channels must be divisible"):
        ResNet((8, 16), (1, 1), bottleneck=False, plugins="ELA")
    assert isinstance(ResNet(**SMALL).stages[0].blocks[0].end, nn.Identity)
