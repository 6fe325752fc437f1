"""What a trained network answers: as the model called by hand, whatever stands beside an input; nothing is executed."""

import json
import random
import re
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fuzzing import fuzz, mutated, tries
from mmengine.config import Config

import attlas
from attlas import checkpoint, furniture, images, inference
from attlas.data import build_transforms, drawn
from attlas.inference import Inferencer
from attlas.pointnets.datasets import as_data
from attlas.registry import MODELS, TRANSFORMS
from attlas.tasks import ModelError

CLASSES = ("bed", "car", "$x^$")
IMAGES = dict(
    model=dict(
        type="ImageClassifier",
        backbone=dict(type="SHViT", dims=(8, 16, 24), depths=(1, 1, 1), partial_dims=(None, 8, 8), num_classes=3),
    ),
    test_dataloader=dict(
        dataset=dict(type="ImageFolder", root="none", transforms=[dict(type="Resize", size=32), dict(type="PackImage")])
    ),
)
CLOUDS = dict(
    model=dict(
        type="PointClassifier",
        network=dict(
            type="RISurConvClassifier",
            num_classes=14,
            num_points=32,
            channels=(8, 8),
            neighbors=(4,),
            encoder_layers=0,
        ),
    ),
    test_dataloader=dict(
        dataset=dict(
            type="RotatedViews",
            views=dict(z=1),
            dataset=dict(
                type="Furniture14",
                transforms=[dict(type="SamplePoints", num=64, include_normals=True), dict(type="UnitSphere")],
            ),
            transforms=[dict(type="EstimateNormals", only_missing=True)],
        )
    ),
)


def write(path, config, classes=None, **meta):
    """A checkpoint of a random network, as MMEngine writes it."""
    torch.manual_seed(1)
    meta = dict(cfg=Config(config).pretty_text, dataset_meta=dict(classes=classes)) | meta
    torch.save(dict(meta=meta, state_dict=MODELS.build(config["model"]).state_dict()), path)
    return path


@pytest.fixture
def image_checkpoint(tmp_path):
    return write(tmp_path / "images.pth", IMAGES, CLASSES)


