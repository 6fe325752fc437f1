"""FFNet-SR: the authors' results, nearest neighbors under it, sizes, folding."""

import pytest
import torch
import torch.nn.functional as F
from golden_records import Record
from torch import nn
from torch.testing import assert_close

from attlas import checkpoint
from attlas.dense.restoration import FFNetSR, convert, ffnet_sr, fold
from attlas.registry import MODELS


def small(**options):
    return FFNetSR(**{**dict(dim=8, depth=2), **options}).eval()


def test_equals_the_authors():
    record = Record("ffnet/ffnet_sr_small")
    state = record.state_dict()
    assert FFNetSR.options_of(state) == dict(scale=2, in_channels=3, dim=24, depth=3, mlp_ratio=2.0)
    network = FFNetSR(**FFNetSR.options_of(state)).eval()
    account = checkpoint.load(network, state)
    assert account.complete, str(account)
    assert FFNetSR.options_of(network.state_dict()) == FFNetSR.options_of(state)
    assert sum(p.numel() for p in network.parameters()) == record.params
    x = record.input("lq", torch.float32)
    with torch.no_grad():
        assert_close(network(x), record.output(), rtol=0, atol=1e-5)
        assert_close(network.fuse()(x), record.output(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("ffnet_sr_light_x2", 1_789_452),  # these two are the sheet's; the others differ in `conv_bef_up` alone
        ("ffnet_sr_x2", 2_381_580),
        ("ffnet_sr_light_x3", 1_789_452 + (96 * 9 + 1) * 3 * (9 - 4)),
        ("ffnet_sr_light_x4", 1_789_452 + (96 * 9 + 1) * 3 * (16 - 4)),
        ("ffnet_sr_x3", 2_381_580 + (96 * 9 + 1) * 3 * (9 - 4)),
        ("ffnet_sr_x4", 2_381_580 + (96 * 9 + 1) * 3 * (16 - 4)),
    ],
)
def test_parameters(name, params):
    with torch.device("meta"):
        network = MODELS.build(dict(type="FFNetSR", **ffnet_sr.VARIANTS[name][0]))
    assert sum(p.numel() for p in network.parameters()) == params == ffnet_sr.VARIANTS[name][1]


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_begins_as_nearest_neighbors(scale):
    network = small(scale=scale)
    nn.init.zeros_(network.conv_bef_up.weight)
    nn.init.zeros_(network.conv_bef_up.bias)
    for size in ((1, 1), (5, 4), (2, 9)):
        x = torch.rand(2, 3, *size)
        assert torch.equal(network(x), F.interpolate(x, scale_factor=scale, mode="nearest"))
    assert (network.scale, network.multiple) == (scale, 1)


@pytest.mark.parametrize(
    "options", [dict(norm="batch"), dict(norm="layer"), dict(kernel_sizes=(7, 7)), dict(kernel_sizes=(7, 3))]
)
def test_fuses(options):
    network = small(**options).train()
    x = torch.rand(2, 3, 7, 6)
    network(x).square().mean().backward()  # statistics, and gradients
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    with pytest.raises(RuntimeError, match=r"call eval\(\) first"):
        network.fuse()
    expected = network.eval()(x)
    assert_close(network.fuse()(x), expected, rtol=1e-4, atol=1e-5)
    kinds = {type(part).__name__ for part in network.modules()}
    assert not kinds & {"BatchNorm2d", "RepDepthwise", "ConvNorm"}
    assert ("LayerNorm2d" in kinds) == (options.get("norm") == "layer")


def test_with_weighted_convolutions():
    network, x = small(), torch.rand(1, 3, 6, 5)
    expected = network(x)
    assert_close(convert(network, [0.7])(x), expected, rtol=0, atol=1e-5)
    assert_close(fold(network)(x), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_exports_at_any_size():
    network = small(scale=3, kernel_sizes=(7, 7)).fuse()
    sizes = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    program = torch.export.export(network, (torch.rand(1, 3, 16, 12),), dynamic_shapes=(sizes,))
    x = torch.rand(1, 3, 7, 21)
    assert_close(program.module()(x), network(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_at_any_size():
    import onnxruntime

    network = small(scale=3, kernel_sizes=(7, 7)).fuse()
    sizes = {2: torch.export.Dim("height", min=1), 3: torch.export.Dim("width", min=1)}
    program = torch.export.export(network, (torch.rand(1, 3, 16, 12),), dynamic_shapes=(sizes,))
    written = torch.onnx.export(program, dynamo=True, verbose=False)
    assert written is not None
    session = onnxruntime.InferenceSession(written.model_proto.SerializeToString())
    for size in ((7, 21), (1, 1), (16, 12)):
        x = torch.rand(1, 3, *size)
        (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert_close(torch.from_numpy(output), network(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scale=0), "FFNetSR: scale=0 must be a whole number from 1"),
        (dict(scale=2.0), "scale=2.0"),
        (dict(depth=True), "depth=True"),
        (dict(norm="BN"), "norm='BN' must be one of 'layer', 'batch', None"),
        (dict(kernel_sizes=(3,)), r"kernel_sizes=\(3,\) must be 2 odd numbers"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        FFNetSR(**options)


def test_a_hidden_width_that_no_ratio_of_floats_hits():
    """60 * (123 / 60) is below 123."""
    network, x = small(dim=60, depth=1, mlp_ratio=123.5 / 60), torch.rand(1, 3, 5, 6)
    assert torch.equal(FFNetSR.from_file(network.state_dict())(x), network(x))


def test_files_of_other_networks():
    with pytest.raises(ValueError, match=r"no state dict of FFNetSR: it lacks proj\.weight"):
        FFNetSR.options_of({"conv_first.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"of 3 taps and without norms: it lacks body\.0\.token_mixer\.0\.bias"):
        FFNetSR.options_of({name: x for name, x in small().state_dict().items() if "body" not in name})
    with pytest.raises(ValueError, match=r"The file looks like FFNetSR\(scale=3, in_channels=3, dim=8, depth=2"):
        checkpoint.load(small(scale=2), small(scale=3).state_dict())
