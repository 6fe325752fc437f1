"""Segmentors as `tools/export.py` writes them, against mmseg's predictions."""

import json
import sys
from pathlib import Path

import cv2
import export as tool
import numpy as np
import onnxruntime
import pytest
import torch
from mmengine.config import ConfigDict
from mmseg.models import EncoderDecoder
from mmseg.models.decode_heads import Mask2FormerHead
from torch import nn
from torch.testing import assert_close

from attlas.backbones.channels import fill_channels
from attlas.config import load_config
from attlas.data import fill_classes
from attlas.dense.segmentation.export import ExportedSegmentor, averaged
from attlas.dense.segmentation.inference import Segmentation, label_map
from attlas.dense.segmentation.scores import probabilities
from attlas.images import read_image
from attlas.inference import Inferencer
from attlas.registry import MODELS

CONFIGS = Path(__file__).parents[3] / "configs"
NAMES = tuple("abcde")
GUIDED = dict(
    type="EncoderDecoder",
    backbone=dict(type="attlas.NamedBackbone", name="davit_tiny", depths=(1, 1, 1, 1), out_indices=None),
    decode_head=dict(type="attlas.GuidedAttentionHead", in_channels="auto", channels=8, num_classes=5),
    test_cfg=dict(mode="whole"),
)
UPERNET = dict(channels=16)


def built(model):
    """The model of a config as `attlas.load` gives it, with scores that differ from pixel to pixel."""
    fill_channels(model)
    fill_classes(model, lambda: len(NAMES))
    model = MODELS.build(model).eval()
    for module in model.decode_head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if hasattr(module, "gamma"):
            nn.init.constant_(module.gamma, 0.5)
    if model.backbone.__class__.__name__ != "ResNet":
        with torch.no_grad():
            logits = model.encode_decode(torch.randn(2, 3, 128, 128), [dict(img_shape=(128, 128))])
            head = model.decode_head
            for last in head.predict_second if hasattr(head, "predict_second") else [head.conv_seg]:
                last.bias -= logits.mean((0, 2, 3))  # no class wins everywhere
    model.classes = NAMES
    return model


def of_config(name, backbone=None, **head):
    model = load_config(CONFIGS / f"{name}.py", dict(pretrained="None")).model
    model.decode_head.update(head)
    if backbone:
        model.backbone = backbone
        model.pop("auxiliary_head")
    return built(model)


def check(model, images, outputs, share=1e-3):
    """The outputs are what the model predicts; classes that are nearly equal may change places."""
    with torch.no_grad():
        found = model.predict(images)
    for sample, labels, given in zip(found, *outputs):
        truth, logits = sample.pred_sem_seg.data[0].long(), sample.seg_logits.data
        assert labels.unique().numel() > 1
        assert (labels != truth).double().mean() <= share
        sure = logits.softmax(0).amax(0) if len(logits) > 1 else torch.where(truth > 0, logits[0], 1 - logits[0])
        assert_close(given, sure, rtol=1e-3, atol=1e-4)


LSNET = dict(type="attlas.NamedBackbone", name="lsnet_t", depths=(1, 1, 1, 1), out_indices=None)


@pytest.mark.parametrize(
    "make",
    [
        lambda: of_config("semantic_fpn/semantic_fpn_lsnet_rooms"),
        lambda: of_config("upernet/upernet_biformer_rooms", channels=16),
        lambda: of_config("semantic_fpn/semantic_fpn_lsnet_rooms", num_classes=2, out_channels=1, threshold=0.5),
        lambda: built(ConfigDict(GUIDED)),
    ],
    ids=["semantic_fpn", "upernet", "one_channel", "guided"],
)
def test_it_gives_what_is_predicted(make):
    model, images = make(), torch.randn(2, 3, 128, 64)
    with torch.no_grad():
        outputs = ExportedSegmentor(model, []).eval()(images)
    assert [x.dtype for x in outputs] == [torch.int64, torch.float32]
    check(model, images, outputs, share=0)


def test_pooling_by_matrices():
    """Of maps that are no multiple of the pooled side, and smaller than it."""
    for size in ((7, 9), (12, 16), (2, 3), (1, 5)):
        x = torch.randn(2, 3, *size)
        for count in (1, 2, 3, 6):
            assert_close(averaged(count, x), nn.functional.adaptive_avg_pool2d(x, count))


def test_what_a_user_must_know():
    model = of_config("semantic_fpn/semantic_fpn_lsnet_rooms")
    steps = [dict(type="Resize", scale=(100, 60), keep_ratio=True)]
    network = Segmentation().exportable(model, steps)
    assert network.about["layout"].startswith("RGB, (image - mean) / std")
    assert network.about["mean"] == "123.675,116.28,103.53"
    assert json.loads(network.about["classes"]) == [*NAMES]
    assert network.inputs(2, None)[0].shape == (2, 3, 64, 128)  # filled up to whole strides
    assert network.inputs(1, [40, 50])[0].shape == (1, 3, 40, 50)
    assert ExportedSegmentor(model, []).inputs(1, None)[0].shape == (1, 3, 512, 512)
    model.test_cfg.update(mode="slide", crop_size=(96, 128), stride=(64, 64))
    assert network.inputs(1, None)[0].shape == (1, 3, 96, 128)  # a window
    gray = load_config(CONFIGS / "guided_attention/guided_attention_x101_chaos.py").model
    gray.backbone = dict(type="ResNet", depth=18, base_channels=8, in_channels=1)
    gray.decode_head.update(in_channels=[8, 16, 32, 64], channels=8)
    network = ExportedSegmentor(built(gray), [])
    assert network.about["layout"].startswith("gray")
    assert (network.about["mean"], network.about["std"]) == ("0", "255")
    assert network.inputs(1, [64, 64])[0].shape == (1, 1, 64, 64)
    with pytest.raises(ValueError, match=r"DAFStack needs a fixed height in \.pt2: the head checks that its maps"):
        tool.free_sizes(network, "height", ".pt2")


