"""The tools as a user calls them: what they print, write and refuse."""

import csv
import dataclasses
import functools
import json
import math
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import small_detectors as detectors
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from networks import close

from attlas import backbones, checkpoint, inference, rendering
from attlas.backbones.inspection import attention_maps as viewer
from attlas.backbones.zoo import Variant
from attlas.config import load_config
from attlas.registry import MIXERS, MODELS

ROOT = Path(__file__).parents[2]

TINY = dict(dims=(8, 16, 32, 64), depths=(1, 1, 1, 1))
PARAMS = 88_349  # of TINY with five classes


@pytest.fixture
def tiny(monkeypatch):
    """A variant of HorNet that is built in no time, by name."""
    monkeypatch.setitem(backbones.systems()["HorNet"].variants, "hornet_grain", Variant(TINY, PARAMS, classes=5))
    return "hornet_grain"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(f"model = dict(backbone=dict(type='HorNet', num_classes=5, {_arguments(TINY)}))\n")
    return path


def _arguments(options):
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


# --- analyze ---------------------------------------------------------------------------------------------------------


def test_analyze(run, config):
    printed = run("analyze", config, "--size", 32, 64, "--batch", 2, "--repeats", 1)
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line.strip()}
    assert list(rows)[:2] == ["part", "stem"]
    assert {"stages.0", "stages.3", "head"} <= rows.keys()
    assert rows["total"][1] == f"{PARAMS:,}"
    assert "2 x 32 x 64 pixels, CPU, " in printed
    assert "Peak memory of the maps: " in printed
    macs = 8 * 16 * 3 * 4 * 4 * 8 / 1e6  # of the stem: 8 x 16 places, 3 x 4 x 4 pixels to 8 channels
    assert rows["stem"][2] == f"{macs:.1f}"


def test_analyze_without_times_and_dense(run, tiny):
    printed = run("analyze", tiny, "--size", 64, "--repeats", 0, "--dense")
    assert "head" not in printed
    assert "norms.3" in printed


def test_analyze_refuses(refusal, config, tmp_path):
    assert "--size takes one number" in refusal("analyze", config, "--size", 32, 32, 32)
    assert "must be positive" in refusal("analyze", config, "--size", 0)
    assert "must be positive" in refusal("analyze", config, "--batch", 0)
    assert "nowhere" in refusal("analyze", config, "--device", "nowhere")
    assert "Near it: hornet_tiny_gf" in refusal("analyze", "hornet_tiny_fg")
    assert "none.py" in refusal("analyze", tmp_path / "none.py")
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert "no model with a backbone" in refusal("analyze", tmp_path / "empty.py")


# --- convert ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def authors(tmp_path, tiny):
    """A file of that variant with two of its names as HorNet's authors have them."""
    state = backbones.create(tiny).state_dict()
    theirs = {"head.after.": "norm.", "head.fc.": "head."}
    renamed = {}
    for name, tensor in state.items():
        for ours, old in theirs.items():
            if name.startswith(ours):
                name = name.replace(ours, old, 1)
                break
        renamed[name] = tensor
    path = tmp_path / "authors.pth"
    torch.save({"model": renamed}, path)
    return path


def test_convert(run, refusal, tiny, authors, tmp_path):
    out = tmp_path / "ours.safetensors"
    printed = run("convert", tiny, authors, out, "--names")
    assert "norm.weight -> head.after.weight" in printed
    network = backbones.create(tiny)
    assert f"{out}: {len(network.state_dict())} tensors" in printed
    backbones.load(network, out)
    assert torch.equal(network.head.fc.weight, torch.load(authors)["model"]["head.weight"])
    assert "exists. To replace it: --overwrite" in refusal("convert", tiny, authors, out)
    assert str(out) in run("convert", tiny, authors, out, "--overwrite")


def test_averaged_weights(run, tiny, tmp_path):
    raw = backbones.create(tiny).state_dict()
    averaged = {name: torch.ones_like(value) for name, value in raw.items()}
    torch.save({"model": raw, "model_ema": averaged}, tmp_path / "file.pth")
    for tool, arguments in (("convert", (tiny,)), ("publish", ())):
        out = tmp_path / f"{tool}.safetensors"
        run(tool, *arguments, tmp_path / "file.pth", out, "--container", "model_ema")
        assert all((value == 1).all() for value in checkpoint.read(out)["state_dict"].values())
    printed = run("publish", tmp_path / "file.pth", tmp_path / "raw.safetensors")
    assert f"holds model_ema besides, with {len(raw)} tensors. To take that: --container model_ema" in printed


