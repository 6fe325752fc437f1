"""Detectors as `tools/export.py` writes them: their decoding in fixed shapes against mmdet's."""

import json

import export as tool
import onnxruntime
import pytest
import small_detectors as detectors
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch.testing import assert_close

from attlas.backbones.channels import fill_channels
from attlas.config import load_config
from attlas.dense.detection.export import exportable
from attlas.dense.detection.inference import Detection


def named(model):
    """The model as `attlas.load` gives it."""
    model.classes = tuple(f"class {i}" for i in range(5))
    return model.eval()


def dense(head, **test):
    return named(detectors.dense(head, **test))


def predictions(model, images):
    size = tuple(images.shape[2:])
    samples = [DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=size)) for _ in images]
    with torch.no_grad():
        return [sample.pred_instances for sample in model.predict(images, samples, rescale=False)]


def check(model, images, outputs, least=1, order=True):
    """The outputs are the predictions and nothing behind them; in their order, unless nearly equal scores may change
    places because another library rounds."""
    boxes, scores, labels = outputs
    for number, found in enumerate(predictions(model, images)):
        count = len(found.scores)
        assert count >= least
        assert_close(scores[number, :count], found.scores, rtol=1e-4, atol=1e-5)
        if order:
            assert_close(boxes[number, :count], found.bboxes, rtol=1e-4, atol=1e-2)
            assert torch.equal(labels[number, :count], found.labels)
        else:
            expected = tuple(x.unsqueeze(0) for x in (found.bboxes, found.scores, found.labels))
            assert exportable(model, []).difference([x[number, :count].unsqueeze(0) for x in outputs], expected) < 1e-4
        assert scores[number, count:].eq(0).all()
        assert labels[number, count:].eq(-1).all()
        assert boxes[number, count:].eq(0).all()


def suppressed(model, images):
    """How many of the boxes that could be shown NMS removes."""
    with_nms = len(predictions(model, images)[0].scores)
    nms, model.bbox_head.test_cfg.nms = model.bbox_head.test_cfg.nms, None
    without = len(predictions(model, images)[0].scores)
    model.bbox_head.test_cfg.nms = nms
    return without - with_nms


@pytest.mark.parametrize("head", detectors.HEADS)
def test_dense_heads(head):
    model = dense(head, max_per_img=10_000)
    images = torch.randn(2, 3, 88, 104)
    with torch.no_grad():
        check(model, images, exportable(model, [])(images), least=5)
    assert suppressed(model, images) > 20


@pytest.mark.parametrize(
    "test",
    [
        dict(nms=dict(type="nms", iou_threshold=0.3, class_agnostic=True)),
        dict(nms_pre=20, min_bbox_size=24, max_per_img=7),
        dict(score_thr=0.999),
    ],
)
def test_settings_of_tests(test):
    model = dense("retina", **test)
    images = torch.randn(2, 3, 88, 104)
    with torch.no_grad():
        check(model, images, exportable(model, [])(images), least=0)


OURS = "position_relation", "scale_queries"


def dino():
    options = detectors.settings()
    head = dict(type="DINOHead", num_classes=5, embed_dims=32, loss_cls=dict(type="FocalLoss", use_sigmoid=True))
    options |= dict(type="DINO", bbox_head=head)
    for part, name in ((options, "num_hybrid_queries"), *((options["decoder"], x) for x in OURS)):
        del part[name]
    model = named(detectors.build(options))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2 if p.ndim < 2 else p[0].numel() ** -0.5)
    return model


def relation():
    model = detectors.detector().eval()
    model.classes = ()
    return model


@pytest.mark.parametrize("make", [relation, dino])
def test_detrs(make):
    model, images = make(), torch.randn(2, 3, 72, 104)
    expected = predictions(model, images)
    network = exportable(model, [])
    with torch.no_grad():
        boxes, scores, labels = network(images)
    for number, found in enumerate(expected):  # before mmcv's attention was replaced by ours
        assert len(found.scores) == 10
        assert_close(scores[number], found.scores, rtol=1e-4, atol=1e-5)
        assert_close(boxes[number], found.bboxes, rtol=1e-4, atol=1e-2)
        assert torch.equal(labels[number], found.labels)
    assert {"height", "width"} <= network.fixed_sizes[".onnx"].keys()
    assert ("classes" in network.about) == bool(model.classes)


