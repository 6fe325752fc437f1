"""Every config builds: its network, its pipelines, its hooks; and each says what it was meant to say."""

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fuzzing import fuzz, mutated, tries
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from attlas import backbones
from attlas.config import load_config, parse_plain, unread_variables
from attlas.data import build_transforms
from attlas.registry import HOOKS, METRICS, MODELS

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").glob("[!_]*/*.py"))


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """The folder of own shapes that risurconv_folder.py reads: three classes of clouds."""
    for name in ("cone", "cube", "ring"):
        for number in range(5):
            path = tmp_path / "shapes" / name / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.random.default_rng(number).normal(size=(600, 3)))
    monkeypatch.setenv("SHAPES", str(tmp_path / "shapes"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of own pictures: three classes of ten."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(30):
        path = root / ("cat", "dog", "fox")[number % 3] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    return root


@pytest.fixture
def images(pictures, monkeypatch):
    """The pictures are those that the configs `*_folder.py` of backbones read."""
    monkeypatch.setenv("IMAGES", str(pictures))


RECIPES = [path for path in CONFIGS if path.stem.endswith("_imagenet")]
FOLDERS = [path for path in CONFIGS if path.stem.endswith("_folder") and path.stem != "risurconv_folder"]


ELSEWHERE = (
    "_coco",
    "_rooms",
    "_ade20k",
    "_cityscapes",
    "_chaos",
)  # built by the tests of detection and of segmentation


@pytest.mark.parametrize("path", [p for p in CONFIGS if not p.stem.endswith(ELSEWHERE)], ids=lambda path: path.stem)
def test_builds(path, shapes, images):
    config = load_config(ROOT / path)
    with torch.device("meta"):  # some have a billion parameters
        model = MODELS.build(config.model)
    if config.optim_wrapper is not None:  # of a test alone
        wrapper = build_optim_wrapper(model, config.optim_wrapper)
        optimized = {id(parameter) for group in wrapper.param_groups for parameter in group["params"]}
        assert optimized >= {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    HOOKS.build(config.default_hooks.checkpoint)
    for evaluator in config.test_evaluator if isinstance(config.test_evaluator, list) else [config.test_evaluator]:
        METRICS.build(evaluator)
    for loader in filter(None, (config.train_dataloader, config.val_dataloader, config.test_dataloader)):
        build_transforms(loader.dataset.get("dataset", loader.dataset).transforms)
    assert unread_variables(ROOT / path) == {}


def test_folder_of_own_shapes(shapes):
    path = ROOT / "configs/risurconv/risurconv_folder.py"
    config = load_config(path)
    assert config.model.network.num_classes == 3
    assert config.train_cfg.max_epochs == 700
    for epochs in (1, 30):
        config = load_config(path, {"max_epochs": epochs})
        assert config.train_cfg.max_epochs == max(s.end for s in config.param_scheduler) == epochs


def test_every_system_has_a_config_for_own_pictures(images):
    alone = {"alexnet", "hyperzzw", "vgg"}  # of small pictures only, and hosts whose weights are others'
    assert {path.parent.name for path in FOLDERS} == {path.parent.name for path in RECIPES} | alone
    for path in FOLDERS:
        config = load_config(ROOT / path)
        assert config.model.backbone.num_classes == 3
        assert config.work_dir == f"work_dirs/{config.model.backbone.name}_folder"
        assert "--cfg-options name=" in (ROOT / path).read_text()


def test_a_base_without_a_default_takes_that_of_its_config(tmp_path, monkeypatch):
    (tmp_path / "base.py").write_text("name = '{{$BACKBONE:}}'\nfolder = f'work_dirs/{name}'")
    path = tmp_path / "child.py"
    path.write_text("_base_ = 'base.py'\nname = '{{$BACKBONE:nat_mini}}'")
    assert load_config(path).folder == "work_dirs/nat_mini"
    assert unread_variables(path) == {}
    assert "BACKBONE" not in os.environ
    assert load_config(path, {"name": "nat_tiny"}).folder == "work_dirs/nat_tiny"
    monkeypatch.setenv("BACKBONE", "nat_base")
    assert load_config(path).folder == "work_dirs/nat_base"
    monkeypatch.delenv("BACKBONE")
    with pytest.raises(ValueError, match=r"base\.py: KeyError: .*BACKBONE"):
        load_config(tmp_path / "base.py")


@pytest.mark.parametrize(
    "base", ["mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py", "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"]
)
def test_bases_of_libraries(base, tmp_path):
    """In a process that has no more of attlas than any of its classes brings, as the worker of a loader has."""
    path = tmp_path / "own.py"
    path.write_text(f"_base_ = {base!r}\nmodel = dict(backbone=dict(depth=101))")
    assert load_config(path).model.backbone.depth == 101
    code = f"""if True:
        from attlas.data import EpochSampler
        from mmengine.config import Config
        print(Config.fromfile({str(path)!r}).model.backbone.depth)
    """
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["101"], done.stderr


def test_an_error_says_where_a_value_comes_from(tmp_path, monkeypatch):
    """Of a folder that does not exist, say."""
    words = r"root 'data/images' is not a folder.* This is root, to be given as IMAGES=.* or --cfg-options root="
    monkeypatch.delenv("IMAGES", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_config(ROOT / "configs/shvit/shvit_folder.py")


def test_a_folder_of_own_pictures(images, pictures, tmp_path):
    """The recipe follows the number of pictures, the variant, and the options."""
    path = ROOT / "configs/shvit/shvit_folder.py"
    config = load_config(path)
    train, val = config.train_dataloader, config.val_dataloader
    assert (train.batch_size, train.num_workers, train.persistent_workers, val.dataset.split) == (8, 0, False, "val")
    assert config.train_cfg.max_epochs == 200
    assert config.optim_wrapper.paramwise_cfg.layer_decay is None
    options = {"name": "shvit_s4", "max_epochs": 7, "pretrained": "weights.pth"}
    config = load_config(path, options)
    assert (config.model.backbone.name, config.model.backbone.pretrained) == ("shvit_s4", "weights.pth")
    assert config.train_dataloader.dataset.transforms[0].size == config.val_dataloader.dataset.transforms[1].size == 256
    assert {config.train_cfg.max_epochs, *(s.end for s in config.param_scheduler)} == {7, 0.7}
    assert config.optim_wrapper.paramwise_cfg.layer_decay == 0.8
    many = tmp_path / "many" / "train"
    for number in range(700):
        (many / ("a", "b")[number % 2] / f"{number}.jpg").parent.mkdir(parents=True, exist_ok=True)
        (many / ("a", "b")[number % 2] / f"{number}.jpg").touch()
    (many.parent / "Testing").symlink_to(many)
    config = load_config(path, {"root": many.parent})
    assert (config.train_dataloader.batch_size, config.val_dataloader.dataset.split) == (64, "test")
    assert config.train_dataloader.num_workers > 0
    assert config.train_cfg.max_epochs == 200


DENSE = ("mask_rcnn", "retinanet", "relation_detr", "semantic_fpn", "upernet")
UNPUBLISHED = ("dependencyvit", "sparsifiner", "ia_red2", "duoformer", "ph_reg")


@pytest.mark.parametrize("system", UNPUBLISHED)
def test_a_dense_recipe_without_published_weights_begins_without(system, monkeypatch):
    monkeypatch.delenv("PRETRAINED", raising=False)
    paths = [path for path in CONFIGS if path.parent.name in DENSE and f"_{system}_" in path.name]
    assert len(paths) == len(DENSE)
    for path in paths:
        assert load_config(ROOT / path).model.backbone.pretrained is None, path


def variants(path):
    """The default variant of a recipe, and all that it is for: those of the same file, or, where training begins from
    published weights, those that its comment names."""
    config = load_config(ROOT / path)
    name = config.model.backbone.name
    file = backbones.variant(name)[0].__module__
    of_file = [n for s in backbones.systems().values() if s.__module__ == file for n in s.variants]
    if not config.load_from:
        return name, of_file
    text, size = (ROOT / path).read_text(), backbones.variant(name)[1].size  # what is begun with may be named, too
    named = [n for n in of_file if re.search(rf"^#.*\b{n}\b", text, re.M)]
    return name, [n for n in named if backbones.variant(n)[1].size >= size]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_each_variant(path):
    default, names = variants(path)
    assert default in names
    assert len(names) > 1 or path.stem in ("l2vit_img384_imagenet", "spartan_imagenet")  # which have one variant
    for name in names:
        config, facts = load_config(ROOT / path, {"name": name}), backbones.variant(name)[1]
        assert config.model.backbone.name == name
        assert config.work_dir == f"work_dirs/{name}_imagenet"
        if path.stem != "halonet_imagenet":  # whose recipe is one for all
            assert config.model.backbone.drop_path_rate == facts.drop_path
        crop = config.train_dataloader.dataset.transforms[0]
        assert crop == dict(type="RandomResizedCrop", size=facts.size, interpolation="bicubic")
        for loader in (config.val_dataloader, config.test_dataloader):
            resize, center, _ = loader.dataset.transforms
            assert center.size == facts.size
            assert facts.size / resize.size == pytest.approx(facts.crop, abs=4e-3)


def test_a_name_reaches_what_depends_on_it(monkeypatch):
    """From the command line and from the environment; other options are merged after it, in any order."""
    path = ROOT / "configs/hornet/hornet_imagenet.py"
    tiny = load_config(path)
    assert (tiny.model.backbone.name, tiny.optim_wrapper.clip_grad.max_norm) == ("hornet_tiny_7x7", 100)
    options = {"model.backbone.drop_path_rate": 0.3, "name": "hornet_base_gf_img384", "train_cfg.max_epochs": 5}
    large = load_config(path, options)
    assert (large.model.backbone.name, large.model.backbone.drop_path_rate) == ("hornet_base_gf_img384", 0.3)
    assert (large.size, large.optim_wrapper.clip_grad.max_norm, large.train_cfg.max_epochs) == (384, 1, 5)
    assert "BACKBONE" not in os.environ
    monkeypatch.setenv("BACKBONE", "hornet_small_7x7")
    assert Config.fromfile(path).optim_wrapper.clip_grad.max_norm == 5
    assert load_config(path, {"name": "hornet_tiny_gf"}).model.backbone.name == "hornet_tiny_gf"
    assert os.environ["BACKBONE"] == "hornet_small_7x7"
    with pytest.raises(ValueError, match=r"'hornet_tiny_fg' is no variant of a backbone. Near it: hornet_tiny_gf"):
        load_config(path, {"name": "hornet_tiny_fg"})


@pytest.mark.parametrize("data", ["furniture14", "furniture_parts", "shapenetpart"])
@pytest.mark.parametrize("network", ["risurconv", "pointnet2", "dgcnn"])
def test_so3_configs_differ_in_the_rotation_alone(network, data):
    z, so3 = (Config.fromfile(ROOT / f"configs/{network}/{network}_{data}{s}.py").to_dict() for s in ("", "_so3"))
    del so3["transforms"]  # a variable of the file
    for config, group in ((z, "z"), (so3, "SO3")):
        (rotation,) = [t for t in config["train_dataloader"]["dataset"]["transforms"] if t["type"] == "RandomRotation"]
        assert rotation.pop("group") == group
        assert rotation["up"] == "y"
    assert z == so3


@pytest.mark.parametrize("protocol", ["", "_so3"])
@pytest.mark.parametrize("network", ["risurconv", "pointnet2", "dgcnn"])
def test_weights_beside_the_configs_load(network, protocol):
    from attlas import checkpoint

    path = ROOT / f"configs/{network}/{network}_furniture14{protocol}.safetensors"
    if (network, protocol) == ("risurconv", ""):
        assert not path.exists()  # the demo trains these
        return
    model = MODELS.build(Config.fromfile(path.with_suffix(".py")).model)
    assert checkpoint.load(model, path).complete
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_config_that_is_data_is_parsed_without_running_it():
    text = "model = dict(type='A', scale=-0.5, sizes=(1, [2, None]), names={'a b': True})\nname = 'x'\n"
    found = parse_plain(text)
    assert found["model"] == dict(type="A", scale=-0.5, sizes=(1, [2, None]), names={"a b": True})
    shipped = load_config(ROOT / "configs/shvit/shvit_furniture_views.py")
    assert Config(parse_plain(shipped.pretty_text)).to_dict() == shipped.to_dict()


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "x = open('a')",
        "x = dict(**y)",
        "x = {**y}",
        "x = y",
        "x = [n for n in 'ab']",
        "x = f'{1}'",
        "x = 1 + 1",
        "x.y = 1",
        "x = dict([1])",
        "x = dict.fromkeys(a=1)",
        "_base_ = 'a.py'",
        "x = lambda: 0",
        "x: int = 1",
        "x = {[]: 1}",
        "x = (",
        "x = " + "[" * 5000 + "]" * 5000,
        "x = \0",
        "x = {1: 2}",
        "x = {1, 2}",
        "x = dict(__class__=1)",
        "x = {'_base_': 1}",
        "__builtins__ = 1",
        "x = y = 1",
        "x = 18446744073709551616",
        "x = -9223372036854775809",
        "x = 1j",
        "x = b'1'",
        "x = ...",
        "x = '{{$HOME:}}'",
        "x = 1" + " " * 1_000_000,
    ],
)
def test_a_config_that_is_more_than_data_is_refused(text):
    with pytest.raises(
        ValueError,
        match=r"line 1 is more than data|it is no config|refers to something|000,000 are the most|null bytes",
    ):
        parse_plain(text)


# --- errors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = (", r"child\.py, line 1 is no Python: '\(' was never closed"),
        ("y = 1\nx = y y", r"child\.py, line 2 is no Python: invalid syntax"),
        ("x = '\0'", r"child\.py.* is no Python: source code string cannot contain null bytes"),
        ("x = '\xe9'", r"The config .*child\.py is no text in UTF-8"),
        ("\n\nx = y", r"child\.py, line 3: NameError: name 'y'"),
        ("import sys\nsys.exit(3)", r"child\.py, line 2: SystemExit: 3"),
        ("_base_ = 'base.py'\nx = _base_.z", r"child\.py, line 2: AttributeError.*'z'"),
        ("_base_ = 'base.py'\nx = {{_base_.z}}", r"child\.py: KeyError: 'z'"),
        ("_base_ = 'base.py'\na = dict(b=1)", r"child\.py: TypeError: a=\{'b': 1\} in child config cannot inherit"),
        ("_base_ = ['base.py', 'base.py']", r"child\.py: KeyError: .*Duplicate keys: \{'a'\}"),
        ("_base_ = 'bsae.py'", r"child\.py names the base 'bsae\.py', which does not exist\. Near it: .*base\.py"),
        ("_base_ = 'child.py'", r"child\.py names the base 'child\.py', which has it as a base itself"),
        ("_base_ = 'loop.py'", r"loop\.py names the base 'child\.py', which has it as a base itself"),
        ("_base_ = 'broken.py'", r"broken\.py, line 2 is no Python: invalid syntax"),
        ("_base_ = 'failing.py'", r"failing\.py, line 2: ZeroDivisionError"),
        ("_base_ = 3", r"child\.py, _base_: TypeError"),
        ("filename = 'x'", r"child\.py: KeyError: 'filename is reserved"),
    ],
)
def test_an_error_in_a_config_names_file_and_line(tmp_path, text, words):
    bases = {"base": "a = 1", "loop": "_base_ = 'child.py'", "broken": "a = 1\nb = 2 3", "failing": "a = 1\nb = 1 / 0"}
    for name, content in bases.items():
        (tmp_path / f"{name}.py").write_text(content)
    (tmp_path / "child.py").write_bytes(text.encode("latin-1"))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        load_config(tmp_path / "child.py")


@pytest.mark.parametrize("value", ["a\\new", "it's", 'a "b" c', "\\", "C:\\1\\g<0>", "plain/path", "two\nlines"])
def test_a_variable_of_the_environment_arrives_as_it_is(tmp_path, monkeypatch, value):
    (tmp_path / "base.py").write_text("root = '{{$IMAGES:data}}'\nfar = dict(root=\"{{$IMAGES:data}}/x\")")
    path = tmp_path / "child.py"
    path.write_text("_base_ = 'base.py'\nnumber = int('{{$NUMBER:3}}')\nplain = {{'$NUMBER:3'}}")
    monkeypatch.setenv("IMAGES", value)
    config = load_config(path)
    assert (config.root, config.far.root, config.number, config.plain) == (value, f"{value}/x", 3, 3)
    assert os.environ["IMAGES"] == value
    config = load_config(path, {"root": f"{value}!", "number": 5})
    assert (config.root, config.far.root, config.number, config.plain) == (f"{value}!", f"{value}!/x", 5, 5)


def test_a_byte_order_mark_is_read_over(tmp_path):
    (tmp_path / "base.py").write_text("a = dict(b=1)", encoding="utf-8-sig")
    (tmp_path / "child.py").write_text("_base_ = 'base.py'\na = dict(c={{_base_.a.b}})", encoding="utf-8-sig")
    assert load_config(tmp_path / "child.py").a == dict(b=1, c=1)
    assert Config.fromfile(tmp_path / "child.py").a == dict(b=1, c=1)


def load_mutated(seeds: list[int]) -> list[int]:
    """[accepted, refused] of shipped configs, or bases of theirs, with some bytes changed."""
    counts = [0, 0]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copies = Path(shutil.copytree(ROOT / "configs", Path(folder) / "configs"))
        names = {path.name for path in copies.rglob("*.py")}
        for seed in range(*seeds):
            draw = random.Random(seed)
            config = copies / Path(*draw.choice(CONFIGS).parts[1:])
            changed = config if draw.random() < 0.5 else draw.choice(sorted((copies / "_base_").rglob("*.py")))
            content = changed.read_bytes()
            changed.write_bytes(mutated(content, draw))
            words = None
            try:
                load_config(config)
            except (ValueError, FileNotFoundError) as error:
                words = str(error)
            changed.write_bytes(content)
            if words is not None and not names & set(re.split(r"[/ ,:]", words)):
                raise AssertionError(f"{seed}: {words}")
            counts[words is not None] += 1
    return counts


@pytest.mark.slow
def test_mutated_configs_are_read_or_named(count):
    outcomes = fuzz(load_mutated, [[start, start + 50] for start in range(0, tries(600), 50)])
    assert not [outcome for outcome in outcomes if outcome.died or outcome.error]
    accepted, refused = (sum(outcome.value[i] for outcome in outcomes) for i in (0, 1))
    assert min(accepted, refused) > 20
    count("configs with changed bytes", f"{accepted + refused} ({accepted} accepted, {refused} refused)")