def test_published_weights_that_half_precision_cannot_hold_stay(run, tmp_path):
    kept = {"large": torch.tensor([2049.0]), "infinite": torch.tensor([torch.inf]), "not": torch.tensor([torch.nan])}
    given = kept | {"small": torch.tensor([2048.0]), "none": torch.empty(0), "count": torch.tensor([70000])}
    torch.save({"state_dict": given}, tmp_path / "file.pth")
    printed = run("publish", tmp_path / "file.pth", tmp_path / "out.safetensors")
    found = checkpoint.read(tmp_path / "out.safetensors")["state_dict"]
    assert {name: value.dtype for name, value in found.items()} == dict.fromkeys(kept, torch.float32) | dict(
        small=torch.float16, none=torch.float16, count=torch.int64
    )
    assert torch.equal(found["large"], given["large"])
    assert all(f"{name} stays in float32: it holds values beyond 2048" in printed for name in kept)


def test_convert_refuses_what_is_incomplete(run, refusal, tiny, authors, tmp_path):
    out = tmp_path / "ours.safetensors"
    state = torch.load(authors)["model"]
    state["surplus"] = torch.zeros(1)
    torch.save(state, authors)
    message = refusal("convert", tiny, authors, out)
    assert "nothing was written" in message
    assert not out.exists()
    run("convert", tiny, authors, out, "--incomplete")
    assert "surplus" not in checkpoint.read(out)
    other = tmp_path / "other.safetensors"
    assert "no variant of a backbone. Near it: " in refusal("convert", "hornet_grian", authors, other)
    assert "must end in .safetensors" in refusal("convert", tiny, authors, tmp_path / "ours.pth")


# --- test ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tested(tmp_path, config):
    """A config and a checkpoint of a classifier of ten pictures in two classes, without a training."""
    rng = np.random.default_rng(0)
    for number in range(10):
        folder = tmp_path / "pictures/test" / ("dark", "light")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(
            str(folder / f"{number}.png"), rng.integers(100 * (number % 2), 140 + 100 * (number % 2), (40, 48, 3))
        )
    path = tmp_path / "classifier.py"
    path.write_text(
        f"_base_ = {str(ROOT / 'configs/_base_/default_runtime.py')!r}\n"
        f"model = dict(type='ImageClassifier', backbone=dict(type='HorNet', num_classes=2, {_arguments(TINY)}))\n"
        "test_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),\n"
        "    collate_fn=dict(type='default_collate'), dataset=dict(type='ImageFolder', split='test',\n"
        f"    root={str(tmp_path / 'pictures')!r},\n"
        "    transforms=[dict(type='Resize', size=32), dict(type='PackImage')]))\n"
        "test_cfg = dict()\n"
        "test_evaluator = dict(type='ImageAccuracy')\n"
    )
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("attlas"):
        model = MODELS.build(Config.fromfile(path).model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "weights.pth")
    return path, tmp_path / "weights.pth", "--work-dir", tmp_path / "work"


def test_robustness_of_a_classifier(run, tested, tmp_path):
    corrupted = "--corruptions", "gaussian_noise,contrast", "--severities", 0, 2, 5
    printed = run("test", *tested, *corrupted, "--out", tmp_path / "robust.json", "--metric", "mAcc")
    found = json.loads((tmp_path / "robust.json").read_text())
    assert list(found["corruptions"]) == ["gaussian_noise", "contrast"]
    assert all(list(of_severity) == ["2", "5"] for of_severity in found["corruptions"].values())
    tops = [metrics["top1"] for of_severity in found["corruptions"].values() for metrics in of_severity.values()]
    assert found["mPC"]["top1"] == pytest.approx(np.mean(tops))
    assert found["rPC"]["top1"] == pytest.approx(100 * np.mean(tops) / found["clean"]["top1"])
    assert re.search(r"mAcc +┃ 2 +┃ 5 +┃ mean", printed)
    assert re.search(rf"corrupted \(mPC\) .* {found['mPC']['mAcc']:.4g} ", printed)

    run("test", *tested, "--out", tmp_path / "plain.npz")
    with np.load(tmp_path / "plain.npz") as plain:
        assert found["clean"]["top1"] == pytest.approx(100 * plain["confusion"].trace() / 10)
    workers = "--cfg-options", "test_dataloader.num_workers=2"
    run("test", *tested, *corrupted, "--out", tmp_path / "again.json", *workers)
    assert json.loads((tmp_path / "again.json").read_text()) == found


