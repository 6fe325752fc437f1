"""What characterises LSNet: biases by offset at any size, branches that fold, two heads."""

import pytest
import torch
import torch.nn.functional as F
from golden_records import Record, parameter
from torch import nn

from attlas import backbones
from attlas.backbones.lsnet import LSConv, LSNet, LSNetAttention, RepDW, expand_offsets, resize_offsets


def small(**options):
    return LSNet((16, 32, 48, 64), (1, 2, 2, 3), **{"key_dim": 8, "resolution": 2, **options})


def filled(network):
    """The network with weights that follow from their names."""
    network.load_state_dict(
        {
            name: parameter(name, value.shape)
            for name, value in network.state_dict().items()
            if value.is_floating_point()
        },
        strict=False,
    )
    return network.double().eval()


def image(*size):
    return torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("size", "sides"),
    [((224, 224), [(28, 28), (14, 14), (7, 7), (4, 4)]), ((200, 264), [(25, 33), (13, 17), (7, 9), (4, 5)])],
)
def test_sizes(size, sides):
    with torch.device("meta"):
        outputs = backbones.create("lsnet_t", out_indices=(0, 1, 2, 3)).eval()(torch.zeros(1, 3, *size))
    assert [tuple(y.shape[1:]) for y in outputs] == [(c, *side) for c, side in zip((64, 128, 256, 384), sides)]


@pytest.mark.parametrize(
    ("name", "params"), [("lsnet_t", 11_370_488), ("lsnet_s", 16_098_232), ("lsnet_b", 23_249_320)]
)
def test_parameters_fused(name, params):
    with torch.device("meta"):
        network = backbones.create(name).eval().fuse()
    assert sum(p.numel() for p in network.parameters()) == params


def test_widths_of_the_gates():
    """The nearest multiple of 8, also where it is below nine tenths, as timm's squeeze and excitation has it."""
    network = LSNet((40, 72, 56, 64), (1, 1, 1, 1), num_classes=5)
    assert [stage.blocks[0].se.fc1.out_channels for stage in network.stages] == [8, 16, 16, 16]


def test_fused():
    network, x = filled(small(num_classes=5, distilled=True)), image(96, 130)
    expected = network(x)
    torch.testing.assert_close(network.fuse()(x), expected, rtol=1e-9, atol=1e-9)
    branches = [m for m in network.modules() if isinstance(m, RepDW)]
    assert branches == []


def test_rep_dw_is_one_convolution():
    mixer, x = filled(RepDW(6)), torch.randn(1, 6, 5, 4, dtype=torch.float64)
    expected = mixer(x)
    fused = backbones.layers.fuse(mixer)
    assert type(fused) is nn.Conv2d
    assert sum(p.numel() for p in fused.parameters()) == 6 * 10
    torch.testing.assert_close(fused(x), expected)


def test_offsets_are_in_the_order_of_their_first_appearance():
    """The authors number the pairs (|Δy|, |Δx|) as they meet them, first pixel by first pixel, row by row."""
    side, numbers = 3, {}
    pixels = [(i, j) for i in range(side) for j in range(side)]
    index = torch.tensor(
        [[numbers.setdefault((abs(a - c), abs(b - d)), len(numbers)) for c, d in pixels] for a, b in pixels]
    )
    table = torch.randn(2, side**2)
    assert torch.equal(expand_offsets(table, side, side), table[:, index])


