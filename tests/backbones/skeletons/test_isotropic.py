"""What the plain skeleton adds: tokens beside the map, and levels of several sizes."""

import pytest
import torch
import torch.nn.functional as F
from networks import close

from attlas import backbones
from attlas.backbones.layers import Mlp, QuickGelu, SwiGlu


def plain(depth=2, **options):
    torch.manual_seed(0)
    return backbones.Isotropic(16, depth, dict(type="Attention", heads=2), img_size=32, **options)


def test_scales_make_a_pyramid():
    """As one block, or several, at several sizes; filling up to whole patches is cut off."""
    for out_indices in ((0, 1, 2, 3), (3, 3, 3, 3)):
        network = plain(4, out_indices=out_indices, scales=(4, 2, 1, 0.5))
        assert network.out_strides == (4, 8, 16, 32)
        assert network.out_channels == (4, 8, 16, 16) == tuple(x.shape[1] for x in network(torch.randn(1, 3, 32, 32)))
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


def test_a_norm_before_the_blocks():
    """On patches and tokens, with their positions; the patches have no bias."""
    network, x = plain(num_classes=3, class_position=True, registers=2, pre_norm=True).eval(), torch.randn(2, 3, 40, 32)
    assert network.stem.bias is None
    assert network.pre_norm.eps == 1e-6
    seen = []
    network.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    network(x)
    pixels, tokens = seen
    close(
        pixels, F.layer_norm(network.position(network.stem(x)).permute(0, 2, 3, 1), [16], eps=1e-6).permute(0, 3, 1, 2)
    )
    learned = torch.cat([network.cls_token.weight + network.position.row, network.register_tokens.weight], 1)
    close(tokens, F.layer_norm(learned, [16], eps=1e-6).expand(2, -1, -1))


def test_projection():
    """Behind the norm, of the head's rows and of maps, whose channels it makes."""
    whole, plainer = plain(num_classes=0, projection=5), plain(num_classes=0)
    whole.load_state_dict(plainer.state_dict(), strict=False)
    image, matrix = torch.randn(2, 3, 40, 32), whole.projection.weight
    close(whole.forward_features(image), plainer.forward_features(image) @ matrix)
    assert whole(image).shape == (2, 5)
    assert whole.num_features == 5
    maps = plain(projection=5, out_indices=(0, 1), scales=(2, 1))
    account = backbones.load(maps, whole.state_dict())
    assert account.missing == [name for name in maps.state_dict() if name.startswith("rescale")]
    assert maps.out_channels == (2, 5)
    assert [x.shape for x in maps(image)] == [(2, 2, 5, 4), (2, 5, 3, 2)]
    dense = plain(out_indices=(1,))
    assert backbones.load(dense, whole.state_dict()).ignored.count("projection.weight") == 1
    projected = plain(projection=5, out_indices=(1,))
    backbones.load(projected, whole.state_dict())
    close(projected(image)[0], torch.einsum("bchw,cd->bdhw", dense(image)[0], matrix))


@pytest.mark.parametrize("mlp", ["gelu", "quick_gelu", "swiglu"])
def test_kinds_of_mlps(mlp):
    network = plain(num_classes=3, mlp=mlp)
    kinds = {"gelu": Mlp, "quick_gelu": Mlp, "swiglu": SwiGlu}
    assert all(type(block.mlp) is kinds[mlp] for block in network.blocks)
    assert isinstance(getattr(network.blocks[0].mlp, "activation", None), QuickGelu) == (mlp == "quick_gelu")


def test_the_last_norm_is_frozen_with_all_blocks():
    """In the dense form, where nothing that learns is before it; the rescaled maps still learn."""
    options = dict(out_indices=(0, 2), scales=(2, 1), projection=8)
    network = plain(3, **options, frozen_stages=3)
    assert {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad} == {"rescale"}
    assert not network.train().norm.training
    assert plain(3, **options, frozen_stages=2).norm.weight.requires_grad
    assert plain(3, num_classes=3, frozen_stages=3).norm.weight.requires_grad


def test_numbers_of_registers():
    """A file with another number is refused, and the error says which option would fit."""
    for of_file, own, message in (
        (4, 0, "The file has 4 register tokens, the network registers=0"),
        (4, 2, "The file has 4 register tokens, the network registers=2"),
        (0, 2, "The file has no register tokens, the network registers=2"),
    ):
        state = plain(num_classes=3, registers=of_file).state_dict()
        for options in (dict(num_classes=3), dict()):
            with pytest.raises(ValueError, match=message):
                backbones.load(plain(registers=own, **options), state)
            backbones.load(plain(registers=of_file, **options), state)


def test_bad_options():
    for options, message in (
        (dict(mlp="relu"), "mlp='relu' must be one of gelu, quick_gelu, swiglu"),
        (dict(registers=-1), "registers must be whole, at least 0, got -1"),
        (dict(projection=0), "projection must be whole, at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            plain(**options)