def test_what_test_refuses(refusal, run, tested, tmp_path):
    out = tmp_path / "robust.json"
    assert "Did you mean 'fog'" in refusal("test", *tested, "--corruptions", "snow,fgo")
    assert "invalid choice: 6" in refusal("test", *tested, "--corruptions", "all", "--severities", 6)
    assert "seed is -1" in refusal("test", *tested, "--corruptions", "fog", "--seed", -1)
    assert "one of them at a time" in refusal("test", *tested, "--corruptions", "fog", "--so3", tested[1])
    assert "must end in .npz" in refusal("test", *tested, "--out", out)
    assert "must end in .json" in refusal("test", *tested, "--corruptions", "fog", "--out", tmp_path / "robust.npz")
    out.write_text("{}")
    assert "exists. To replace it: --overwrite" in refusal("test", *tested, "--corruptions", "fog", "--out", out)
    other = "--cfg-options", "test_evaluator.type=mmdet.CocoMetric"
    assert "mmdet.CocoMetric, writes no file" in refusal("test", *tested, "--out", out, *other)
    with pytest.raises(SystemExit, match="--metric: there is no metric 'mAP'; the evaluator gives top1, mAcc"):
        run("test", *tested, "--corruptions", "fog", "--metric", "mAP")
    assert out.read_text() == "{}"


# --- export ----------------------------------------------------------------------------------------------------------


def test_export_to_onnx(run, refusal, config, tmp_path):
    out = tmp_path / "tiny.onnx"
    assert "must end in .onnx or .pt2" in refusal("export", config, tmp_path / "tiny.pt")
    assert "--size takes one number" in refusal("export", config, out, "--size", 32, 32, 32)
    assert "must be positive" in refusal("export", config, out, "--batch", 0)
    assert "Near it: " in refusal("export", "hornet_tiny", out)
    assert not out.exists()
    printed = run("export", config, out, "--size", 32, 64, "--fuse")
    assert f"{out}: " in printed
    assert "for (batch, 3, 32, 64), gives logits; differs from the network by " in printed
    session = onnxruntime.InferenceSession(out)
    (logits,) = session.run(["logits"], {"image": np.zeros((5, 3, 32, 64), np.float32)})
    assert logits.shape == (5, 5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["input"], metadata["size"]) == ("batch,3,32,64", "32,64")
    assert "'depth' must be one of" in refusal("export", config, tmp_path / "x.onnx", "--dynamic", "depth")
    assert "exists. To replace it: --overwrite" in refusal("export", config, out)


@pytest.fixture
def trained(config, tmp_path):
    """A checkpoint that holds its config, as trainings write it: of two classes, and images of 32 x 64 pixels."""
    steps = [dict(type="Resize", size=(32, 64)), dict(type="PackImage", mean=[1.0, 2.0, 3.0])]
    backbone = load_config(config).model.backbone.to_dict() | dict(num_classes=2)
    model = dict(type="ImageClassifier", backbone=backbone)
    held = Config(dict(model=model, test_dataloader=dict(dataset=dict(type="ImageFolder", transforms=steps))))
    meta = dict(cfg=held.pretty_text, dataset_meta=dict(classes=["cat", "dog"]))
    path = tmp_path / "epoch_3.pth"
    torch.save(dict(meta=meta, state_dict=MODELS.build(model).state_dict()), path)
    return path


def test_export_of_a_checkpoint_alone(run, refusal, trained, tmp_path):
    out = tmp_path / "own.onnx"
    assert "for (batch, 3, 32, 64), gives logits" in run("export", trained, out)
    session = onnxruntime.InferenceSession(out)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["cat", "dog"]
    assert (metadata["mean"], metadata["size"]) == ("1.0,2.0,3.0", "32,64")
    image = torch.randn(3, 3, 32, 64)
    (logits,) = session.run(["logits"], {"image": image.numpy()})
    close(torch.from_numpy(logits), inference.load(trained, device="cpu").backbone(image), 1e-5)
    assert "epoch_4.pth does not exist" in refusal("export", tmp_path / "epoch_4.pth", out, "--overwrite")


