"""Which sizes an export leaves free, by system; the tool as a user calls it is in test_tools.py."""

import json
from itertools import product
from pathlib import Path

import onnxruntime
import pytest
import torch
from fuzzing import ONE_OF
from networks import SYSTEMS, build, close, image

from attlas import backbones, checkpoint
from attlas.pointnets.classifier import PointClassifier
from attlas.pointnets.inference import PointClassification

PAGE = Path(__file__).parents[2] / "docs" / "exports.md"


@pytest.fixture
def tool(load):
    return load("export")


@pytest.fixture
def exported(tool):
    """A small backbone, as the tool exports it."""
    return lambda system, **options: tool.ExportedBackbone(build(system, **options))


def test_the_page_has_the_table(tool):
    assert tool.table() in PAGE.read_text(encoding="utf-8")


def test_reasons_are_of_formats_and_sizes_that_there_are(tool):
    for system in backbones.systems().values():
        assert system.fixed_sizes.keys() <= set(tool.FORMATS)
        for reasons in system.fixed_sizes.values():
            assert reasons.keys() <= tool.SIZES.keys()
            assert all(why and not why.endswith(".") for why in reasons.values())


@pytest.mark.slow
@pytest.mark.parametrize(("system", "suffix"), [*product(SYSTEMS, (".pt2", ".onnx"))][::ONE_OF])
def test_what_the_table_says(system, suffix, tool, exported, tmp_path):
    """What is free runs at a second size, which `export` tries: a third of the files, or all with ALL_TRIES=1."""
    network, x = exported(system, num_classes=5), image(224, 256)
    fixed = network.fixed_sizes.get(suffix, {})
    free = [name for name in tool.SIZES if name not in fixed]
    out = tmp_path / f"network{suffix}"
    difference, metadata, _ = tool.export(network, x, out=out, free=free)
    assert difference < 1e-2
    assert metadata["input"] == ",".join(
        name if name in free else str(size) for name, size in zip(("batch", "channels", "height", "width"), x.shape)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "suffix", "free"), [("AttNet", ".onnx", ["batch"]), ("BiFormer", ".pt2", ["height"])]
)
def test_what_is_fixed_cannot_be_free(system, suffix, free, tool, exported, tmp_path):
    assert tool.free_sizes(exported(system), "none", suffix) == ([], "")
    assert set(free) <= backbones.systems()[system].fixed_sizes[suffix].keys()
    with pytest.raises((RuntimeError, TypeError, torch.onnx.OnnxExporterError)):
        tool.export(exported(system, num_classes=5), image(64, 64), out=tmp_path / f"x{suffix}", free=free)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("system", ["ConViT", "OverLoCK"])  # whose tokens and kernels are made for a batch
def test_free_batch(system, tool):
    network = build(system, num_classes=5)
    module = tool.trace(network, [image(64, 64)], ["batch"]).module()
    for batch in (1, 3):
        x = image(64, 64, batch=batch)
        close(module(x), network(x), 1e-5)


@pytest.mark.slow
def test_free_sizes_and_metadata(tool, exported, tmp_path):
    """A size that is no multiple of the stride runs; the metadata comes back with the program."""
    network = exported("ConViT", num_classes=5)
    network.about = dict(layout="RGB")
    out = tmp_path / "convit.pt2"
    _, metadata, _ = tool.export(network, image(64, 96), out=out, free=["height", "width"])
    assert metadata == dict(layout="RGB", input="2,3,height,width", size="64,96", outputs="logits", imports="")
    extra = {"metadata.json": ""}
    module = torch.export.load(out, extra_files=extra).module()
    assert json.loads(extra["metadata.json"]) == metadata
    for size in ((51, 113), (224, 224)):  # of the table of positions, too
        close(module(image(*size)), network(image(*size)), 1e-5)


def test_an_operator_of_ours_is_named_as_an_import(tool, exported, tmp_path):
    _, metadata, _ = tool.export(exported("NATIsotropic"), image(32, 32), out=tmp_path / "nat.pt2", free=["batch"])
    assert metadata["imports"] == "attlas.kernels"
    assert metadata["outputs"] == "level0,level1"


