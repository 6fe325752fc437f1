"""VGG by torchvision's names."""

import pytest
import torch
from networks import close, fill, image

from attlas import backbones, checkpoint
from attlas.backbones.vgg import VGG

NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of torchvision's convolutions of VGG-16


def test_by_torchvisions_names():
    options = dict(dims=(4, 4, 8, 8, 8), depths=(2, 2, 3, 3, 3), features=16, num_classes=5)
    network = fill(VGG(**options))
    ours = [name.rpartition(".")[0] for name in network.state_dict() if name.endswith("weight")]
    theirs = [f"features.{n}" for n in NUMBERS] + ["classifier.6", "classifier.0", "classifier.3"]  # fc is made first
    names = dict(zip(ours, theirs))
    assert ours[-3:] == ["head.fc", "head.fc1", "head.fc2"]
    state = {f"{names[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": v for n, v in network.state_dict().items()}
    again = VGG(**options).eval()
    assert checkpoint.load(again, state).complete
    close(again(image(40, 33)), network(image(40, 33)))


def test_vgg_face_has_its_people():
    with torch.device("meta"):
        assert backbones.create("vgg_face").head.fc.out_features == 2622


def test_bad_options():
    with pytest.raises(ValueError, match=r"VGG: dims=\(4, 4\) and depths=\(1,\) must have one entry"):
        VGG(dims=(4, 4), depths=(1,))