def test_export_refuses_what_is_not_for_points(refusal, tmp_path):
    config = ROOT / "configs/risurconv/risurconv_furniture14.py"
    assert "can be exported to .pt2 alone" in refusal("export", config, tmp_path / "x.onnx")
    assert "needs --weights" in refusal("export", config, tmp_path / "x.pt2")
    weights = ROOT / "configs/dgcnn/dgcnn_furniture14.safetensors"
    of_weights = ["export", weights.with_suffix(".py"), tmp_path / "x.pt2", "--weights", weights]
    assert "needs a fixed height in .pt2: a cloud has as many points" in refusal(*of_weights, "--dynamic", "height")
    assert "--size takes one number of points" in refusal(*of_weights, "--size", 8, 8)
    assert "are for backbones" in refusal("export", config, tmp_path / "x.pt2", "--dense")


@pytest.mark.slow
def test_export_of_a_detector(run, refusal, monkeypatch, tmp_path):
    """Of a checkpoint alone, and of its config and weights: classes, and the size of the test images, filled up."""
    options = {}
    monkeypatch.setattr(detectors, "build", lambda given, build=detectors.build: options.update(given) or build(given))
    weights = detectors.dense("retina").state_dict()
    steps = [dict(type="attlas.ReadImage"), dict(type="Resize", scale=(90, 64)), dict(type="PackDetInputs")]
    held = Config(
        dict(
            default_scope="mmdet",
            model=options,
            test_dataloader=dict(dataset=dict(type="attlas.CocoDetection", pipeline=steps)),
        )
    )
    config, checkpoint, out = tmp_path / "detector.py", tmp_path / "epoch_1.pth", tmp_path / "detector.pt2"
    held.dump(config)
    torch.save(
        dict(meta=dict(cfg=held.pretty_text, dataset_meta=dict(classes=list("abcde"))), state_dict=weights), checkpoint
    )
    printed = run("export", checkpoint, out)
    assert "for (batch, 3, 64, 96), gives boxes, scores, labels; differs from the network by" in printed
    assert "import attlas.kernels" in printed
    extra = {"metadata.json": ""}
    boxes, scores, labels = torch.export.load(out, extra_files=extra).module()(torch.randn(3, 3, 64, 96))
    assert (boxes.shape, scores.shape, labels.shape) == ((3, 40, 4), (3, 40), (3, 40))
    metadata = json.loads(extra["metadata.json"])
    assert json.loads(metadata["classes"]) == list("abcde")
    assert (metadata["mean"], metadata["size"]) == ("1,2,3", "64,96")
    assert "--weights" in refusal("export", config, tmp_path / "x.onnx")
    assert "are for backbones" in refusal("export", checkpoint, tmp_path / "x.onnx", "--num-classes", 3)
    again = run("export", config, out, "--weights", checkpoint, "--overwrite", "--dynamic", "none", "--size", 32, 64)
    assert "for (1, 3, 32, 64), gives boxes" in again


def test_export_of_maps(run, config, tmp_path):
    out = tmp_path / "tiny.pt2"
    run("export", config, out, "--size", 32, "--batch", 2, "--dense", "--dynamic", "none")
    maps = torch.export.load(out).module()(torch.zeros(2, 3, 32, 32))
    assert [tuple(x.shape) for x in maps] == [(2, 8 << i, 8 >> i, 8 >> i) for i in range(4)]


# --- visualize -------------------------------------------------------------------------------------------------------


def test_visualize_shapes(run, refusal, monkeypatch, tmp_path):
    monkeypatch.setattr(rendering, "render", functools.partial(rendering.render, quality=1))
    config = tmp_path / "config.py"
    config.write_text(
        "model = dict(type='PointClassifier', network=dict(type='RISurConvClassifier', num_classes=14, num_points=32, "
        "channels=(8, 8), neighbors=(4,), encoder_layers=0))\n"
        "test_dataloader = dict(dataset=dict(type='RotatedViews', views=dict(z=1), dataset=dict(type='Furniture14', "
        "split='test', transforms=[dict(type='RandomPoints', num=64), dict(type='UnitSphere')])))\n"
    )
    weights, out = tmp_path / "weights.safetensors", tmp_path / "picture.png"
    checkpoint.save(weights, MODELS.build(load_config(config).model).state_dict())
    for command in (
        ["cloud", config],
        ["normals", config],
        ["samples", config],
        ["neighborhood", config, weights],
        ["turning", config, weights, "--views", 2, "--against", f"twin={config}:{weights}"],
    ):
        assert str(out) in run("visualize", *command, "--item", 3, "--out", out)
        assert cv2.imread(str(out)).std() > 3  # not blank
        out.unlink()
    message = refusal("visualize", "cloud", config, "--item", 1000, "--out", out)
    assert "item is 1000; the data set (test) has item 0 to " in message
    assert "name the config, or give --file" in refusal("visualize", "cloud", "--item", 3, "--out", out)
    message = refusal("visualize", "turning", config, weights, "--item", 3, "--out", out, "--against", "twin")
    assert "twin: NAME=CONFIG:CHECKPOINT was expected" in message
    assert not out.exists()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    return path