def test_what_a_user_must_know():
    network = Detection().exportable(dense("retina"), [dict(type="mmdet.Resize", scale=(100, 60), keep_ratio=True)])
    assert network.about["layout"].startswith("BGR, (image - mean) / std")
    assert (network.about["mean"], network.about["std"]) == ("1,2,3", "4,5,6")
    assert json.loads(network.about["classes"])[4] == "class 4"
    assert network.inputs(2, None)[0].shape == (2, 3, 64, 128)  # filled up to whole strides
    assert network.inputs(1, [40, 50])[0].shape == (1, 3, 40, 50)
    assert exportable(dense("retina"), []).inputs(1, None)[0].shape == (1, 3, 800, 1344)


def test_difference():
    """Order does not count, an object without a counterpart does by its score."""
    network = exportable(dense("retina"), [])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 5, 50, 100], [1, 1, 2, 2], [0, 0, 0, 0]]])
    found = boxes, torch.tensor([[0.9, 0.8, 0.004, 0.0]]), torch.tensor([[1, 0, 1, -1]])
    assert network.difference(found, found) == 0
    swapped = tuple(x[:, [1, 0, 2, 3]] for x in found)
    assert network.difference(swapped, found) == 0
    without = tuple(x[:, [0, 1, 3]] for x in found)
    assert network.difference(without, found) == network.difference(found, without) == pytest.approx(0.004)
    moved = boxes + torch.tensor([[[0.0], [10], [0], [0]]]), *found[1:]
    assert network.difference(moved, found) == pytest.approx(0.1)
    assert network.difference((boxes, found[1], found[2].clamp(max=0)), found) == pytest.approx(0.9)
    broken = boxes, found[1] * torch.tensor([1, torch.nan, 1, 1]), found[2]
    assert not network.difference(broken, found) < 1
    assert network.remark(found) == ""
    assert "finds nothing" in network.remark((boxes, torch.zeros(1, 4), found[2]))


