"""Sheets of data sets: what is drawn of items of every kind, and which items are chosen."""

import numpy as np
import pytest
import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch_geometric.data import Data

from attlas import browsing as B
from attlas.backbones.classification.transforms import PackImage

IMAGE = np.arange(8 * 10 * 3, dtype=np.uint8).reshape(8, 10, 3)
INPUTS = torch.from_numpy(IMAGE[..., ::-1].copy()).permute(2, 0, 1)  # blue, green, red


class Items(list):
    metainfo = dict(classes=("chair", "lamp"))


def drawn(*items, **options):
    """The axes on which items were drawn."""
    return B.draw_items(Items(items), range(len(items)), **options).axes


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_boxes_masks_and_names():
    masks = np.zeros((2, 8, 10), np.uint8)
    masks[0, 1:3, 2:6] = 1
    truth = InstanceData(
        bboxes=torch.tensor([[2.0, 1, 6, 3], [0, 0, 9, 7]]),
        labels=torch.tensor([1, 5]),
        masks=BitmapMasks(masks, 8, 10),
    )
    sample = BaseDataElement(gt_instances=truth, metainfo=dict(img_path="a/room.jpg"))
    (axes,) = drawn(dict(inputs=INPUTS, data_samples=sample))
    image, *shown = (each.get_array() for each in axes.images)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal([picture[..., 3] > 0 for picture in shown], masks > 0)
    boxes = [(box.get_x(), box.get_y(), box.get_width(), box.get_height()) for box in axes.patches]
    assert boxes == [(2, 1, 4, 2), (0, 0, 9, 7)]
    assert texts(axes) == ["lamp", "class 5"]
    assert axes.get_title() == "0: 2 objects, room.jpg"


def test_images_without_objects():
    truth = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    (axes,) = drawn(dict(inputs=INPUTS, data_samples=BaseDataElement(gt_instances=truth)))
    assert not axes.patches
    assert axes.get_title() == "0: 0 objects"


@pytest.mark.parametrize("name", ["data", "sem_seg"])
def test_semantic_maps(name):
    labels = torch.zeros(1, 8, 10, dtype=torch.long)
    labels[0, :, 6:], labels[0, 0] = 1, 255
    maps = PixelData(**{name: labels})
    (axes,) = drawn(dict(inputs=INPUTS, data_samples=BaseDataElement(gt_sem_seg=maps)))
    assert texts(axes) == ["chair", "lamp"]  # 255 is no class
    shown = [each.get_array()[..., 3] > 0 for each in axes.images[1:]]
    np.testing.assert_array_equal(shown, [labels[0] == 0, labels[0] == 1])


def test_maps_of_the_size_of_their_files():
    """A test resizes the image alone."""
    labels = torch.zeros(1, 16, 30, dtype=torch.long)
    labels[0, :, 15:] = 1
    (axes,) = drawn(dict(inputs=INPUTS, data_samples=BaseDataElement(gt_sem_seg=PixelData(data=labels))))
    chair, lamp = (each.get_array()[..., 3] > 0 for each in axes.images[1:])
    assert chair.shape == (8, 10)
    assert chair[:, :5].all()
    assert np.array_equal(lamp, ~chair)


def test_images_of_classes_are_set_back():
    dataset = Items([dict(image=PackImage().apply(IMAGE), label=1), dict(image=IMAGE, label=0)])
    dataset.transform = Compose([PackImage()])
    first, second = B.draw_items(dataset, [0, 1]).axes
    np.testing.assert_array_equal(first.images[0].get_array(), IMAGE)
    np.testing.assert_array_equal(second.images[0].get_array(), IMAGE)
    assert first.get_title() == "0: lamp"
    del dataset.transform
    (axes,) = B.draw_items(dataset, [0]).axes  # of unknown levels: from black to white
    found = axes.images[0].get_array()
    assert (found.min(), found.max()) == (0, 255)


def test_clouds_and_meshes():
    pos = torch.rand(40, 3)
    cloud = Data(pos=pos, normal=torch.nn.functional.normalize(pos, dim=1), y=torch.tensor(0), name="stool")
    mesh = Data(pos=torch.eye(3), face=torch.tensor([[0], [1], [2]]))
    first, second = drawn(cloud, mesh)
    assert first.get_title() == "0: stool, chair, 40 points"
    assert second.get_title() == "1, 3 points"
    for axes in (first, second):
        picture = axes.images[0].get_array()
        assert picture[..., 3].max() == 1
        assert picture[0, 0, 3] == 0


def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"item 0 of Items is a dict with points; shown can be clouds \(pos\), images"):
        drawn(dict(points=1))


def test_choosing():
    dataset = range(100)
    assert B.choose(dataset, 3) == [0, 50, 99]
    assert B.choose(range(2), 15) == [0, 1]
    assert B.choose(dataset, 3, [7, 2]) == [7, 2]
    with pytest.raises(ValueError, match="item 100: the data set has items 0 to 99"):
        B.choose(dataset, 3, [100])
    with pytest.raises(ValueError, match="count is 0"):
        B.choose(dataset, 0)


def test_data_of_a_config():
    loader = dict(dataset=dict(type="Furniture14", split="test"))
    cfg = Config(dict(val_dataloader=loader))
    assert len(B.config_dataset(cfg, "val")) == 122
    with pytest.raises(ValueError, match="no train_dataloader; it has those of val"):
        B.config_dataset(cfg)
    with pytest.raises(ValueError, match="split is 'trial'; it may be"):
        B.config_dataset(cfg, "trial")


def test_windows_need_a_display(monkeypatch):
    for display in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(display, raising=False)
    for item in (dict(image=IMAGE), Data(pos=torch.rand(4, 3))):
        with pytest.raises(RuntimeError, match=r"cannot open a window.* --out"):
            B.show(Items([item]), [0])
