"""Fitting to trained classifiers, files, and predictions that say known or unknown."""

import json

import pytest
import torch
from torch import nn
from torch_geometric.data import Data

from attlas import checkpoint
from attlas.backbones.open_sets.fitting import Detector, Reader, attach, create, find_layer, fit, load
from attlas.inference import Inferencer
from attlas.registry import MODELS

CLASSES = 3


def image_classifier(**options):
    backbone = dict(type="SHViT", dims=(8, 16, 24), depths=(1, 1, 1), partial_dims=(None, 8, 8), num_classes=CLASSES)
    return MODELS.build(dict(type="ImageClassifier", backbone=backbone, **options)).eval()


def point_classifier():
    network = dict(type="PointNet2Classifier", num_classes=CLASSES)
    return MODELS.build(dict(type="PointClassifier", network=network)).eval()


def image_batches(count=6, size=4):
    images = torch.randn(count * size, 3, 32, 40)
    labels = torch.arange(count * size) % CLASSES
    return [dict(image=x, label=y, index=y) for x, y in zip(images.split(size), labels.split(size))]


def cloud_batches(count=2):
    def cloud(number):
        normal = nn.functional.normalize(torch.randn(600, 3), dim=1)
        return Data(pos=torch.randn(600, 3), normal=normal, y=torch.tensor(number % CLASSES), cloud=number, name="x")

    return [[cloud(2 * batch), cloud(2 * batch + 1)] for batch in range(count)]


def right_labels(model, batches):
    """The batches with the classifier's own answers as labels, so that all are right."""
    reader = Reader(model)
    for batch in batches:
        batch["label"] = reader(batch)[0] @ reader.layer.weight.T + reader.layer.bias
        batch["label"] = batch["label"].argmax(1)
    return batches


@pytest.fixture
def detected():
    """(model, batches, detector) of a small classifier."""
    model = image_classifier()
    batches = right_labels(model, image_batches())
    reader = Reader(model)
    (score,) = fit([create("costarr", find_layer(reader, batches))], reader, batches)
    rated = torch.cat([score(reader(batch)[0]) for batch in batches])
    detector = Detector("costarr", score, rated.median().item(), "the median", "image", reader.name, ("a", "b", "c"))
    return model, batches, detector


@pytest.mark.parametrize("kind", ["image", "cloud", "plain"])
def test_the_reader_gets_what_the_last_layer_reads(kind):
    if kind == "image":
        model, (batch, *_) = image_classifier(), image_batches(1)
        logits, name = model(batch["image"]), "backbone.head.fc"
    elif kind == "cloud":
        model, (batch, *_) = point_classifier(), cloud_batches(1)
        logits = model(torch.stack([c.pos for c in batch]), torch.stack([c.normal for c in batch]))
        name = None
    else:
        model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, CLASSES))
        batch = torch.randn(4, 5), torch.tensor([0, 1, 2, -1])
        logits, name = model(batch[0]), "2"
    reader = Reader(model)
    features, labels = reader(batch)
    assert name in (None, reader.name)
    assert labels.tolist() == {"image": [0, 1, 2, 0], "cloud": [0, 1], "plain": [0, 1, 2, -1]}[kind]
    torch.testing.assert_close(reader.layer(features), logits)
    again, _ = Reader(model, reader.name)(batch)
    torch.testing.assert_close(again, features)


def test_unknown_labels_pass_the_reader():
    model, (batch,) = image_classifier(), image_batches(1)
    batch["label"] = torch.full((4,), -1)
    assert Reader(model)(batch)[1].tolist() == [-1] * 4


def test_classifiers_that_have_no_last_layer_are_refused():
    class Averaged(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, CLASSES), nn.Linear(4, CLASSES)

        def forward(self, x):
            return (self.a(x) + self.b(x)) / 2

    batch = torch.randn(2, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"two heads are averaged.*linear layers are a, b"):
        Reader(Averaged())(batch)
    with pytest.raises(ValueError, match="logits are not the output of the layer 'a'"):
        Reader(Averaged(), "a")(batch)
    with pytest.raises(ValueError, match="layer='c' is not there; linear layers are a, b"):
        Reader(Averaged(), "c")
    with pytest.raises(ValueError, match="mirrored"):
        Reader(image_classifier(mirrored=("horizontal",)))
    with pytest.raises(ValueError, match="no logits"):
        Reader(nn.Conv2d(3, 2, 1))((torch.randn(1, 3, 4, 4), torch.tensor([0])))


def test_scores_are_fitted_together_as_apart():
    model = image_classifier()
    batches = right_labels(model, image_batches())
    reader = Reader(model)
    layer = find_layer(reader, batches)
    names = ("costarr", "ghost", "nnguide", "energy")
    failed = {}
    together = fit([create(name, layer) for name in names], reader, batches, failed)
    features = reader(batches[0])[0]
    for name, score in zip(names, together):
        if score in failed:  # of random networks a class may have no samples
            assert "right samples of each class" in failed[score]
            continue
        (alone,) = fit([create(name, layer)], reader, batches)
        torch.testing.assert_close(score(features), alone(features))
    with pytest.raises(ValueError, match="gives no samples"):
        fit([create("costarr", layer)], reader, iter([]))
    with pytest.raises(ValueError, match="Did you mean 'costarr'"):
        create("COSTARR", layer)
    with pytest.raises(ValueError, match="energy takes the options temperature, got tail"):
        create("energy", layer, tail="none")


