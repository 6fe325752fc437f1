from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from mmengine.config import Config

from attlas import furniture
from attlas.backbones.classification import views as V
from attlas.registry import DATASETS

ROOT = Path(__file__).parents[3]
RED, BLUE = (200, 30, 30), (30, 30, 200)


def block(name="block", label=3, extents=(1, 2, 1), color=RED) -> furniture.Mesh:
    box = trimesh.creation.box(extents)
    vertices = (box.vertices + np.array([5, 1, 0])).astype(np.float32)  # not at the origin, as furniture is not
    colors = np.tile(np.uint8(color), (12, 1))
    return furniture.Mesh(name, label, vertices, box.faces.astype(np.int32), colors, "", "", "", "")


@pytest.fixture
def meshes(monkeypatch):
    """Three blocks to train on and one to test, in place of the built-in meshes."""
    blocks = [block("tall"), block("cube", 0, (1, 1, 1), BLUE), block("flat", 13, (3, 0.1, 3))]
    monkeypatch.setattr(V.furniture, "load", lambda split: blocks if split == "train" else [block("other")])
    return blocks


@pytest.fixture
def counted(monkeypatch):
    """How many pictures were rendered."""
    rendered = []

    class Scene(V.Scene):
        def picture(self, random, size):
            rendered.append(size)
            return super().picture(random, size)

    monkeypatch.setattr(V, "Scene", Scene)
    return rendered


def test_views_of_each_mesh(meshes, tmp_path):
    dataset = V.FurnitureViews(views=4, size=32, cache=tmp_path)
    assert len(dataset) == 12
    assert dataset.labels.tolist() == [3] * 4 + [0] * 4 + [13] * 4
    assert (dataset.classes, dataset.num_classes) == (furniture.CLASSES, 14)
    assert dataset.name(5) == "cube, view 1"
    images = [data["image"] for data in dataset]
    assert all(image.shape == (32, 32, 3) and image.dtype == np.uint8 for image in images)
    assert len({image.tobytes() for image in images}) == 12
    for number, image in enumerate(images):
        red, _, blue = np.moveaxis(image.astype(int), 2, 0)
        block = (blue - red if 4 <= number < 8 else red - blue) > 40  # its own colour, and no other's
        assert 0.03 < block.mean() < 0.85
        rim = np.concatenate([block[0], block[-1], block[:, 0], block[:, -1]])
        assert not rim.any()  # the whole of it is in the picture
        ground = image[~block].reshape(-1, 3)
        assert (np.ptp(image[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0) == 0).all()
        assert (np.median(ground, axis=0) > 160).all()


def test_a_view_is_a_function_of_its_numbers(meshes, tmp_path):
    def pictures(folder, **options):
        return np.array(V.FurnitureViews(**{"views": 2, "size": 16, "cache": tmp_path / folder, **options}).images)

    first = pictures("a")
    assert np.array_equal(pictures("b"), first)
    more = pictures("a", views=3)
    assert np.array_equal(more.reshape(3, 3, 16, 16, 3)[:, :2].reshape(first.shape), first)
    assert not np.array_equal(pictures("a", seed=1), first)
    assert len(list((tmp_path / "a").iterdir())) == 3


def test_the_middle_of_a_pixel_is_where_it_should_be(meshes):
    """A flat plate from straight above, seen by rays, covers the pixels that its projection says."""
    scene, size = V.Scene(block(extents=(1, 0.001, 1))), 64

    class Fixed:
        """Straight from the front (azimuth 0) and 60 degrees above, unmoved."""

        values = iter([0.0, 60.0, 10.0, 0.8, np.zeros(2), 0.0, 45.0, 0.9, np.zeros(3)])

        def uniform(self, *_, **__):
            return next(self.values)

    image = scene.picture(Fixed(), size).astype(int)
    rows, columns = np.nonzero(image[..., 0] - image[..., 2] > 40)
    assert (columns.min() + columns.max(), rows.min() + rows.max()) == (63, 63)  # in the middle
    assert abs(np.ptp(columns) + 1 - 0.8 * size) <= 2
    near, far = (np.ptp(columns[rows == row]) for row in (rows.max() - 1, rows.min() + 1))
    assert near > far + 1  # in perspective, and not upside down


def test_rendered_once(meshes, counted, tmp_path):
    options = dict(views=2, size=16, cache=tmp_path / "cache")
    first = np.array(V.FurnitureViews(**options).images)
    assert len(counted) == 6
    again = V.FurnitureViews(**options)
    assert len(counted) == 6
    assert np.array_equal(again.images, first)
    again[0]["image"][:] = 0  # a copy: the file stays
    assert np.array_equal(V.FurnitureViews(**options).images, first)
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    for content in (b"", whole[:-100], b"no array at all"):
        path.write_bytes(content)
        counted.clear()
        assert np.array_equal(V.FurnitureViews(**options).images, first)
        assert len(counted) == 6
        assert path.read_bytes() == whole
    for foreign in (np.zeros((6, 8, 8, 3), np.uint8), np.zeros((6, 16, 16, 3)), np.array([{}], dtype=object)):
        np.save(path, foreign, allow_pickle=True)
        assert np.array_equal(V.FurnitureViews(**options).images, first)
    meshes[1] = block("cube", 0, (1, 1, 1), RED)  # other data, another file
    assert not np.array_equal(V.FurnitureViews(**options).images, first)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"The cache .*file.x cannot be made .* name another folder in \$ATTLAS_CACHE"):
        V.FurnitureViews(cache=tmp_path / "file" / "x")


def test_bad_arguments(tmp_path):
    for options, message in [
        (dict(split="tests"), r"FurnitureViews\.split is 'tests'; it may be 'train', 'test'\. Did you mean 'test'"),
        (dict(views=0), r"FurnitureViews\.views is 0; it must be a positive integer"),
        (dict(size=9.5), r"FurnitureViews\.size is 9\.5; it must be a positive integer"),
        (dict(seed=-1), r"seed is -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            V.FurnitureViews(cache=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_the_built_in_furniture(tmp_path):
    dataset = V.FurnitureViews("test", views=1, size=24, cache=tmp_path)
    assert len(dataset) == 122
    assert set(dataset.labels) == set(range(14))
    assert (dataset.images.reshape(122, -1).std(1) > 1).all()  # something is seen in every one


def test_base_config(meshes, tmp_path):
    config = Config.fromfile(ROOT / "configs/_base_/furniture_views.py")
    for loader, count in ((config.train_dataloader, 48), (config.val_dataloader, 16), (config.test_dataloader, 16)):
        dataset = DATASETS.build({**loader.dataset, "cache": tmp_path})
        assert len(dataset) == count
        data = dataset[-1]
        assert (data["image"].shape, data["image"].dtype) == ((3, 64, 64), torch.float32)
        repeated = torch.equal(dataset[0]["image"], dataset[count]["image"])
        assert repeated == (loader is not config.train_dataloader)  # an epoch draws afresh in training alone
    assert config.val_evaluator == config.test_evaluator == dict(type="ImageAccuracy")
