"""Restorers as `tools/export.py` writes them, against the model's own answers."""

import export as tool
import onnxruntime
import pytest
import torch
from networks import fill
from torch.testing import assert_close

from attlas.dense.restoration import Restorer
from attlas.dense.restoration.export import ExportedRestorer, fixed_sizes
from attlas.dense.restoration.network import pad_to

HAT = dict(type="HAT", dim=24, depths=(2, 2), heads=2, window=8, compress=4, squeeze=4)
FFNET = dict(type="FFNetSR", dim=16, depth=2)
NETWORKS = {
    "hat_x2": dict(HAT, scale=2, depths=(2,)),
    "hat_x3": dict(HAT, scale=3, depths=(2,)),
    "hat_x4": dict(HAT, scale=4, depths=(2,)),
    "hat_x1": dict(HAT, scale=1, depths=(2,)),
    "hat_rala": dict(HAT, scale=2, depths=(2,), mixer="RALA"),
    "hat_no_overlap": dict(HAT, scale=2, depths=(1,), mixer="SHSA", overlap_mixer="none"),
    "ffnet_sr": dict(FFNET, scale=3),
    "ffnet_sr_merged": dict(FFNET, scale=2, kernel_sizes=(7, 7), norm="batch"),
    "nafnet": dict(type="NAFNet", width=8, encoders=(1, 1), middle=1, decoders=(1, 1)),
    "dncnn": dict(type="DnCNN", in_channels=1, depth=4, width=8),
    "dncnn_weighted": dict(
        type="DnCNN", in_channels=3, depth=4, width=8, conv_cfg=dict(type="WeightedConv2d", den=[0.7])
    ),
}
# (H, W): that of the trace is (20, 28); larger, smaller, one window of HAT, less than that, one pixel
SIZES = ((27, 41), (41, 9), (8, 8), (16, 24), (3, 5), (1, 1))


def restorer(network):
    """A restorer with weights that are neither zero nor one, whose output is mostly within [0, 1]."""
    torch.manual_seed(0)
    return fill(Restorer(network=dict(network)))


def runner(path):
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def check(name, suffix, folder, sizes=SIZES):
    """The file gives what the model gives, at every size."""
    model, out = restorer(NETWORKS[name]), folder / f"x{suffix}"
    network = ExportedRestorer(model).eval()
    free, told = tool.free_sizes(network, None, suffix)
    difference, metadata, remarks = tool.export(network, *network.inputs(1, (20, 28)), out=out, free=free)
    assert (told, remarks) == ("", [])
    assert difference < 1e-4
    assert metadata["outputs"] == "restored"
    assert metadata["input"] == (f"batch,{network.channels},height,width" if "batch" in free else "1,3,height,width")
    run, stds = runner(out), []
    for size in sizes:
        for batch in (1, 3) if "batch" in free else (1,):
            image = torch.rand(batch, network.channels, *size)
            with torch.no_grad():
                expected = model.restore(image).clamp(0, 1)
            assert_close(run(image), expected, rtol=0, atol=1e-4)
            stds.append(float(expected.std(correction=0)))
    assert max(stds) > 0.2  # no two pictures of one color
    return metadata


@pytest.mark.parametrize("name", ["ffnet_sr", "ffnet_sr_merged", "dncnn", "dncnn_weighted"])
def test_convolutions_at_any_size(name, tmp_path):
    check(name, ".onnx", tmp_path)


@pytest.mark.parametrize("name", ["ffnet_sr", "dncnn_weighted"])
def test_convolutions_as_programs(name, tmp_path):
    metadata = check(name, ".pt2", tmp_path, SIZES[:-1])  # not of a single pixel
    assert metadata["imports"] == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("hat_x2", ".onnx"),
        ("hat_x2", ".pt2"),
        ("hat_x3", ".onnx"),
        ("hat_x4", ".pt2"),
        ("hat_x1", ".onnx"),
        ("hat_rala", ".onnx"),
        ("hat_no_overlap", ".pt2"),
    ],
)
def test_windows_at_any_size(name, suffix, tmp_path):
    """Windows, masks of shifts and overlaps are of the size that a picture has."""
    metadata = check(name, suffix, tmp_path)
    assert metadata["imports"] == ("attlas.kernels" if suffix == ".pt2" and name != "hat_no_overlap" else "")


@pytest.mark.slow
def test_nafnet_at_any_size(tmp_path):
    check("nafnet", ".onnx", tmp_path)
    check("nafnet", ".pt2", tmp_path, [size for size in SIZES if min(size) > 4])
    network = ExportedRestorer(restorer(dict(NETWORKS["nafnet"], window=16))).eval()
    difference, *_ = tool.export(network, torch.rand(1, 3, 24, 40), out=tmp_path / "y.onnx", free=["batch"])
    assert difference < 1e-4


def test_what_a_user_must_know():
    about = ExportedRestorer(restorer(NETWORKS["hat_x2"])).about
    assert about == dict(
        layout="RGB, from 0 to 1 (levels / 255), as is the output",
        mean="0,0,0",
        std="255,255,255",
        channels="3",
        scale="2",
        multiple="8",
    )
    about = ExportedRestorer(restorer(NETWORKS["dncnn"])).about
    assert (about["layout"].split(",")[0], about["mean"], about["scale"]) == ("gray", "0", "1")


def test_the_model_stays_as_it_is():
    model = restorer(NETWORKS["ffnet_sr_merged"])
    names, image = list(model.state_dict()), torch.rand(1, 3, 9, 12)
    network = ExportedRestorer(model).eval()
    assert len(network.state_dict()) < len(names)  # merged
    assert list(model.state_dict()) == names
    with torch.no_grad():
        assert_close(network(image), model.restore(image).clamp(0, 1), rtol=0, atol=1e-5)


def test_sizes_that_a_network_fixes():
    """Those of the mixers' systems, and of means over windows."""
    reasons = fixed_sizes(restorer(dict(HAT, depths=(1,), mixer="ATConv")).network)
    assert reasons[".onnx"].keys() == {"batch", "height", "width"}
    assert reasons[".pt2"] == {}
    network = ExportedRestorer(restorer(dict(NETWORKS["nafnet"], window=16)))
    free, told = tool.free_sizes(network, None, ".onnx")
    assert free == ["batch"]
    assert told.startswith("The height is fixed: means are of windows (window=16)")
    assert tool.free_sizes(network, None, ".pt2")[0] == []
    with pytest.raises(ValueError, match=r"NAFNet needs a fixed width in \.pt2: means are of windows"):
        tool.free_sizes(network, "width", ".pt2")


@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_free_sizes_are_filled_up_alike(multiple):
    """A traced program fills pictures of all sizes up as the eager function does."""

    class Filled(torch.nn.Module):
        def forward(self, image):
            return pad_to(image, multiple)

    program = tool.trace(Filled(), [torch.rand(1, 1, 5, 9)], ["height", "width"]).module()
    for size in ((5, 9), (16, 32), (1, 1), (2, 17), (9, 8), (8, 3)):
        image = torch.rand(1, 1, *size)
        assert torch.equal(program(image), pad_to(image, multiple))