def test_a_detector_survives_its_file(detected, tmp_path):
    model, batches, detector = detected
    path = tmp_path / "fitted.safetensors"
    layer = model.get_submodule(detector.layer)
    detector.save(path, layer)
    again = load(path, model)
    assert (again.name, again.threshold, again.rule, again.unit, again.layer, again.classes) == (
        "costarr", detector.threshold, "the median", "image", "backbone.head.fc", ["a", "b", "c"],
    )  # fmt: skip
    assert again.score.options == detector.score.options
    features = Reader(model)(batches[0])[0]
    torch.testing.assert_close(again.score(features), detector.score(features), rtol=0, atol=0)
    energy = Detector("energy", create("energy", layer, temperature=2.0), 1.5, "", "image", detector.layer)
    energy.save(tmp_path / "energy.safetensors", layer)  # nothing is fitted, and all the same a file
    torch.testing.assert_close(load(tmp_path / "energy.safetensors", model).score(features), energy.score(features))


def test_a_file_of_another_training_is_refused(detected, tmp_path):
    model, _, detector = detected
    path = tmp_path / "fitted.safetensors"
    detector.save(path, model.get_submodule(detector.layer))
    with pytest.raises(ValueError, match="fitted to other weights"):
        load(path, image_classifier())
    with pytest.raises(ValueError, match=r"last layer 'backbone\.head\.fc', and this is none"):
        load(path, nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(threshold="high"), "its threshold is 'high'"),
        (dict(threshold=True), "its threshold is True"),
        (dict(threshold=float("nan")), "finite number"),
        (dict(score="softmaxx"), "score is 'softmaxx'"),
        (dict(options=dict(features="all")), "features is 'all'"),
        (dict(options=dict(weights=1)), "takes the options"),
        (dict(options=[]), "its options is"),
        (dict(extra=1), "no file of a fitted open-set score"),
    ],
)
def test_a_broken_file_is_refused(detected, tmp_path, change, said):
    model, _, detector = detected
    path = tmp_path / "fitted.safetensors"
    detector.save(path, model.get_submodule(detector.layer))
    found = checkpoint.read(path)
    told = json.loads(found["meta"]["open_set"]) | change
    checkpoint.save(path, found["state_dict"], dict(open_set=json.dumps(told)))
    with pytest.raises(ValueError, match=said):
        load(path, model)


def test_other_files_are_refused(detected, tmp_path):
    model, _, _ = detected
    path = tmp_path / "weights.safetensors"
    for meta in (None, dict(open_set="{"), dict(open_set="[1]")):
        checkpoint.save(path, dict(x=torch.zeros(1)), meta)
        with pytest.raises(ValueError, match="no file of a fitted open-set score"):
            load(path, model)


def test_predictions_say_known_or_unknown(detected, tmp_path):
    model, batches, detector = detected
    path = tmp_path / "fitted.safetensors"
    detector.save(path, model.get_submodule(detector.layer))
    before = model(batches[0]["image"])
    attach(model, path)
    torch.testing.assert_close(model(batches[0]["image"]), before)
    predictions = [p for batch in batches for p in model(batch["image"], batch["label"], mode="predict")]
    told = [p["open_set"] for p in predictions]
    reader = Reader(model)
    expected = torch.cat([detector.score(reader(batch)[0]) for batch in batches])
    torch.testing.assert_close(torch.tensor([t["score"] for t in told]), expected)
    unknown = [t["unknown"] for t in told]
    assert unknown == (expected < detector.threshold).tolist()
    assert 0 < sum(unknown) < len(unknown)
    assert told[0]["method"] == "costarr"
    assert told[0]["rule"] == "the median"
    with pytest.raises(ValueError, match="attached to this model already"):
        attach(model, path)


def test_an_inferencer_passes_it_on(detected):
    model, _, detector = detected
    model.classes, model.transforms = (
        ("a", "b", "c"),
        lambda item: dict(image=torch.from_numpy(item["image"]).permute(2, 0, 1).float()),
    )
    images = [(torch.rand(32, 40, 3) * 255).byte().numpy() for _ in range(3)]
    plain = Inferencer(model)(images)
    assert "open_set" not in plain[0]
    attach(model, detector)
    inferencer = Inferencer(model)
    for result, without in zip(inferencer(images), plain):
        assert result["classes"] == without["classes"]
        found = result["open_set"]
        assert found["unknown"] == (found["score"] < detector.threshold)
        said = inferencer.task.said(result)
        assert said.startswith("unknown (costarr " if found["unknown"] else "known (costarr ")
    together, alone = inferencer(images), [inferencer([image])[0] for image in images]
    for a, b in zip(together, alone):
        assert a["open_set"]["score"] == pytest.approx(b["open_set"]["score"], rel=1e-5)


def test_detectors_that_cannot_be_are_refused(detected, tmp_path):
    model, _, detector = detected
    for wrong in (float("nan"), float("inf"), "1", True):
        with pytest.raises(ValueError, match="threshold must be a"):
            Detector("costarr", detector.score, wrong, "", "image", detector.layer)
    unfitted = Detector("costarr", create("costarr", model.get_submodule(detector.layer)), 0.5, "", "image", "fc")
    with pytest.raises(ValueError, match="not fitted"):
        unfitted.save(tmp_path / "x.safetensors", model.get_submodule(detector.layer))
