"""tools/test.py --open-set as a user runs it, and what tools/infer.py makes of the file."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from attlas.registry import MODELS

CONFIG = """
default_scope = "attlas"
model = dict(type="ImageClassifier", backbone=dict(
    type="SHViT", dims=(8, 16, 24), depths=(1, 1, 1), partial_dims=(None, 8, 8), num_classes=2))
small = [dict(type="Resize", size=(32, 32)), dict(type="PackImage")]
known = ("blue", "red")
train_dataloader = dict(batch_size=4, num_workers=0, collate_fn=dict(type="default_collate"),
    sampler=dict(type="EpochSampler", shuffle=True),
    dataset=dict(type="KnownClasses", classes=known, dataset=dict(
        type="ImageFolder", root="{root}", split="train", transforms=[dict(type="RandomFlip"), *small])))
val_dataloader = dict(batch_size=4, num_workers=0, collate_fn=dict(type="default_collate"),
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="KnownClasses", classes=known, dataset=dict(
        type="ImageFolder", root="{root}", split="val", transforms=small)))
test_dataloader = dict(batch_size=4, num_workers=0, collate_fn=dict(type="default_collate"),
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="KnownClasses", classes=known, dataset=dict(
        type="ImageFolder", root="{root}", split="test", transforms=small)))
"""
COLORS = {"blue": (200, 30, 30), "gray": (120, 120, 120), "green": (30, 200, 30), "red": (30, 30, 200)}


@pytest.fixture
def place(tmp_path):
    """A folder with pictures of four classes, a config of two, and a checkpoint whose last layer tells these apart."""
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name, color in COLORS.items():
            for number in range(6):
                path = tmp_path / "pictures" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), np.uint8(np.clip(color + random.normal(0, 12, (32, 32, 3)), 0, 255)))
    path = tmp_path / "config.py"
    path.write_text(CONFIG.replace("{root}", str(tmp_path / "pictures")))
    config = Config.fromfile(path)
    model = MODELS.build(config.model).eval()
    with torch.no_grad():
        blue, red = (torch.zeros(1, 3, 32, 32) for _ in range(2))
        blue[:, 2], red[:, 0] = 2, 2
        a, b = features(model, blue), features(model, red)
        model.backbone.head.fc.weight.copy_(torch.cat([a - b, b - a]))
        middle = (a + b) / 2
        model.backbone.head.fc.bias.copy_(-(model.backbone.head.fc.weight @ middle[0]))
    meta = dict(cfg=config.pretty_text, dataset_meta=dict(classes=("blue", "red")))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), tmp_path / "last.pth")
    return tmp_path


def features(model, image):
    kept = []
    with model.backbone.head.fc.register_forward_pre_hook(lambda _, args: kept.append(args[0])):
        model(image)
    return kept[0]


def test_open_set(run, load, place, monkeypatch, capsys):
    given = (place / "config.py", place / "last.pth")
    printed = run(
        "test", *given, "--open-set", "--surrogates", "gray", "--scores", "energy", "costarr", "--fitted",
        place / "fitted.safetensors", "--out", place / "found.json", "--picture", place / "oscr.png",
    )  # fmt: skip
    assert "Unit: image. Samples: 12 known, 12 unknown, 6 of these surrogates, 12 held-out known" in printed
    assert "costarr with the threshold" in printed
    assert "best accuracy on held-out known samples and surrogates" in printed
    found = json.loads((place / "found.json").read_text())
    assert found["classes"] == ["blue", "red"]
    assert found["scores"]["costarr"]["closed_set"] > 0.8
    assert cv2.imread(str(place / "oscr.png")).std() > 5

    monkeypatch.setattr(
        sys, "argv",
        ["infer.py", str(place / "last.pth"), str(place / "pictures" / "test"), "--open-set",
         str(place / "fitted.safetensors"), "--out", str(place / "answers")],
    )  # fmt: skip
    with pytest.raises(SystemExit) as end:
        load("infer").main()
    assert end.value.code == 0
    results = json.loads((place / "answers" / "results.json").read_text())["results"]
    unknown = [result["open_set"]["unknown"] for result in results]
    assert f"Of an unknown class: {sum(unknown)}." in capsys.readouterr().out
    own = {"blue", "red"}
    accepted = [not u for u, r in zip(unknown, results) if r["input"].split("/")[-2] in own]
    threshold = found["thresholds"]["costarr"]["surrogates"]
    assert {result["open_set"]["threshold"] for result in results} == {threshold}
    assert np.mean(accepted) == found["scores"]["costarr"]["accepted_surrogates"]


def test_what_open_sets_refuse(refusal, place):
    given = (place / "config.py", place / "last.pth")
    for arguments, said in (
        (("--surrogates", "gray"), "--surrogates belongs to --open-set"),
        (("--fitted", "x.safetensors"), "--fitted belongs to --open-set"),
        (("--open-set", "--tta"), "one of them at a time"),
        (("--open-set", "--known", "blue", "green", "gray", "red"), "no class is unknown"),
        (("--open-set", "--known", "blue"), "1 known classes are named, and the classifier has 2"),
        (("--open-set", "--surrogates", "pink"), "surrogate 'pink' is not among the unknown classes: gray, green"),
        (("--open-set", "--scores", "energie"), "Did you mean 'energy'|score is 'energie'"),
        (("--open-set", "--fitted", place / "x.pth"), "must end in .safetensors"),
        (("--open-set", "--fitted", place / "x.safetensors", "--scores", "energy"), "--keep costarr is not among"),
    ):
        assert any(part in refusal("test", *given, *arguments) for part in said.split("|")), arguments
    assert "no file of a fitted open-set score" in refusal(
        "infer", place / "last.pth", place / "pictures", "--open-set", place / "last.pth"
    )
