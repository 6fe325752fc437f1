import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree
from levels import levels_changed_by

from attlas import backbones
from attlas.backbones.convit import GPSA, ConViT
from attlas.backbones.layers import Attention


def gpsa(gate=None, dim=18, heads=9, **options):
    """In float64; `gate` replaces the learned gates of all heads."""
    torch.manual_seed(0)
    mixer = GPSA(dim, heads, **options).double()
    if gate is not None:
        torch.nn.init.constant_(mixer.gating_param, gate)
    return mixer


def maps(*size, dim=18):
    return torch.randn(2, dim, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_heads_begin_at_their_neighbours():
    seen = gpsa(gate=40.0).attention_maps(maps(6, 6), (2, 2))[0]
    value, place = seen.flatten(1).max(1)
    expected = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2), (1, 3), (2, 3), (3, 3)]
    assert [(i // 6, i % 6) for i in place.tolist()] == expected
    assert 0.3182 < value.min() <= value.max() < 0.3251


def test_a_strict_head_is_a_tap_of_a_convolution():
    """Gates at one and sharp heads: GPSA equals a 3x3 convolution, but at the border, where a tap has no pixel."""
    mixer, x = gpsa(gate=40.0, locality_strength=1e3), maps(7, 5)
    torch.nn.init.normal_(mixer.v.weight)
    taps = [
        mixer.proj.weight[:, 2 * p : 2 * p + 2] @ mixer.v.weight[2 * p : 2 * p + 2] for p in range(9)
    ]  # column by column
    kernel = torch.stack(taps, -1).unflatten(-1, (3, 3)).transpose(-1, -2)
    expected = F.conv2d(x, kernel, mixer.proj.bias)
    assert_agree("inner pixels", mixer(x)[..., 1:-1, 1:-1], expected)


def test_a_closed_gate_is_plain_attention():
    mixer, plain, x = gpsa(gate=-40.0), Attention(18, 9, qkv_bias=False).double(), maps(5, 4)
    torch.nn.init.normal_(mixer.v.weight)
    plain.load_state_dict(
        {"qkv.weight": torch.cat([mixer.qk.weight, mixer.v.weight])}
        | {f"proj.{name}": value for name, value in mixer.proj.state_dict().items()}
    )
    assert_agree("output", mixer(x), plain(x))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5), (1, 6), (1, 1)])
def test_positions_by_definition(height, width):
    """Two small tables give the softmax over all pairs, on rectangles too, whatever the weights and the image."""
    mixer = gpsa(gate=40.0)
    torch.nn.init.normal_(mixer.pos_proj.weight, std=0.5)
    torch.nn.init.normal_(mixer.pos_proj.bias)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([columns.flatten(), rows.flatten()], -1).double()
    delta = place - place[:, None]  # of key and query
    features = torch.cat([delta, delta.square().sum(-1, keepdim=True)], -1)
    expected = mixer.pos_proj(features).permute(2, 0, 1).softmax(-1)  # (heads, N, N)
    for x in (maps(height, width), 5 * maps(height, width)):
        for i in range(height * width):
            seen = mixer.attention_maps(x, (i // width, i % width)).flatten(2)
            assert_agree("positions", seen, expected[:, i].expand_as(seen))
        values = mixer.v(x.flatten(2).mT).unflatten(-1, (9, -1)).transpose(1, 2)
        rows = mixer.proj((expected @ values).transpose(1, 2).flatten(2))
        assert_agree("output", mixer(x), rows.mT.unflatten(-1, (height, width)))


def test_the_class_token_joins_late():
    """It reads the pixels in the last blocks only; without it, in the dense form, the pixels take another way there."""
    network = ConViT(16, (1, 1), heads=4, img_size=32, num_classes=3).eval()
    image = torch.randn(2, 3, 48, 32)
    expected = network(image)
    _, (first, _) = network.forward_intermediates(image)
    torch.nn.init.normal_(network.cls_token.weight)
    assert not torch.equal(network(image), expected)
    assert torch.equal(network.forward_intermediates(image)[1][0], first)
    assert network.forward_features(image).shape == (2, 1 + 3 * 2, 16)
    dense = ConViT(16, (1, 1), heads=4, img_size=32, out_indices=(0,))
    account = backbones.load(dense, network.state_dict())
    assert account.complete
    assert {"cls_token.weight", "blocks.1.norm1.weight"} <= set(account.ignored)
    assert_agree("map", dense.eval()(image)[0], network.norm(first))


def test_the_dense_form():
    """One norm for all maps, not on the path; the class token's place in the file is named."""
    network = ConViT(16, (2, 1), heads=4, img_size=32, out_indices=(0, 2)).double().eval()
    image = torch.randn(1, 3, 40, 70, dtype=torch.float64)
    assert levels_changed_by(network, image, "norm.weight") == [0, 2]
    assert levels_changed_by(network, image, "blocks.1.norm1.weight") == [2]
    assert [tuple(x.shape[-2:]) for x in network(image)] == [(3, 5), (3, 5)]
    classifier = ConViT(16, (2, 1), heads=4, img_size=32, num_classes=3)
    account = backbones.load(network, classifier.state_dict())
    assert sorted(account.ignored) == ["cls_token.weight", "head.fc.bias", "head.fc.weight"]


def test_frozen_with_its_position():
    network = ConViT(16, (1, 1), frozen_stages=0)
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == [
        "stem.weight",
        "stem.bias",
        "position.weight",
    ]


def test_no_decay():
    assert ConViT(16, (1, 1), num_classes=3).no_weight_decay() == {"position.weight", "cls_token.weight"}


def test_bad_depths():
    with pytest.raises(ValueError, match=r"depths must be \(blocks of GPSA, at least one block of attention\)"):
        ConViT(depths=(12,))