def mask2former_head():
    """One without weights."""
    head = Mask2FormerHead.__new__(Mask2FormerHead)
    nn.Module.__init__(head)
    return head


def test_scores_of_masks_are_no_logits():
    """Two queries, sure of a class each, over a pixel of the one and one of both."""
    scores = torch.tensor([[[1.0, 0.5]], [[0.0, 1.0]]])
    found = probabilities(scores, mask2former_head())
    assert_close(found, torch.tensor([[[1.0, 1 / 3]], [[0.0, 2 / 3]]]))
    assert_close(probabilities(scores, nn.Conv2d(1, 1, 1)), scores.softmax(0))
    assert probabilities(torch.zeros_like(scores), mask2former_head()).isfinite().all()
    assert_close(probabilities(scores[:1], nn.Conv2d(1, 1, 1)), scores[:1])


def test_difference():
    network = ExportedSegmentor(of_config("semantic_fpn/semantic_fpn_lsnet_rooms"), [])
    labels, probabilities = torch.zeros(1, 10, 10, dtype=torch.int64), torch.linspace(0.5, 0.6, 100).view(1, 10, 10)
    other = labels.clone()
    other[0, 0, :3] = 1
    assert network.difference((labels, probabilities), (labels, probabilities)) == 0
    assert network.difference((other, probabilities), (labels, probabilities)) == pytest.approx(0.03)
    # of the range that there is: an untrained network's classes are nearly equal
    assert network.difference((labels, probabilities + 0.002), (labels, probabilities)) == pytest.approx(0.02, rel=1e-3)
    assert not network.difference((labels, probabilities * torch.nan), (labels, probabilities)) < 1


def test_others_are_refused():
    with pytest.raises(ValueError, match="a Linear cannot be exported whole: only mmseg's EncoderDecoder can"):
        ExportedSegmentor(nn.Linear(1, 1), [])
    model = EncoderDecoder.__new__(EncoderDecoder)
    nn.Module.__init__(model)
    model.decode_head = mask2former_head()
    with pytest.raises(ValueError, match=r"a Mask2FormerHead cannot be exported\. --dense exports its backbone"):
        ExportedSegmentor(model, [])


# --- files -----------------------------------------------------------------------------------------------------------


def runner(path):
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: tuple(map(torch.from_numpy, session.run(None, {"image": image.numpy()})))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head", "suffix"),
    [
        ("semantic_fpn/semantic_fpn_lsnet_rooms", {}, ".onnx"),
        ("semantic_fpn/semantic_fpn_lsnet_rooms", {}, ".pt2"),
        ("upernet/upernet_lsnet_ade20k", UPERNET, ".onnx"),
    ],
)
def test_images_of_any_size(name, head, suffix, tmp_path):
    """Semantic FPN enlarges maps, and UperNet pools them, in the size that an image has."""
    model, out = of_config(name, LSNET, **head), tmp_path / f"x{suffix}"
    network = ExportedSegmentor(model, []).eval()
    difference, metadata, _ = tool.export(network, *network.inputs(2, [96, 128]), out=out, free=list(tool.SIZES))
    assert difference < 1e-4
    assert (metadata["input"], metadata["outputs"]) == ("batch,3,height,width", "labels,probabilities")
    run = runner(out)
    for shape in ((2, 3, 96, 128), (3, 3, 75, 201)):
        images = torch.randn(shape)
        check(model, images, run(images))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "suffix"),
    [
        (lambda: built(ConfigDict(GUIDED)), ".pt2"),
        (lambda: of_config("upernet/upernet_biformer_rooms", channels=16), ".onnx"),
    ],
    ids=["guided", "biformer"],
)
def test_batches_of_one_size(make, suffix, tmp_path):
    model, out = make(), tmp_path / f"x{suffix}"
    network = ExportedSegmentor(model, []).eval()
    free, told = tool.free_sizes(network, None, suffix)
    difference, metadata, _ = tool.export(network, *network.inputs(1, [64, 128]), out=out, free=free)
    assert (free, told, metadata["input"]) == (["batch"], "", "batch,3,64,128")
    assert difference < 1e-3
    for count in (1, 3):
        images = torch.randn(count, 3, 64, 128)
        check(model, images, runner(out)(images))


@pytest.mark.slow
def test_a_checkpoint_alone(checkpoint, photos, tmp_path, monkeypatch, capsys):
    """From the file of a training to ONNX, and from an image to the same map as `Inferencer` gives."""
    out = tmp_path / "rooms.onnx"
    monkeypatch.setattr(sys, "argv", ["export.py", str(checkpoint), str(out), "--size", "48", "64"])
    tool.main()
    assert "gives labels, probabilities; differs from the network by" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    mean, std = (np.array(about[name].split(","), np.float32) for name in ("mean", "std"))
    path = str(photos / "0.png")
    image = (read_image(path) - mean) / std
    labels, _ = session.run(None, {"image": image.transpose(2, 0, 1)[None].astype(np.float32)})
    (result,) = Inferencer(checkpoint, device="cpu")(path)
    assert (label_map(result) != labels[0]).mean() < 1e-3
    assert cv2.imread(path).shape[:2] == labels[0].shape
