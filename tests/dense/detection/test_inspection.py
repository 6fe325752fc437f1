"""What is read out of a detector is what it computes with."""

import detectors
import numpy as np
import pytest
import torch
from coco_files import write_coco

from attlas.browsing import config_dataset
from attlas.config import load_config
from attlas.dense.detection import inspection

FOCAL = dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_coco(folder, images=3)
    return folder


def asked(config, folder):
    return inspection.detector(detectors.write(folder / "random.pth", config), config)


# --- subjects --------------------------------------------------------------------------------------------------------


def test_subjects(data):
    dataset = config_dataset(detectors.read("tiny_detector", data), "test")
    seen = inspection.subject(dataset, 2)
    assert (seen.name, seen.image.shape, len(seen.truth)) == ("2: 2.png", (64, 96, 3), 2)
    for entry in seen.truth:
        rows, columns = np.nonzero(entry["mask"])  # the polygons of the file
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(entry["box"], box, atol=1.1)
        green = seen.image[entry["mask"]].mean(0).argmax() == 1
        assert entry["name"] == ("box" if green else "ball")
    info = dataset.get_data_info(2)
    info["instances"][0]["ignore_flag"] = 1
    dataset.get_data_info = lambda item: info
    assert inspection.subject(dataset, 2).truth[0]["name"].endswith(" (crowd)")
    with pytest.raises(ValueError, match="item 3: the data set has items 0 to 2"):
        inspection.subject(dataset, 3)
    alone = inspection.file_subject(data / "images" / "2.png")
    assert alone.truth is None
    np.testing.assert_array_equal(alone.image, seen.image)


def test_how_long_a_checkpoint_was_trained(tmp_path):
    path = tmp_path / "weights.pth"
    for meta, caption in (
        (dict(epoch=4, iter=600), "epoch 4"),
        (dict(epoch=0, iter=6000), "iteration 6,000"),
        ({}, "weights.pth"),
    ):
        torch.save(dict(state_dict={}, meta=meta), path)
        assert inspection.trained(path) == caption


# --- position relation -----------------------------------------------------------------------------------------------


def relation_config(name, data):
    """tiny_relation.py as another detector with a position relation."""
    config = detectors.read("tiny_relation", data)
    model = config.model
    if name != "RelationDETR":
        model.type = f"attlas.{name}"
        del model["num_hybrid_queries"]
        del model.bbox_head["hybrid_repeats"]
        model.bbox_head.update(type=name.replace("Relation", "") + "Head", loss_cls=FOCAL)
    if name == "RelationDeformableDETR":
        model.as_two_stage = False
        model.decoder.pop("scale_queries")
        model.decoder.return_intermediate = True
        del model["dn_cfg"]
    return config


@pytest.mark.parametrize(("name", "first"), [("RelationDETR", 2), ("RelationDINO", 2), ("RelationDeformableDETR", 3)])
def test_the_bias_is_that_of_the_layer(name, first, data, tmp_path):
    """It is the mask that the layer's attention gets, and the relation of the boxes that are given with it."""
    detector = asked(relation_config(name, data), tmp_path)
    decoder = detector.model.decoder
    got = {}
    for number, layer in enumerate(decoder.layers, 1):
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs, number=number: got.update({number: kwargs["attn_mask"]}), with_kwargs=True
        )
    subject = inspection.file_subject(data / "images" / "0.png")
    for layer in range(first, 4):
        seen = inspection.position_relation(detector, subject, layer, query=5)
        assert (seen.layer, seen.layers, seen.query, seen.bias.shape) == (layer, 3, 5, (4, 20))
        assert seen.bias.std() > 0.01
        np.testing.assert_array_equal(seen.bias, got[layer][:, 5].numpy())
        edges = torch.tensor(np.concatenate([seen.box[None], seen.boxes])) / torch.tensor([96, 64, 96, 64])
        boxes = torch.cat([(edges[:, :2] + edges[:, 2:]) / 2, edges[:, 2:] - edges[:, :2]], 1)[None]
        with torch.no_grad():
            again = decoder.position_relation.double()(boxes[:, :1], boxes[:, 1:])[:, 0]
        decoder.position_relation.float()
        np.testing.assert_allclose(seen.bias, again, atol=1e-3)
    best = inspection.position_relation(detector, subject)
    assert (best.layer, best.query) == (3, int(best.scores.argmax()))
    assert best.found[0]["score"] == pytest.approx(float(best.scores.max()), abs=1e-5)
    assert best.found[0]["name"] == best.names[best.query]
    with pytest.raises(ValueError, match=f"layer is 1; of the 3 layers of the decoder, {first} to 3 have"):
        inspection.position_relation(detector, subject, layer=1)
    for query in (-1, 20):
        with pytest.raises(ValueError, match=f"query is {query}; the detector has queries 0 to 19"):
            inspection.position_relation(detector, subject, query=query)
    with pytest.raises(ValueError, match=f"a {name}, has no key points"):
        inspection.key_points(detector, subject)


def test_detectors_without_a_relation_are_refused(data, tmp_path):
    subject = inspection.file_subject(data / "images" / "0.png")
    plain = asked(detectors.read("tiny_detector", data), tmp_path)
    with pytest.raises(ValueError, match="a RetinaNet, has no position relation"):
        inspection.position_relation(plain, subject)
    config = relation_config("RelationDINO", data)
    config.model.decoder.position_relation = None
    with pytest.raises(ValueError, match="a RelationDINO, has no position relation"):
        inspection.position_relation(asked(config, tmp_path), subject)
    config = relation_config("RelationDETR", data)
    config.model.decoder.num_layers = 1
    with pytest.raises(ValueError, match=r"no layer of the decoder has a position relation.* decoder has 1"):
        inspection.position_relation(asked(config, tmp_path), subject)


