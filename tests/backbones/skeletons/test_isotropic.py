"""What the plain skeleton adds: tokens beside the map, and levels of several sizes."""

import pytest
import torch
from networks import close

from attlas import backbones


def plain(depth=2, **options):
    torch.manual_seed(0)
    return backbones.Isotropic(16, depth, dict(type="Attention", heads=2), img_size=32, **options)


def test_scales_make_a_pyramid():
    """As one block, or several, at several sizes; filling up to whole patches is cut off."""
    for out_indices in ((0, 1, 2, 3), (3, 3, 3, 3)):
        network = plain(4, out_indices=out_indices, scales=(4, 2, 1, 0.5))
        assert network.out_strides == (4, 8, 16, 32)
        for height, width in ((64, 96), (50, 70)):
            sizes = [tuple(x.shape[-2:]) for x in network(torch.randn(1, 3, height, width))]
            assert sizes == network.map_sizes(height, width)
        assert sizes == [(13, 18), (7, 9), (4, 5), (2, 3)]


def test_plugins_leave_tokens_alone():
    """One for each block; the gates weigh the map, and checkpointing changes nothing."""
    network = plain(num_classes=3, plugins=[None, "SE"], registers=1, layer_scale=0.5).eval()
    image = torch.randn(2, 3, 40, 32)
    block = network.blocks[1]
    assert not hasattr(network.blocks[0], "plugin")
    x, tokens = torch.randn(2, 16, 3, 2), torch.randn(2, 2, 16)
    found, mixed = network.blocks.run(block, x, tokens)
    own, expected = block(x, tokens)
    close(mixed, expected, 1e-6)
    close(found, x + block.plugin(own - x), 1e-6)
    logits = network(image)
    network.train().set_grad_checkpointing()
    close(network(image), logits, 1e-6)


@pytest.mark.parametrize("class_token", [None, 0, 1])
@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("options", [dict(num_classes=3), dict(), dict(out_indices=(0,))], ids=str)
def test_tokens(class_token, registers, options):
    """Tokens join at their block, never leave a parameter without use, and are no part of the maps."""
    network = plain(class_token=class_token, registers=registers, layer_scale=0.5, **options)
    image = torch.randn(2, 3, 40, 32)
    outputs = network(image)
    if network.num_classes is not None:
        tokens = registers + (class_token is not None)
        assert network.forward_features(image).shape == (2, tokens + 3 * 2, 16)
        assert outputs.shape == (2, 3)
        outputs = (outputs,)
    else:
        assert all(x.shape == (2, 16, 3, 2) for x in outputs)
    sum(x.square().sum() for x in outputs).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_position_of_the_class_token():
    """It is added to the token, once, where the token joins."""
    network, x = plain(num_classes=3, class_position=True).eval(), torch.randn(2, 3, 40, 32)
    expected = network(x)
    with torch.no_grad():
        network.cls_token.weight += network.position.row
        network.position.row.zero_()
    close(network(x), expected)
    assert plain(class_position=True, position=False).position is None
    with pytest.raises(ValueError, match="class_position=True takes a class token, got class_token=None"):
        plain(class_position=True, class_token=None)


def test_what_the_head_reads():
    """The class token, or the mean of the pixels without registers."""
    image = torch.randn(2, 3, 40, 32)
    for options, read in ((dict(), slice(0, 1)), (dict(class_token=None, registers=2), slice(2, None))):
        network = plain(num_classes=3, **options).eval()
        rows = network.forward_features(image)
        close(network(image), network.head.fc(rows[:, read].mean(1)))
        close(network.forward_head(rows, pre_logits=True), rows[:, read].mean(1))


def test_frozen_tokens():
    """Those that join at a frozen block are frozen with it."""
    for frozen, names in (
        (0, {"stem", "position"}),
        (2, {"stem", "position", "cls_token", "register_tokens", "blocks"}),
    ):
        network = plain(class_token=1, registers=1, num_classes=3, frozen_stages=frozen)
        fixed = [name for name, p in network.named_parameters() if not p.requires_grad]
        assert {name.split(".")[0] for name in fixed} == names