def test_random_weights_are_called_random(load, config, picture, tmp_path):
    tool = load("visualize")
    drawn = ["attention", str(config), "--image", str(picture), "--out", "x.png", "--size", "32"]

    def title(*more):
        args = tool.arguments().parse_args([*drawn, *map(str, more)])
        return args.draw(args).get_suptitle()

    assert title() == "tiny.py, random weights"
    network = MODELS.build(load_config(config).model.backbone)
    checkpoint.save(tmp_path / "trained.safetensors", network.state_dict())
    assert title("--weights", tmp_path / "trained.safetensors") == "tiny.py, weights of trained.safetensors"


def test_visualize_rooms(run, refusal, monkeypatch, tmp_path):
    out = tmp_path / "rooms.png"
    assert str(out) in run("visualize", "room", "--number", 3, "--split", "test", "--out", out)
    assert cv2.imread(str(out)).std() > 20
    assert "number is -1" in refusal("visualize", "room", "--number", -1, "--out", tmp_path / "x.png")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert "cannot open a window" in refusal("visualize", "room", "--number", 3, "--window")


def test_visualize_attention(run, refusal, config, picture, tmp_path):
    out = tmp_path / "looks.png"
    attention = ["visualize", "attention", config, "--image", picture, "--out", out, "--size", 64]
    assert str(out) in run(*attention, "--place", 0.2, 0.9)
    first = cv2.imread(str(out))
    assert min(first.shape[:2]) > 200
    assert "exists" in refusal(*attention)
    run(*attention, "--overwrite", "--mixers", "stages.1.blocks.0.mixer")
    assert cv2.imread(str(out)).shape[0] < first.shape[0] / 2  # one row instead of four
    attention[6] = tmp_path / "other.png"
    assert "fractions of the image" in refusal(*attention, "--place", 1, 0)
    message = refusal(*attention, "--mixers", "stages.9.mixer")
    assert "stages.9.mixer: no mixer of this network; it has stages.0.blocks.0.mixer" in message
    assert "size" in refusal(*attention[:-1], 0)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    assert "is not a readable image" in refusal("visualize", "attention", config, "--image", text, "--out", "x.png")


def test_visualize_interpreter(run, refusal, config, picture, tmp_path):
    """Of an image that is no whole number of patches; another threshold leaves other patches."""
    options = dict(dim=16, groups=(1, 1), heads=2, interpreter_heads=2, patch_size=8, img_size=32, num_classes=3)
    pictures = []
    for threshold in (0.73, 0.0):  # scores of a new network lie around the first
        own = tmp_path / "own.py"
        own.write_text(f"model = dict(backbone=dict(type='IARED2', threshold={threshold}, **{options}))")
        drawn = ["visualize", "interpreter", own, "--image", picture, "--size", 45, "--out"]
        torch.manual_seed(0)
        assert str(tmp_path / "kept.png") in run(*drawn, tmp_path / "kept.png", "--overwrite")
        pictures.append(cv2.imread(str(tmp_path / "kept.png")))
    assert pictures[0].std() > 20
    assert (pictures[0] != pictures[1]).any()
    drawn[2] = config
    assert "and must be IARED2" in refusal(*drawn, tmp_path / "x.png")


@pytest.mark.parametrize("pruned", [pytest.param(False, marks=pytest.mark.slow), True])
def test_visualize_tree(run, refusal, config, picture, tmp_path, pruned):
    """Of the whole image or of what pruning leaves; with another rule it is another tree."""
    options = dict(dim=16, depth=2, heads=2, patch_size=8, img_size=32, num_classes=3)
    options |= dict(prune_blocks=(0,), prune_ratio=0.5) if pruned else {}
    own = tmp_path / "own.py"
    own.write_text(f"model = dict(type='ImageClassifier', backbone=dict(type='DependencyViT', **{options}))")
    drawn = ["visualize", "tree", own, "--image", picture, "--size", 40, "--out"]
    pictures = []
    for more in ((), ("--block", 0)):
        torch.manual_seed(0)
        assert str(tmp_path / "tree.png") in run(*drawn, tmp_path / "tree.png", "--overwrite", *more)
        pictures.append(cv2.imread(str(tmp_path / "tree.png")))
    assert pictures[0].std() > 20
    assert not np.array_equal(*pictures)  # which may differ in size: labels have no fixed height
    run(*drawn, tmp_path / "tree.png", "--overwrite", "--method", "argmax")
    assert "block=2: there are 2 blocks" in refusal(*drawn, tmp_path / "x.png", "--block", 2)
    drawn[2] = config
    assert "and must be DependencyViT" in refusal(*drawn, tmp_path / "x.png")