@pytest.fixture
def pictures(tmp_path):
    """A folder: three pictures of two sizes, one below a folder, one that is none; and what is not looked at."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    random = np.random.default_rng(0)
    for name, size in (("a.png", (40, 40)), ("b.JPG", (40, 60)), ("below/c.png", (40, 40)), (".hidden/d.png", (9, 9))):
        cv2.imwrite(str(folder / name), random.integers(0, 256, (*size, 3), np.uint8))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "notes.txt").write_text("not a picture")
    (folder / "below" / "loop").symlink_to(folder)
    return folder


def by_hand(config, path, data):
    model = MODELS.build(config["model"])
    checkpoint.load(model, path)
    with torch.no_grad():
        return model.eval()(**data).softmax(-1)[0]


def test_images(image_checkpoint, pictures):
    ask = Inferencer(image_checkpoint)
    assert ask.model.classes == CLASSES
    assert not ask.model.training
    found = ask([pictures], batch_size=2, top=2)
    assert [r["input"] for r in found] == [str(pictures / n) for n in ("a.png", "b.JPG", "broken.png", "below/c.png")]
    assert ask.left_out == [pictures / "notes.txt"]
    assert found[2]["error"] == "not a readable image: the PNG breaks off after 8 bytes"
    for result in (found[0], found[1], found[3]):
        pixels = images.read_image(result["input"])
        for transform in IMAGES["test_dataloader"]["dataset"]["transforms"]:
            data = TRANSFORMS.build(transform)(dict(image=pixels))
            pixels = data["image"]
        expected = by_hand(IMAGES, image_checkpoint, dict(images=pixels[None]))
        assert [entry["label"] for entry in result["classes"]] == expected.argsort(descending=True)[:2].tolist()
        for entry in result["classes"]:
            assert entry["name"] == CLASSES[entry["label"]]
            assert entry["probability"] == pytest.approx(float(expected[entry["label"]]), abs=1e-5)
    json.dumps(found)


def test_inputs_of_every_kind(image_checkpoint, pictures, monkeypatch):
    ask = Inferencer(attlas.load(image_checkpoint))
    monkeypatch.chdir(pictures)
    color, gray = images.read_image("a.png"), np.zeros((40, 40), np.uint8)
    (pictures / "x[1].png").write_bytes((pictures / "a.png").read_bytes())
    found = ask(["x[1].png", "*.png", color, gray, color / 255, "none/*.png", "a.pgn"])
    names = ["x[1].png", "a.png", "broken.png", "x[1].png", "input 2", "input 3", "input 4", "none/*.png", "a.pgn"]
    assert [result["input"] for result in found] == names
    answers = [result.get("classes") for result in found]
    for same in (0, 1, 3, 4):
        assert [a["probability"] for a in answers[same]] == pytest.approx([a["probability"] for a in answers[0]])
    assert answers[5]
    assert "must be uint8 (H, W, 3), red, green, blue, or (H, W), not float64 (40, 40, 3)" in found[6]["error"]
    assert "does not exist" in found[7]["error"]
    (pictures / "empty").mkdir()
    assert "holds no file that ends in .bmp" in ask("empty")[0]["error"]
    assert ask(color)[0]["classes"] == ask([color])[0]["classes"]
    with pytest.raises(ValueError, match="batch_size is 0"):
        ask([color], batch_size=0)


@pytest.fixture(scope="module")
def cloud_checkpoint(tmp_path_factory):
    return write(tmp_path_factory.mktemp("clouds") / "clouds.pth", CLOUDS, furniture.CLASSES)


def test_meshes_and_clouds(cloud_checkpoint, tmp_path):
    mesh = furniture.load("test")[0]
    shape = dict(pos=mesh.vertices, face=mesh.faces)
    text = [f"v {x} {y} {z}" for x, y, z in mesh.vertices] + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in mesh.faces]
    (tmp_path / "mesh.obj").write_text("\n".join(text))
    (tmp_path / "broken.ply").write_text("ply")
    np.save(tmp_path / "cloud.npy", mesh.vertices)
    ask = Inferencer(cloud_checkpoint)
    found = ask([tmp_path / "mesh.obj", tmp_path / "broken.ply", tmp_path / "cloud.npy", shape, mesh.vertices[:, :2]])
    assert "not a readable shape" in found[1]["error"]
    assert "points must be (N, 3)" in found[4]["error"]
    inner = CLOUDS["test_dataloader"]["dataset"]["dataset"]["transforms"]
    data = drawn(build_transforms(inner), as_data(shape, "mesh"), "mesh", 0)
    expected = by_hand(CLOUDS, cloud_checkpoint, dict(points=data.pos[None], normals=data.normal[None]))
    for result in (found[0], found[3]):
        for entry in result["classes"]:
            assert entry["probability"] == pytest.approx(float(expected[entry["label"]]), abs=1e-4)
    for one, other in zip(ask(mesh.vertices)[0]["classes"], found[2]["classes"]):  # SamplePoints alone takes no cloud
        assert one == {**other, "probability": pytest.approx(other["probability"], abs=1e-6)}


def test_a_mesh_for_transforms_of_clouds(cloud_checkpoint):
    mesh = furniture.load("test")[0]
    config = Config(CLOUDS)
    config.test_dataloader.dataset.dataset.transforms = [dict(type="FarthestPoints", num=64), dict(type="UnitSphere")]
    model = attlas.load(cloud_checkpoint, config)
    data = model.transforms(as_data(dict(pos=mesh.vertices, face=mesh.faces), "mesh"))
    assert (data.pos.shape, data.face) == ((64, 3), None)
    config.test_dataloader.dataset.dataset.transforms = []  # none are some
    ask = Inferencer(cloud_checkpoint, config)
    assert "still a mesh" in ask(dict(pos=mesh.vertices, face=mesh.faces))[0]["error"]


def test_names_of_classes(cloud_checkpoint, image_checkpoint, tmp_path):
    state = checkpoint.weights(checkpoint.read(cloud_checkpoint))
    checkpoint.save(tmp_path / "weights.safetensors", state)
    assert attlas.load(tmp_path / "weights.safetensors", Config(CLOUDS)).classes == furniture.CLASSES
    state = checkpoint.weights(checkpoint.read(image_checkpoint))
    checkpoint.save(tmp_path / "bare.safetensors", state)
    checkpoint.save(tmp_path / "named.safetensors", state, dict(dataset_meta=json.dumps(dict(classes=CLASSES))))
    assert attlas.load(tmp_path / "named.safetensors", Config(IMAGES)).classes == CLASSES
    ask = Inferencer(tmp_path / "bare.safetensors", Config(IMAGES))
    (result,) = ask(np.zeros((40, 40), np.uint8))
    assert all(entry["name"] == f"class {entry['label']}" for entry in result["classes"])
    ask.model.classes = ("bed",)
    with pytest.raises(ModelError, match="names of 1 classes, and the network has 3"):
        ask(np.zeros((40, 40), np.uint8))
    with pytest.raises(ValueError, match=r"holds no config\. Give the config before the checkpoint"):
        attlas.load(tmp_path / "named.safetensors")


def test_a_network_is_loaded_whole(image_checkpoint, tmp_path):
    found = checkpoint.read(image_checkpoint)
    del found["state_dict"]["backbone.head.fc.weight"]
    torch.save(found, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"missing from the file \(1\).*\n.*partly untrained"):
        attlas.load(tmp_path / "part.pth")
    with pytest.raises(ValueError, match="the model is a SHViT, and no task"):
        attlas.load(image_checkpoint, Config({**IMAGES, "model": IMAGES["model"]["backbone"]}))
    with pytest.raises(ValueError, match="The Linear has no task and no classes and no transforms"):
        Inferencer(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="has no test_dataloader"):
        attlas.load(image_checkpoint, Config(dict(model=IMAGES["model"])))


def changed(change):
    config = Config(IMAGES).to_dict()
    change(config)
    return config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(custom_imports=dict(imports=["evil"])), "imports modules"),
        (lambda c: c.update(model=dict(type="os.system", command="ls")), "model.type is os.system"),
        (lambda c: c["model"].update(backbone=dict(type="builtins.eval", num_classes=3)), "type is builtins.eval"),
        (lambda c: c["model"].update(backbone=dict(type="evil", num_classes=3)), "backbone.type is evil"),
        (lambda c: c["model"].update(type="attlas.load", checkpoint="evil"), "model.type is attlas.load"),
        (lambda c: c["model"].update(type="mmengine.load", file="evil"), "model.type is mmengine.load"),
        (lambda c: c["model"].update(type=["os.system"]), r"model.type is \['os.system'\]"),
        (lambda c: c["model"].update(_scope_="evil"), "has a key _scope_"),
        (lambda c: c["model"]["backbone"].update(mixers=["os.system"]), r"mixers\[0\] is 'os.system'"),
        (lambda c: c["model"]["backbone"].update(type="Pyramid", mixers="evil"), ""),
        (lambda c: c["model"]["backbone"].update(name="/etc/passwd"), "name is '/etc/passwd'"),
        (lambda c: c["model"]["backbone"].update(dims=(8, 16, 9999)), "its model has .* numbers, and the file"),
        (lambda c: c["model"]["backbone"].update(depths=(1, 1, 10**9)), r"depths\[2\] is 1,000,000,000, more than the"),
        (lambda c: c["model"]["backbone"].update(dims="wide"), ""),
        (
            lambda c: c["test_dataloader"]["dataset"].update(transforms=[dict(type="subprocess.run", args="evil")]),
            r"transforms\[0\].type is subprocess.run",
        ),
        (lambda c: c["test_dataloader"]["dataset"].update(transforms=[dict(type="SHViT")]), "type is SHViT"),
    ],
)  # fmt: skip
def test_a_strangers_config_builds_only_what_attlas_registers(tmp_path, monkeypatch, change, said):
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path / "x.pth", IMAGES, CLASSES, cfg=Config(changed(change)).pretty_text)
    with pytest.raises(ValueError, match=f"inside .*x.pth is not used: .*{said}") as error:
        attlas.load(path)
    assert "tools/infer.py CONFIG CHECKPOINT INPUT" in str(error.value)
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules


def test_a_strangers_config_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "x.pth", IMAGES, CLASSES, cfg="model = open('ran', 'w')")
    with pytest.raises(ValueError, match="line 1 is more than data"):
        attlas.load(path)
    assert not (tmp_path / "ran").exists()


def test_weights_come_from_the_checkpoint_alone(tmp_path, image_checkpoint):
    def add(config):
        config["model"].update(init_cfg=dict(type="Pretrained", checkpoint="none.pth"))
        config["model"]["backbone"].update(pretrained="none.pth")

    path = write(tmp_path / "x.pth", IMAGES, CLASSES, cfg=Config(changed(add)).pretty_text)
    expected = checkpoint.weights(checkpoint.read(path))
    for config in (None, Config(changed(add))):
        model = attlas.load(path, config)
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


VALUES = (
    "-1",
    "0",
    "1",
    "3.5",
    "1e308",
    "9000",
    "9223372036854775807",
    "'x'",
    "None",
    "True",
    "[]",
    "(1, 2)",
    "dict()",
)


def load_mutated(seeds: list[int]) -> list[int]:
    """[loaded, refused] of checkpoints whose config has other values, or some bytes changed."""
    counts = [0, 0]
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(*seeds):
            draw = random.Random(seed)
            config = draw.choice((IMAGES, CLOUDS))
            text = Config(config).pretty_text
            if draw.random() < 0.3:
                text = mutated(text.encode(), draw).decode("latin-1")
            for _ in range(draw.randint(1, 2)):
                if literals := list(re.finditer(r"'\w+'|\b\d+\b|\bNone\b", text)):
                    literal = draw.choice(literals)
                    text = text[: literal.start()] + draw.choice(VALUES) + text[literal.end() :]
            try:
                attlas.load(write(Path(folder) / "x.pth", config, CLASSES, cfg=text))
                counts[0] += 1
            except ValueError:
                counts[1] += 1
    return counts


@pytest.mark.slow
def test_mutated_configs_inside_are_built_or_refused(count):
    outcomes = fuzz(load_mutated, [[start, start + 50] for start in range(0, tries(300), 50)])
    assert not [outcome for outcome in outcomes if outcome.died or outcome.error]
    loaded, refused = (sum(outcome.value[i] for outcome in outcomes) for i in (0, 1))
    assert min(loaded, refused) > 5
    count("configs inside checkpoints with changed values", f"{loaded + refused} ({loaded} built, {refused} refused)")


def test_load_is_found_in_the_package():
    assert attlas.load is inference.load
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        attlas.laod  # noqa: B018
