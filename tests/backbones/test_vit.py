import pytest
import torch
from networks import close

from attlas import backbones
from attlas.backbones.vit import ViT


def small(**options):
    torch.manual_seed(0)
    return ViT(24, 2, 3, patch_size=4, img_size=12, **options).eval()


@pytest.mark.parametrize("options", [dict(registers=3), dict(class_position=False, pre_norm=True)], ids=str)
def test_tokens_count_but_are_no_part_of_the_maps(options):
    """Of any number, the maps have the size of the patches, and other tokens make other maps."""
    network, image = small(**options), torch.randn(2, 3, 18, 30)
    before = network(image)
    assert all(x.shape == (2, 24, 5, 8) for x in before)
    assert network.map_sizes(18, 30) == [(5, 8)] * len(before)
    for tokens in (network.cls_token, network.register_tokens):
        if tokens is not None:
            torch.nn.init.normal_(tokens.weight)
            after = network(image)
            assert (after[-1] - before[-1]).abs().max() > 1e-3
            before = after


def test_the_order_of_registers_means_nothing():
    network, image = small(registers=3, num_classes=0), torch.randn(1, 3, 12, 12)
    expected = network(image)
    torch.nn.init.normal_(network.register_tokens.weight)
    other = network(image)
    assert not torch.allclose(other, expected, atol=1e-4)
    with torch.no_grad():
        network.register_tokens.weight.copy_(network.register_tokens.weight.flip(1))
    close(network(image), other, 1e-5)


def test_the_table_of_positions_has_no_place_for_registers():
    assert small(registers=3).position.weight.shape == (1, 1 + 9, 24)
    assert small(class_position=False).position.weight.shape == (1, 24, 3, 3)


def test_each_author_resizes_positions_in_their_way():
    for name, offset, antialias in (
        ("deit_tiny", 0.0, False),
        ("dinov2_small", 0.1, False),
        ("dinov2_small_reg4", 0.0, True),
        ("clip_vit_base_patch32", 0.0, True),
    ):
        with torch.device("meta"):
            assert backbones.create(name).position.resizing == dict(offset=offset, antialias=antialias), name


@pytest.mark.parametrize(("name", "of_file"), [("dinov2_small", "dinov2_small_reg4"), ("deit_tiny", "deit_small")])
def test_files_of_another_variant_are_named(name, of_file):
    with torch.device("meta"):
        state = backbones.create(of_file).state_dict()
        network = backbones.create(name)
    with pytest.raises(ValueError, match=f"The file looks like {of_file}"):
        backbones.load(network, state)


def test_classes_on_an_unlabeled_network():
    """DINOv2 and CLIP were published without a head; with `num_classes` there is one, behind CLIP's projection, too."""
    with torch.device("meta"):
        for name, width in (("dinov2_small", 384), ("clip_vit_base_patch32", 512)):
            network = backbones.create(name)
            assert network.num_classes == 0
            assert network.num_features == width
            assert backbones.create(name, num_classes=7).head.fc.weight.shape == (7, width)
            assert backbones.create(name, out_indices=(11,)).out_channels == (width,)