def test_visualize_prompts(run, refusal, config, picture, tmp_path):
    """Of one image, or with the shares over a folder; of another block they are others."""
    own, out = tmp_path / "own.py", tmp_path / "out" / "prompts.png"
    options = dict(dim=16, depth=2, heads=2, patch_size=8, img_size=32, num_classes=3)
    own.write_text(f"model = dict(backbone=dict(type='TCPA', **{options}))")
    drawn = ["visualize", "prompts", own, "--image", picture, "--size", 40, "--out"]
    pictures = []
    for more in ((), ("--block", 0), ("--folder", tmp_path)):
        torch.manual_seed(0)
        assert str(out) in run(*drawn, out, "--overwrite", *more)
        pictures.append(cv2.imread(str(out)))
    assert pictures[0].std() > 20
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[0] != pictures[2]).any()
    (tmp_path / "empty").mkdir()
    assert "no images are in it" in refusal(*drawn, tmp_path / "x.png", "--folder", tmp_path / "empty")
    assert "block=2: there are 2 blocks" in refusal(*drawn, tmp_path / "x.png", "--block", 2)
    drawn[2] = config
    assert "and must be TCPA" in refusal(*drawn, tmp_path / "x.png")


def test_visualize_registers(run, refusal, config, picture, tmp_path):
    out = tmp_path / "registers.png"
    registers = ["visualize", "registers", config, config, "--image", picture, "--out", out, "--size", 64, "--views", 2]
    assert str(out) in run(*registers)
    assert cv2.imread(str(out)).std() > 20
    assert "1 files for 2 networks" in refusal(*registers, "--overwrite", "--weights", picture)
    assert "shift=2.0 must be a share" in refusal(*registers, "--overwrite", "--shift", 2)


def test_a_row_for_every_kind_of_mixer_and_as_many_columns_as_maps():
    network = backbones.davit.DaViT(dims=(8, 8, 8, 8), depths=(1, 2, 1, 1), heads=(2, 2, 2, 2))
    looks = viewer.look(network.eval(), torch.zeros(1, 3, 64, 64), (0.5, 0.5))
    assert [seen.name for seen in looks[2:4]] == ["stages.1.blocks.2.mixer", "stages.1.blocks.3.mixer"]
    assert [seen.kind for seen in looks] == ["head", "influence"] * 4
    assert [len(seen.maps) for seen in looks] == [2, 1] * 4
    pixels = np.zeros((64, 64, 3), np.uint8)
    assert len(viewer.draw(pixels, looks).axes) == len(looks) * 5  # the image, the mean, two heads, the scale
    assert len(viewer.draw(pixels, looks[1::2]).axes) == 4 * 3


def test_maps_of_a_row_have_one_scale_and_a_cross_where_it_was_asked_for():
    maps = np.ones((9, 4, 4), np.float32)
    maps[1] = np.linspace(0, 2, 16).reshape(4, 4)
    maps[2, 0, 0] = 17
    seen = viewer.Look("mixer", "Attention", maps, (0.3, 0.9), "head")
    canvas = viewer.draw(np.full((50, 100, 3), 90, np.uint8), [seen], "random weights")
    assert canvas.get_suptitle() == "random weights"
    *row, bar = canvas.axes
    assert [axes.get_title() for axes in row] == [
        "mixer\nAttention, 4 x 4\n9 heads, 5 left out",
        "mean of 9",
        "head 0",
        "head 1",
        "head 2",
        "head 3",
    ]
    assert bar.get_ylim() == pytest.approx((0, 17 / maps.mean()))
    assert bar.get_ylabel() == "times the mean"
    even, rising, peak = (np.asarray(row[i].images[0].get_array()).astype(int).sum(-1) for i in (2, 3, 4))
    assert np.ptp(even) <= 6  # the rounding of colors
    assert rising.max() < peak.max()
    assert peak.argmax() == 0
    for axes in row:
        assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines] == [pytest.approx((89.5, 14.5))] * 2