# --- key points ------------------------------------------------------------------------------------------------------


def bvr_config(name, data):
    config = detectors.read("tiny_bvr", data)
    head = config.model.bbox_head
    if name == "fcos":
        for key in ("anchor_generator", "bbox_coder", "loss_cls", "loss_bbox"):
            head.pop(key, None)
        reach = ((-1, 16), (16, 32), (32, 64), (64, 1e8))
        head.update(type="attlas.BVRFCOSHead", strides=[4, 8, 16, 32], regress_ranges=reach, norm_cfg=None)
        config.model.type = "FCOS"
    if name == "faster_rcnn":
        faster = load_config(detectors.CONFIGS.parents[1] / "configs/bvr/bvr_faster_rcnn_r50_coco.py").model
        faster.backbone = config.model.backbone
        faster.neck.update(in_channels=config.model.neck.in_channels, out_channels=16)
        faster.rpn_head.update(in_channels=16, feat_channels=16)
        faster.roi_head.update(num_classes=2, in_channels=16, bridging=dict(num_heads=4))
        faster.roi_head.keypoint_head = head.keypoint_head
        faster.roi_head.bbox_roi_extractor.out_channels = 16
        faster.roi_head.bbox_head.update(in_channels=16, fc_out_channels=32, num_classes=2)
        config.model = faster
    return config


@pytest.mark.parametrize("name", ["retinanet", "fcos", "faster_rcnn"])
def test_the_query_of_a_detection(name, data, tmp_path):
    """Its score is the detection's; the image is enlarged for the network, and places are told in its own pixels."""
    config = bvr_config(name, data)
    config.test_dataloader.dataset.pipeline[1].scale = (192, 128)
    detector = asked(config, tmp_path)
    model = detector.model
    head = model.roi_head if name == "faster_rcnn" else model.bbox_head
    heard = []
    (model.roi_head.bbox_head if name == "faster_rcnn" else head).register_forward_hook(
        lambda _, inputs, outputs: heard.append(outputs)
    )
    subject = inspection.file_subject(data / "images" / "0.png")
    number = 1
    seen = inspection.key_points(detector, subject, number)
    label, score = seen.detection["label"], seen.detection["score"]
    assert seen.detection == seen.found[number]
    kinds = ["center", "top_left_corner", "bottom_right_corner"]
    assert [(each.use, each.kind) for each in seen.attended] == list(zip(("score", "box", "box"), kinds))
    for each in seen.attended:
        assert each.weights.shape == (4, len(seen.points[each.kind].scores))
        np.testing.assert_allclose(each.weights.sum(1), 1, atol=1e-5)
    if name == "faster_rcnn":
        logits, _ = heard[0]
        (row,) = ((logits.softmax(1)[:, label] - score).abs() < 1e-6).nonzero()[0].tolist()
        first, last = (seen.attended[index].place for index in (1, 2))
        np.testing.assert_allclose(seen.attended[0].place, (first + last) / 2, atol=1e-3)
        places = {}
        head.reg_bridge.register_forward_pre_hook(lambda _, inputs: places.update(all=inputs[1][0]))
        inspection.detections(detector, subject)
        np.testing.assert_allclose(first, places["all"][0][0, row].numpy() / 2, atol=1e-3)
    else:
        scores, _, *factors = heard[0]
        spots = set()
        for level, logits in enumerate(scores):
            found = logits[0].unflatten(0, (-1, 2))[:, label].sigmoid()
            if factors:
                found = found * factors[0][level][0].sigmoid()
            for _, row, column in ((found - score).abs() < 1e-6).nonzero().tolist():
                stride = head.keypoint_head.strides[level]
                spots.add(((column * stride + stride // 2) / 2, (row * stride + stride // 2) / 2))
        assert tuple(seen.attended[0].place.tolist()) in spots
        assert len(spots) <= 2
    points = seen.points["center"]
    assert points.extent == pytest.approx((96, 64)) if name != "faster_rcnn" else points.extent[0] >= 96
    best = points.heat == points.heat.max()
    assert points.scores[0] == pytest.approx(points.heat.max())
    assert best.any()
    with pytest.raises(ValueError, match=rf"detection is 500; 0.png has detections 0 to {len(seen.found) - 1}\."):
        inspection.key_points(detector, subject, 500)


def test_key_points_without_detections(data, tmp_path):
    config = bvr_config("retinanet", data)
    config.model.test_cfg.score_thr = 1.0
    detector = asked(config, tmp_path)
    subject = inspection.file_subject(data / "images" / "0.png")
    seen = inspection.key_points(detector, subject)
    assert (seen.detection, seen.attended, seen.found) == (None, [], [])
    assert len(seen.points) == 3
    with pytest.raises(ValueError, match=r"detection is 0; 0.png has no detection\."):
        inspection.key_points(detector, subject, 0)


def test_masks_of_predictions_are_decoded(data, tmp_path, monkeypatch):
    detector = asked(detectors.read("tiny_detector", data), tmp_path)
    answer = detector.task.result

    def with_masks(prediction, *others):
        found = prediction.pred_instances
        found.masks = torch.zeros(len(found), 64, 96, dtype=torch.bool)
        found.masks[:, 5:9, 7:20] = True
        return answer(prediction, *others)

    monkeypatch.setattr(detector.task, "result", with_masks)
    found = inspection.detections(detector, inspection.file_subject(data / "images" / "0.png"))
    assert found
    assert all(entry["mask"].shape == (64, 96) and entry["mask"].sum() == 4 * 13 for entry in found)