def test_biases_of_other_sizes():
    """The classifier resizes the table of offsets; the dense form, as the authors', the matrix as an image."""
    table = torch.randn(2, 9)
    classifier, dense = (LSNetAttention(8, heads=2, resolution=3, resize_matrix=matrix) for matrix in (False, True))
    for mixer in (classifier, dense):
        mixer.attention_biases.data.copy_(table)
        assert torch.equal(mixer.bias(3, 3), expand_offsets(table, 3, 3))
    wide = F.interpolate(table.view(1, 2, 3, 3), (2, 4), mode="bicubic").flatten(2)[0]
    pixels = [(i, j) for i in range(2) for j in range(4)]
    by_pairs = torch.stack(
        [torch.stack([wide[:, abs(a - c) * 4 + abs(b - d)] for c, d in pixels], 1) for a, b in pixels], 1
    )
    torch.testing.assert_close(classifier.bias(2, 4), by_pairs)
    as_image = F.interpolate(expand_offsets(table, 3, 3)[None], (8, 8), mode="bicubic")[0]
    torch.testing.assert_close(dense.bias(2, 4), as_image)


def test_the_dense_form_takes_the_table_of_a_classifier():
    classifier, dense = filled(small(num_classes=5)), small(resolution=5)
    account = backbones.load(dense, classifier.state_dict())
    (name,) = account.resized
    assert not account.missing
    old, new = (dict(network.named_parameters())[name] for network in (classifier, dense))
    assert (*old.shape, *new.shape) == (4, 4, 4, 25)
    torch.testing.assert_close(new, resize_offsets(old, (5, 5)).float())
    assert dense.stages[-1].blocks[1].mixer.branch.resize_matrix
    assert LSNet().stages[-1].blocks[1].mixer.branch.resolution == 14


def test_the_dense_form():
    """The maps as they are, without norms. All but the attentions are those of the classifier at any size."""
    classifier, dense = filled(small(num_classes=5)), filled(small())
    account = backbones.load(dense, classifier.state_dict())
    assert {name.split(".")[0] for name in account.ignored} == {"head"}
    assert not account.missing
    assert not list(dense.norms.parameters())
    for size, sides in (((128, 128), (2, 2)), ((200, 264), (4, 5))):
        *lower, last = dense(image(*size))
        *expected, other = classifier.forward_intermediates(image(*size))[1]
        assert tuple(last.shape[-2:]) == sides
        assert all(torch.equal(one, two) for one, two in zip(lower, expected))
        # at the size that the table is for, both are one; elsewhere the authors' resizing of the matrix counts
        assert torch.allclose(last, other, rtol=1e-12) == (sides == (2, 2))


def test_weights_loaded_after_eval_count():
    source, network, x = filled(small(num_classes=5)), small(num_classes=5).double().eval(), image(128, 128)
    network(x)
    network.load_state_dict(source.state_dict())
    assert torch.equal(network(x), source(x))


def test_the_authors_two_heads():
    record = Record("lsnet/lsnet_small")
    single = small(num_classes=30).eval()
    backbones.load(single, record.state_dict())
    state = record.state_dict()
    second = {name: value.flip(0) for name, value in state.items() if name.startswith("head.")}
    other = small(num_classes=30).eval()
    backbones.load(other, {**state, **second})
    network = small(num_classes=30, distilled=True).eval()
    twice = {**state, **{name.replace("head.", "head_dist."): value for name, value in second.items()}}
    assert backbones.load(network, twice).complete
    x = image(128, 128).float()
    torch.testing.assert_close(network(x), (single(x) + other(x)) / 2)


def test_decay_spares_the_biases():
    names = LSNet(num_classes=5).no_weight_decay()
    assert len(names) == 5
    assert all(name.endswith("branch.attention_biases") for name in names)


def test_bad_widths():
    with pytest.raises(ValueError, match="LSConv: dim=20 must be even and divisible by groups=8"):
        LSConv(20)
    with pytest.raises(ValueError, match="LSConv: small_kernel=2 must be odd"):
        LSConv(32, small_kernel=2)
    with pytest.raises(ValueError, match="LSConv: large_kernel=6 must be odd"):
        LSConv(32, large_kernel=6)
    with pytest.raises(ValueError, match="dim=32 must be even and divisible by groups=0"):
        LSConv(32, groups=0)
    with pytest.raises(ValueError, match="LSNetAttention: dim=64 is not divisible by heads=5"):
        LSNetAttention(64, heads=5)