def test_refusals():
    for test, message in [
        (dict(nms=dict(type="soft_nms", iou_threshold=0.3)), "nms must be of type nms .* got .*soft_nms"),
        (dict(nms=dict(type="nms", iou_threshold=0.3, max_num=3)), "nms must be of type nms .* got .*max_num"),
        (dict(nms_pre=-1), "test_cfg.nms_pre must be positive to export, got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            exportable(dense("retina", **test), [])
    gfl = dict(
        type="GFLHead",
        anchor_generator=detectors.ONE_ANCHOR,
        loss_dfl=dict(type="DistributionFocalLoss"),
        reg_max=4,
        norm_cfg=None,
    )
    with pytest.raises(ValueError, match="a GFLHead decodes its predictions in a way of its own"):
        exportable(dense(gfl), [])
    config = load_config("configs/mask_rcnn/mask_rcnn_shvit_coco.py", {"pretrained": None})
    fill_channels(config.model)
    config.model.roi_head.bbox_head.num_classes = config.model.roi_head.mask_head.num_classes = 3
    with pytest.raises(ValueError, match="a MaskRCNN cannot be exported whole: detectors of a single stage"):
        exportable(named(detectors.build(config.model)), [])


# --- files -----------------------------------------------------------------------------------------------------------


def of_onnx(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: tuple(map(torch.from_numpy, session.run(None, {"image": image.numpy()})))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_retinanet_of_any_size(suffix, tmp_path):
    """NMS is in the file."""
    model, out = dense("retina", max_per_img=1000), tmp_path / f"network{suffix}"
    network = exportable(model, []).eval()
    _, metadata, _ = tool.export(network, torch.randn(2, 3, 88, 104), out=out, free=list(tool.SIZES))
    assert (metadata["input"], metadata["outputs"]) == ("batch,3,height,width", "boxes,scores,labels")
    assert metadata["imports"] == ("attlas.kernels" if suffix == ".pt2" else "")
    run = of_onnx(out) if suffix == ".onnx" else torch.export.load(out).module()
    for shape in ((2, 3, 88, 104), (3, 3, 97, 131)):
        images = torch.randn(shape)
        check(model, images, run(images), least=5, order=False)
        assert suppressed(model, images) > 20


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fcos_on_size", "bvr"])
def test_other_heads(head, tmp_path):
    model, images = dense(head), torch.randn(2, 3, 88, 104)
    tool.export(exportable(model, []).eval(), images, out=tmp_path / "x.onnx", free=["batch"])
    check(model, images, of_onnx(tmp_path / "x.onnx")(images), least=5, order=False)


@pytest.mark.slow
@pytest.mark.parametrize("make", [relation, dino])
def test_detrs_in_onnx(make, tmp_path):
    """Relation-DETR for any batch, DINO for that of the trace."""
    model, images = make(), torch.randn(2, 3, 72, 104)
    network = exportable(model, []).eval()
    free, _ = tool.free_sizes(network, None, ".onnx")
    assert free == (["batch"] if make is relation else [])
    difference, metadata, _ = tool.export(network, images, out=tmp_path / "x.onnx", free=free)
    assert difference < 1e-4
    assert metadata["input"] == ("batch,3,72,104" if free else "2,3,72,104")
    for batch in (images, images[:1]) if free else (images,):
        check(model, batch, of_onnx(tmp_path / "x.onnx")(batch), least=10, order=False)
    with pytest.raises(ValueError, match=r"(RelationDETR|DINO) needs a fixed height in \.onnx: the sizes of the maps"):
        tool.free_sizes(network, "height", ".onnx")


@pytest.mark.slow
def test_a_mixer_in_the_encoder(tmp_path):
    options = detectors.settings()
    options["encoder"]["layer_cfg"]["self_attn_cfg"] = None
    options["encoder"]["mixer"] = "LSConv"
    model, images, out = named(detectors.build(options)), torch.randn(2, 3, 72, 104), tmp_path / "x.pt2"
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2 if p.ndim < 2 else p[0].numel() ** -0.5)
    tool.export(exportable(model, []).eval(), images, out=out, free=[])
    check(model, images, torch.export.load(out).module()(images), least=10, order=False)


@pytest.mark.slow
def test_the_network_of_the_rooms(tmp_path):
    config = load_config("configs/retinanet/retinanet_biformer_rooms.py")
    fill_channels(config.model)
    model, images = named(detectors.build(config.model)), torch.randn(2, 3, 112, 144)
    torch.nn.init.normal_(model.bbox_head.retina_cls.weight, std=0.008)
    torch.nn.init.normal_(model.bbox_head.retina_reg.weight, std=0.02)
    tool.export(exportable(model, []).eval(), images, out=tmp_path / "x.onnx", free=["batch"])
    check(model, images, of_onnx(tmp_path / "x.onnx")(images), least=20, order=False)


# --- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_graph_from_an_image_to_boxes():
    """Decoding and NMS included."""
    model, images = detectors.dense("retina"), torch.randn(2, 3, 72, 104)
    model.classes = ()
    network = exportable(model, []).eval()
    with torch.no_grad(), torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(network, fullgraph=True, backend="eager")
        expected = network(images)
        assert (expected[1] > 0).sum() > 10
        assert network.difference(compiled(images), expected) < 1e-5


MAKE = dict(retina=lambda: detectors.dense("retina"), relation=detectors.detector)


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_breaks_of_a_loss(make):
    """They are at lines of mmdet: assigners, and sizes of maps that are held in tensors."""
    model, images, size = make().train(), torch.randn(2, 3, 64, 64), (64, 64)
    samples = []
    for _ in images:
        objects = InstanceData(bboxes=torch.tensor([[4.0, 5, 30, 40], [20, 8, 60, 50]]), labels=torch.tensor([0, 3]))
        sample = DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=size, pad_shape=size))
        sample.gt_instances, sample.ignored_instances = objects, InstanceData(bboxes=torch.zeros(0, 4))
        samples.append(sample)
    found = torch._dynamo.explain(model.loss)(images, samples)
    assert found.graph_count > 1
    where = [str(frame.filename) for reason in found.break_reasons for frame in reason.user_stack[-1:]]
    assert where
    assert not [name for name in where if "kernels" in name]
