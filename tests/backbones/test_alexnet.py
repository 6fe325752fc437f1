"""AlexNet by torchvision's names, and the sizes of its maps."""

import torch
from networks import build, close, image

from attlas import backbones, checkpoint
from attlas.backbones.alexnet import PLACES


def test_by_torchvisions_names():
    network = build("AlexNet", num_classes=5)
    names = {f"stages.{stage}.{place}": f"features.{number}" for number, (stage, place) in PLACES.items()}
    names |= {"head.fc1": "classifier.1", "head.fc2": "classifier.4", "head.fc": "classifier.6"}
    state = {f"{names[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": v for n, v in network.state_dict().items()}
    again = build("AlexNet", filled=False, num_classes=5)
    assert checkpoint.load(again, state).complete
    close(again(image(64, 80)), network(image(64, 80)))


def test_shapes_of_the_published_network():
    with torch.device("meta"):
        state = backbones.create("alexnet").state_dict()
    assert state["stages.0.0.weight"].shape == (64, 3, 11, 11)
    assert state["head.fc1.weight"].shape == (4096, 9216)
    assert backbones.systems()["AlexNet"](dims=(8,) * 5, features=8).map_sizes(224, 224) == [(27, 27), (13, 13), (6, 6)]
