"""Scores of queries and boxes of a DETR and of a dense head, and the targets that users name."""

import numpy as np
import pytest
import torch
from networks import image
from small_detectors import dense, detector

from attlas.backbones.inspection.capture import look
from attlas.backbones.inspection.normgrad import normgrad
from attlas.dense.detection.explanation import Answers, box_side, class_logit
from attlas.dense.detection.inference import Detection


@pytest.fixture(scope="module")
def detr():
    return Answers(detector().eval())


@pytest.fixture(scope="module")
def retina():
    return Answers(dense("retina").eval())


@pytest.mark.parametrize("kind", ["detr", "retina"])
def test_the_class_and_the_box_of_one_query(kind, request):
    network, x = request.getfixturevalue(kind), image(64, 96)
    with torch.no_grad():
        found = network(x)
    count = found.boxes.shape[1]
    assert found.logits.shape[:2] == (2, count)
    scores = [class_logit([1, 2], [3, count - 1]), box_side("right", [3, count - 1])]
    torch.testing.assert_close(scores[0](found), torch.stack([found.logits[0, 3, 1], found.logits[1, -1, 2]]))
    torch.testing.assert_close(scores[1](found), found.boxes[[0, 1], [3, count - 1], 2])
    layer = "detector.backbone.layer4"
    for score in scores:
        (together,) = normgrad(network, x, score, layer)
        assert together.shape == (2, 2, 3)
        for i in range(2):
            (alone,) = normgrad(network, x[i : i + 1], score.of_sample(i), layer)
            torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-5)
    other = look(network, x, class_logit(0, 0), layer)[0].gradient
    assert not torch.allclose(other, look(network, x, class_logit(0, 1), layer)[0].gradient)


def test_boxes_are_those_of_the_detectors_answer(retina):
    """Decoded as mmdet does it, before duplicates are removed."""
    from mmdet.structures import DetDataSample

    x = image(64, 96)[:1]
    with torch.no_grad():
        found = retina(x)
        sample = DetDataSample(metainfo=dict(img_shape=(64, 96), batch_input_shape=(64, 96), scale_factor=(1.0, 1.0)))
        (answer,) = retina.detector.predict(x, [sample], rescale=False)
    best = answer.pred_instances
    assert len(best)
    rows = found.logits[0].sigmoid()
    query = (rows[:, best.labels[0]] - best.scores[0]).abs().argmin()
    torch.testing.assert_close(rows[query, best.labels[0]], best.scores[0])
    limits = torch.tensor([96, 64, 96, 64])
    torch.testing.assert_close(found.boxes[0, query].clamp(min=0).minimum(limits), best.bboxes[0], rtol=1e-4, atol=1e-3)


def test_targets_by_name(retina):
    model = retina.detector
    model.classes, model.transforms = ("chair", "table", "lamp", "sofa", "bed"), _pack
    source = Detection().take(np.random.default_rng(0).integers(0, 255, (64, 90, 3), dtype=np.uint8))
    task = Detection()
    best, second = task.question(model, source, None), task.question(model, source, "1:lamp")
    assert second.said.startswith("lamp, query ")
    side = task.question(model, source, "0:left")
    assert "left side of" in side.said
    with torch.no_grad():
        found = best.network(*best.inputs)
    assert best.score(found) == found.logits.max()
    assert side.score(found) == pytest.approx(side.box[0])
    assert best.picture.shape[:2] == tuple(best.inputs[0].shape[-2:])
    assert abs(best.picture[:64, :90].astype(int) - source["img"][..., ::-1]).max() <= 1
    for target, said in (("chair", "must begin with the rank"), ("9999", "rank of a query"), ("0:chiar", "chair")):
        with pytest.raises(ValueError, match=said):
            task.question(model, source, target)


def _pack(data):
    from mmdet.structures import DetDataSample

    size = data["img"].shape[:2]
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    return dict(inputs=torch.from_numpy(data["img"]).permute(2, 0, 1), data_samples=sample)


def test_bad_queries(detr):
    x = image(64, 96)
    for score, said in (
        (class_logit(9, 0), "class 9: the detector has 0 to"),
        (class_logit(0, 4000), "query 4000: the detector has 0 to"),
        (class_logit(0, [0, 1, 2]), "query: 3 numbers for 2 images"),
    ):
        with pytest.raises(ValueError, match=said):
            look(detr, x, score, "detector.backbone.layer4")
    with pytest.raises(ValueError, match=r"side 'middle' is none of left"):
        box_side("middle", 0)
    with pytest.raises(ValueError, match="proposes boxes and then looks at them again"):
        Answers(torch.nn.Linear(2, 2))