@pytest.mark.parametrize(
    ("mixer", "kind"),
    [("GnConv", "gate"), ("ContMix", "kernel"), ("LSConv", "kernel"), ("ATConv", "kernel"), ("RALA", "head")],
)
def test_maps_are_called_what_they_are(mixer, kind):
    network = torch.nn.Sequential(MIXERS.build(dict(type=mixer, dim=32))).eval()
    (seen,) = viewer.look(network, torch.randn(1, 32, 14, 14), (0.31, 0.72))
    assert (seen.kind, seen.place) == (kind, (0.31, 0.72))


# --- atlas -----------------------------------------------------------------------------------------------------------


def test_exponent_is_of_the_three_largest_maps(load):
    rows = [dict(side=side, seconds=1e-6 * side**3, bytes=7.0 * side**4) for side in (14, 28, 56)]
    rows.insert(0, dict(side=7, seconds=9.0, bytes=1.0))
    exponent = load("atlas").exponent
    assert exponent(rows, "seconds") == pytest.approx(1.5)
    assert exponent(rows, "bytes") == pytest.approx(2)


def test_measure_mixer(load, monkeypatch):
    atlas = load("atlas")
    monkeypatch.setattr(atlas, "SIDES", (4, 8, 16))
    monkeypatch.setattr(atlas, "DIM", 16)
    found = atlas.measure_mixer("GnConv")
    assert [row["side"] for row in found["rows"]] == [4, 8, 16]
    assert found["params"] == sum(p.numel() for p in backbones.hornet.GnConv(16).parameters())
    assert 0.7 < found["memory"] < 1.1  # linear, but for the gradients of the weights
    assert found["rows"][0]["bytes"] >= 2 * 16 * 16 * 4  # the output and the gradient of the input
    assert all(row["seconds"] > 0 for row in found["rows"])


def test_atlas_lists_fifty_systems_and_how_to_see_them(load):
    atlas = load("atlas")
    rows = list(csv.DictReader(atlas.LISTED.open()))
    assert len({row["system"] for row in rows}) == len(rows) == 50
    for row in rows:
        assert (ROOT / row["file"]).exists(), row
        named = [ROOT / word for word in row["command"].split() if word.startswith(("configs/", "tools/"))]
        assert named or row["command"] == "make demo"
        for path in named:
            assert path.exists(), row
        assert row["result"] or named[-1].with_suffix(".json").exists(), row
    hosts = {"alexnet", "fan", "mobilenet_v2", "resnet", "rvt", "vgg", "vit"}  # of what others published
    files = {system.__module__.rpartition(".")[2] for system in backbones.systems().values()}
    assert files - hosts <= {Path(row["file"]).stem for row in rows}


