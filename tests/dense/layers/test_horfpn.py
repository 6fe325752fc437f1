"""HorFPN: the authors' neck to the digit, any mixer, odd sizes, and what it refuses."""

import pytest
import torch
from golden_records import Record
from torch import nn

from attlas import checkpoint
from attlas.backbones.hornet import GlobalLocalFilter, GnConv
from attlas.dense.layers import HorFPN
from attlas.dense.layers.horfpn import mixer_module

CHANNELS, SIZES = (6, 10, 12, 20), ((13, 18), (6, 9), (3, 4), (1, 2))


def maps(batch=2, channels=CHANNELS, sizes=SIZES):
    torch.manual_seed(0)
    return [torch.randn(batch, width, *size) for width, size in zip(channels, sizes)]


def count(module):
    return sum(p.numel() for p in module.parameters())


def mixer_of(given):
    """The authors' `gn_conv_cfg` in our words."""
    size = (given["h"], given["w"]) if given["type"] == "gngf" else None
    return dict(type="GnConv", order=given["order"], scale=1.0, filter_size=size, proj_out=given["proj_out"])


@pytest.mark.parametrize("case", ["fpn-7x7", "fpn-gf-norm"])
def test_equals_the_authors(case):
    """Their state dict loads, of the neck alone and of a detector; counts and outputs are theirs."""
    record = Record(f"horfpn/{case}")
    options = dict(record.config)
    options["mixer"] = mixer_of(options.pop("gn_conv_cfg"))
    neck = HorFPN(**options).double().eval()
    detector = nn.ModuleDict(dict(neck=neck))
    account = checkpoint.load(detector, {f"neck.{name}": value for name, value in record.state_dict().items()})
    assert account.complete, str(account)
    assert checkpoint.load(neck, neck.state_dict()).complete  # our own names stay
    assert count(neck) == record.params
    found = neck([record.input(key) for key in record.fields["inputs"]])
    for number, x in enumerate(found):
        torch.testing.assert_close(x.float(), record.output(number), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("filter_size", "params"), [(None, 1_368_064), ((32, 17), 2_139_904)])
def test_parameters_of_the_released_necks(filter_size, params):
    """Of HorNet-S's maps and 256 channels; the figures are counts of the authors' modules."""
    with torch.device("meta"):
        mixer = dict(type="GnConv", order=2, scale=1.0, filter_size=filter_size)
        assert count(HorFPN((96, 192, 384, 768), 256, 5, mixer)) == params
        if filter_size is None:
            assert count(HorFPN((96, 192, 384, 768), 256, 5)) == params


def test_shapes_and_gradients():
    neck = HorFPN(CHANNELS, 8, 6)
    neck.init_weights()
    given = [x.requires_grad_() for x in maps()]
    found = neck(given)
    assert [tuple(x.shape) for x in found] == [(2, 8, *size) for size in (*SIZES, (1, 1), (1, 1))]
    sum(x.square().sum() for x in found).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in neck.parameters())
    assert all(x.grad.any() for x in given)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (7, 5)])
def test_a_global_filter_takes_any_size(size):
    neck = HorFPN((6, 10), 8, 2, dict(type="GnConv", order=2, scale=1.0, filter_size=(32, 17)))
    assert sum(isinstance(part, GlobalLocalFilter) for part in neck.modules()) == 2
    found = neck(maps(1, (6, 10), (size, size)))
    assert [tuple(x.shape[2:]) for x in found] == [size, size]
    assert all(x.isfinite().all() for x in found)


def test_it_reaches_further_than_a_kernel():
    """A pixel of the finest map depends on a square of 7, and with a global filter on all pixels."""
    x = maps(1, (6,), ((15, 15),))[0].requires_grad_()
    for filter_size, expected in ((None, 49), ((8, 5), 225)):
        neck = HorFPN((6,), 8, 1, dict(type="GnConv", order=2, scale=1.0, filter_size=filter_size))
        (grad,) = torch.autograd.grad(neck([x])[0][0, :, 7, 7].sum(), x)
        assert grad[0].abs().sum(0).count_nonzero() == expected


@pytest.mark.parametrize(
    "mixer", ["BiLevelRouting", dict(type="NeighborhoodAttention", kernel_size=3), "RALA"], ids=str
)
def test_any_mixer(mixer):
    neck = HorFPN((64, 96), 64, 3, mixer)
    neck.init_weights()
    found = neck(maps(1, (64, 96), ((9, 11), (5, 6))))
    assert [tuple(x.shape[1:]) for x in found] == [(64, 9, 11), (64, 5, 6), (64, 3, 3)]
    kind = mixer if isinstance(mixer, str) else mixer["type"]
    assert [type(part.mixer).__name__ for part in neck.fpn_convs] == [kind, kind]


@pytest.mark.parametrize("source", ["on_input", "on_lateral", "on_output"])
def test_extra_maps(source):
    """A strided convolution, then a mixer; the rest is mmdet's FPN."""
    neck = HorFPN(CHANNELS, 8, 6, add_extra_convs=source, start_level=1)
    found = neck(maps())
    assert [tuple(x.shape[2:]) for x in found] == [*SIZES[1:], (1, 1), (1, 1), (1, 1)]
    assert [isinstance(part[-1].mixer, GnConv) for part in neck.fpn_convs[3:]] == [True] * 3
    strided = neck.fpn_convs[3][0].conv
    assert (strided.in_channels, strided.stride) == (20 if source == "on_input" else 8, (2, 2))


def test_norms_and_activations():
    module = mixer_module("GnConv", 16, dict(type="GN", num_groups=4), dict(type="GELU"))
    assert [name for name, _ in module.named_children()] == ["mixer", "gn", "activate"]
    neck = HorFPN((6, 10), 8, 2, norm_cfg=dict(type="BN"), act_cfg=dict(type="ReLU"))
    assert all(x.min() == 0 for x in neck(maps(2, (6, 10), SIZES)))


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_outs=2 must be at least 3, the maps of the backbone that are used"):
        HorFPN(CHANNELS, 8, 2, start_level=1)
    with pytest.raises(ValueError, match=r"dim=18 must be divisible by 2\^\(order-1\) = 4"):
        HorFPN((6,), 18, 1, dict(type="GnConv", order=3))
    with pytest.raises(ValueError, match="dim=4 is not to be given; it is 8"):
        HorFPN((6,), 8, 1, dict(type="GnConv", dim=4))
    with pytest.raises(KeyError, match="GnConv"):
        HorFPN((6,), 8, 1, "GnKonv")
    with pytest.raises(ValueError, match=r"the maps have \[6, 10\] channels, and in_channels=\[6, 10, 12, 20\]"):
        HorFPN(CHANNELS, 8, 4)(maps()[:2])