def test_a_size_that_did_not_stay_free_is_refused(tool, tmp_path):
    class OfOneBatch(torch.nn.Module):
        num_classes, fixed_sizes = 5, {}

        def forward(self, x):
            return x.new_ones(int(x.shape[0]), 5)

    with pytest.raises(RuntimeError, match="batch did not stay free"):
        tool.export(tool.ExportedBackbone(OfOneBatch()), image(8, 8), out=tmp_path / "x.pt2", free=["batch"])
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_refused(tool, tmp_path):
    class Random(torch.nn.Module):
        num_classes, fixed_sizes = 5, {}

        def forward(self, x):
            return torch.rand(x.shape[0], 5)

    with pytest.raises(RuntimeError, match=r"differs from the network by .*: nothing was written"):
        tool.export(tool.ExportedBackbone(Random()), image(8, 8), out=tmp_path / "x.pt2", free=["batch"])
    assert list(tmp_path.iterdir()) == []


def test_which_sizes_are_free(tool, exported):
    network = exported("SHViT", num_classes=5)
    assert tool.free_sizes(network, None, ".onnx") == (["batch"], "")
    assert tool.free_sizes(network, "none", ".onnx") == ([], "")
    assert tool.free_sizes(network, "width,batch", ".onnx")[0] == ["batch", "width"]
    with pytest.raises(ValueError, match="'depth' must be one of batch, height, width"):
        tool.free_sizes(network, "batch,depth", ".onnx")
    network.fixed_sizes = {".onnx": dict(batch="it is so")}
    assert tool.free_sizes(network, None, ".onnx") == ([], "The batch is fixed: it is so.")
    assert tool.free_sizes(network, None, ".pt2") == (["batch"], "")
    with pytest.raises(ValueError, match=r"SHViT needs a fixed batch in \.onnx: it is so\. .*--dynamic height,width"):
        tool.free_sizes(network, "batch", ".onnx")


def test_of_images_and_classes(tool, tmp_path):
    config, weights = tmp_path / "config.py", tmp_path / "weights.pth"
    config.write_text(
        "test_dataloader = dict(dataset=dict(transforms=[dict(type='Resize', size=(40, 56)),"
        " dict(type='attlas.PackImage', mean=[1, 2, 3], std=[4, 5, 6])]))\n"
    )
    torch.save({"state_dict": {}, "meta": {"dataset_meta": {"classes": ["cat", "dög"]}}}, weights)
    steps = tool.settings(str(config))[1]
    assert list(tool.image_size(steps)) == [40, 56]
    found = tool.of_images(steps)
    assert (found["mean"], found["std"]) == ("1,2,3", "4,5,6")
    assert json.loads(tool.of_classes(weights, 2)["classes"]) == ["cat", "dög"]
    assert tool.of_classes(weights, 3) == {}  # of another head
    checkpoint.save(tmp_path / "weights.safetensors", {"x": torch.zeros(1)})
    assert tool.of_classes(tmp_path / "weights.safetensors", 2) == {}
    variant = backbones.variant("shvit_s4")[1]
    steps = tool.settings("shvit_s4")[1]
    assert tool.image_size(steps) == [variant.size] == [256]
    assert tool.of_images(steps)["mean"].startswith("123.675")
    assert tool.image_size([dict(type="Resize", size=256)]) == [224]  # the shorter side of whatever comes


def test_names_in_onnx(tool, exported, tmp_path):
    network = exported("SHViT")
    tool.export(network, image(64, 64), out=tmp_path / "x.onnx", free=["batch"])
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    assert [(x.name, x.shape) for x in session.get_inputs()] == [("image", ["batch", 3, 64, 64])]
    assert [x.name for x in session.get_outputs()] == ["level0", "level1", "level2"]
    assert session.get_modelmeta().custom_metadata_map["outputs"] == "level0,level1,level2"


@pytest.mark.slow
def test_a_network_of_points(tool, tmp_path):
    """For any number of clouds, one included."""
    model = PointClassifier(dict(type="RISurConvClassifier", num_classes=40)).eval()
    model.classes = ("chair", "table")
    network = PointClassification().exportable(model, [dict(type="RandomPoints", num=1024)])
    points, normals = network.inputs(1, None)
    out = tmp_path / "network.pt2"
    assert tool.free_sizes(network, None, ".pt2") == (["batch"], "")
    difference, metadata, remarks = tool.export(network, points, normals, out=out, free=["batch"])
    assert (difference, remarks) == (0, [])
    assert (metadata["classes"], metadata["layout"][:16]) == ('["chair", "table"]', "points (B, N, 3)")
    assert (metadata["input"], metadata["size"], metadata["outputs"]) == ("batch,1024,3", "1024", "logits")
    assert metadata["imports"] == "attlas.kernels"
    close(torch.export.load(out).module()(points, normals), network(points, normals), 1e-6)