def test_atlas_writes_its_page(load, monkeypatch, capsys, tiny, tmp_path):
    atlas = load("atlas")
    system = backbones.systems()["HorNet"]
    monkeypatch.setattr(system, "variants", {"hornet_grain": system.variants["hornet_grain"]})
    monkeypatch.setattr(atlas.backbones, "systems", lambda: {"HorNet": system})
    monkeypatch.setattr(atlas, "ROOT", tmp_path)
    monkeypatch.setattr(atlas, "PAGE", tmp_path / "docs" / "atlas.md")
    monkeypatch.setattr(atlas, "MEASURED", tmp_path / "docs" / "mixers.json")
    monkeypatch.setattr(atlas, "LISTED", tmp_path / "systems.csv")
    train = "python tools/train.py configs/hornet/strong.py"
    rows = "system,file,command,result", f"HorNet,a.py,{train},", 'ELA,b.py,python tools/infer.py,"AP 1, not 2"'
    (tmp_path / "systems.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(atlas, "SIDES", (4, 8, 16))
    monkeypatch.setattr(sys, "argv", ["atlas.py", "mixers", "GnConv"])
    atlas.main()
    result = dict(mAcc=60.0, epochs=3, side=64, params=1_000, macs=2e6, milliseconds=1.5, machine="a machine")
    result |= dict(batch=8, step_milliseconds=50, peak_mib=99)
    (tmp_path / "configs" / "hornet").mkdir(parents=True)
    for name, top1 in (("weak", 50.0), ("strong", 71.3)):
        atlas.save(tmp_path / "configs" / "hornet" / f"{name}.json", {**result, "top1": top1})
    atlas.save(tmp_path / "configs" / "hornet" / "other.json", {"loss": 1})
    for name, scope in (("upernet", "mmseg"), ("fast", "mmdet"), ("slow", "mmdet"), ("other", "attlas")):
        for extra in ("", "_wide") if name == "slow" else ("",):
            path = tmp_path / "configs" / name / f"{name}_hornet{extra}_coco.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"default_scope = {scope!r}")
    monkeypatch.setattr(sys, "argv", ["atlas.py", "write"])
    atlas.main()
    page = (tmp_path / "docs" / "atlas.md").read_text()
    assert f"| HorNet | [a.py](../a.py) | `{train}` | 71.3 % top-1 in 3 epochs |\n" in page
    assert "| ELA | [b.py](../b.py) | `python tools/infer.py` | AP 1, not 2 |\n" in page
    assert "### HorNet\n\nRecursive gated convolutions. " in page
    links = (
        f"[{name}{extra}_coco](../configs/{name}/{name}_hornet{extra}_coco.py)"
        for name, extra in (("fast", ""), ("slow", ""), ("slow", "_wide"), ("upernet", ""))
    )
    assert "| HorNet | {}, {}, {} | {} |\n".format(*links) in page
    assert f"| `hornet_grain` | HorNet | {PARAMS:,} | 224 |  | 0.0" in page
    several = dataclasses.replace(system.variants["hornet_grain"], gflops={224: 0.04, 896: 1.0}, top1=60.5)
    *_, published, counted, top1, weights = atlas.row_of("hornet_grain", "HorNet", several).split(" | ")
    assert published == "0.04, 1 at 896"
    at_224, at_896 = counted.removesuffix(" at 896").split(", ")
    assert 10 < float(at_896) / float(at_224) < 22  # of the pixels: 16
    assert (top1, weights) == ("60.5", " |")
    measured = json.loads((tmp_path / "docs" / "mixers.json").read_text())["mixers"]["GnConv"]
    assert f"| `GnConv` | {measured['params']:,} | " in page
    assert "| `ELA` | Efficient local attention | 576, 2,304, 9,216 |" in page
    # 180 channels are no multiple of 16
    (row,) = (line for line in page.splitlines() if line.startswith("| `GnConv` |"))
    assert row.endswith(" | `hat_s` |")
    assert "\n- GnConv: dim=180 must be divisible by 2^(order-1) = 16\n" in page
    assert atlas.restores("WindowAttention") == (["hat_s", "hat", "hat_l"], "")
    assert math.isfinite(measured["time"])
    assert page.index("[strong](../configs/hornet/strong.py) | 71.3 | 60.0 | 1,000 | 2.0 |") < page.index("[weak]")
    assert "other.py" not in page
    for line in page.splitlines():  # rows have as many cells as their headers
        if not line.startswith("|"):
            columns = 0
        columns = columns or line.count("|")
        assert line.count("|") == columns
    monkeypatch.setattr(sys, "argv", ["atlas.py", "mixers", "GnKonv"])
    with pytest.raises(SystemExit, match="2"):
        atlas.main()
    assert "GnConv" in capsys.readouterr().err
    (tmp_path / "docs" / "mixers.json").unlink()
    monkeypatch.setattr(sys, "argv", ["atlas.py", "write"])
    with pytest.raises(SystemExit, match="2"):
        atlas.main()
    assert "atlas.py mixers" in capsys.readouterr().err


def test_the_atlas_has_every_config(load):
    """The page is up to date with the configs, and no backbone is without one of each task."""
    section = load("atlas").tasks_section()
    assert "\n".join(section) in (ROOT / "docs" / "atlas.md").read_text()
    rows = [line.split("|")[1:-1] for line in section if line.startswith("| ")][1:]
    explained = 2  # AlexNet and VGG, hosts of explanations
    assert len(rows) == len({network.__module__ for network in backbones.systems().values()}) - explained
    assert all("](" in cell for _, *cells in rows for cell in cells)
    assert all((ROOT / "docs" / link).exists() for line in section for link in re.findall(r"\((\.\./\S+)\)", line))


def test_room_clouds_need_their_packages(refusal, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "attlas.dense.room_clouds", None)
    said = refusal("make_room_clouds", tmp_path / "clouds")
    assert said.splitlines()[-1].startswith("make_room_clouds.py: error: import of attlas.dense.room_clouds")


def test_atlas_leaves_measured_trainings_alone(run, tmp_path):
    config = tmp_path / "done.py"
    config.with_suffix(".json").write_text("{}")
    assert "done.json exists" in run("atlas", "train", config)
