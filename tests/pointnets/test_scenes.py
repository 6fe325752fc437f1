"""Rooms as S3DIS has them, and the blocks that a scene is labelled in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from part_files import SEGMENTER
from torch import nn
from torch_geometric.data import Data

from attlas.config import load_config
from attlas.inference import Inferencer
from attlas.pointnets.datasets import ShapeNetPart
from attlas.pointnets.scenes import S3DIS, RandomBlock, SegmentedClouds, balls, blocks
from attlas.pointnets.segmenter import PointSegmenter
from attlas.registry import MODELS

ROOT = Path(__file__).parents[2]
ROOM = {"wall_1": 5, "chair_1": 4, "chair_2": 3, "stairs_1": 2, "floor_1": 6}  # points of each object


def scene(size=3000, seed=0):
    """Points in a room of 4 x 2.5 x 3 meters, z up, not at the origin."""
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.random((size, 3)) * (4.0, 2.5, 3.0) + (10, -7, 2)).float()


def write_room(folder, objects=None):
    """Write the objects of a room; their x is the number of the point, so that the order shows."""
    (folder / "Annotations").mkdir(parents=True)
    for name, count in (objects or ROOM).items():
        rows = [f"{i / 8} {len(name)}.5 0.25 200 10 0" for i in range(count)]
        (folder / "Annotations" / f"{name}.txt").write_text("\n".join(rows) + "\n")
    (folder / f"{folder.name}.txt").write_text("0 0 0 1 1 1\n")


@pytest.mark.parametrize(("size", "overlap", "up"), [(1.0, 2, "z"), (1.0, 1, "z"), (0.9, 3, "y"), (50.0, 2, "x")])
def test_blocks_hold_every_point(size, overlap, up):
    points = scene()
    plan = [axis for axis in range(3) if "xyz"[axis] != up]
    counts = torch.zeros(len(points), dtype=torch.int64)
    for numbers, origin in blocks(points, size, overlap, up, least=1):
        assert len(set(numbers.tolist())) == len(numbers)
        counts[numbers] += 1
        inside = points[numbers] - origin
        assert inside[:, plan].abs().max() <= size / 2 + 1e-5
        assert inside["xyz".index(up) == torch.arange(3).repeat(len(numbers), 1)].min() >= 0  # above the lowest point
    assert counts.min() >= 1
    assert counts.max() == (overlap**2 if size < 2 else 1)
    if (size, overlap) == (1.0, 2):  # twice along each axis, but for the rim
        low, high = points.amin(0)[plan] + 0.5, points.amin(0)[plan] + torch.tensor([3.5, 2.0])
        middle = ((points[:, plan] > low) & (points[:, plan] < high)).all(1)
        assert (counts[middle] == 4).all()


def test_blocks_of_few_points_are_filled_up_with_the_nearest():
    points = torch.cat([scene(600) * 0.1, torch.tensor([[30.0, 0, 0]])])  # one point, far away
    found = list(blocks(points, 1.0, 2, "z", least=50))
    assert all(len(numbers) >= 50 and len(set(numbers.tolist())) == len(numbers) for numbers, _ in found)
    (alone,) = [numbers for numbers, _ in found if 600 in numbers][:1]
    nearest = (points[:600, 0] - 30).square().add((points[:600, 1]).square())
    assert len(alone) == 50
    assert nearest[alone[alone < 600]].max() <= nearest.sort().values[60]


@pytest.mark.parametrize(("size", "overlap"), [(1.0, 1), (1.5, 2), (100.0, 1)])
def test_balls_hold_every_point_and_turn_with_the_scene(size, overlap):
    points = scene().double()
    found = list(balls(points, size, overlap, least=1))
    centers = torch.stack([center for _, center in found])
    distance = torch.cdist(points, centers)
    assert (distance.amin(1) <= size / 2 / overlap).all()
    for number, (numbers, _) in enumerate(found):
        assert numbers.tolist() == (distance[:, number] <= size / 2).nonzero().squeeze(1).tolist()
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    turned = list(balls(points @ turn + 5, size, overlap, least=1))
    assert [numbers.tolist() for numbers, _ in turned] == [numbers.tolist() for numbers, _ in found]


def test_balls_of_few_points():
    points = scene()
    for numbers, center in balls(points, 0.5, 1, least=50):
        distance = (points - center).norm(dim=1)
        assert len(numbers) >= 50
        assert set(numbers.tolist()) >= set((distance < 0.25).nonzero().squeeze(1).tolist())
    assert [numbers.tolist() for numbers, _ in balls(points[:1], 1.0)] == [[0]]
    assert [len(numbers) for numbers, _ in balls(points[:1].repeat(5, 1), 1.0)] == [5]
    with pytest.raises(ValueError, match="unit of the balls"):
        next(balls(scene() * 1000, 1.0, least=512))


def test_a_scene_in_another_unit_is_refused():
    with pytest.raises(ValueError, match=r"its 3,000 points lie in 399\d x 249\d in plan, .* unit of the blocks\?"):
        next(blocks(scene() * 1000, 1.0, least=256))
    points = torch.cat([scene(), torch.tensor([[1e9, 0, 0]])])
    with pytest.raises(ValueError, match="does some point lie far outside"):
        next(blocks(points, 1.0))
    near = [(set(numbers.tolist()), origin.tolist()) for numbers, origin in blocks(scene(), 1.0, least=1)]
    points[-1, 0] = 1e7
    wide = [set(numbers.tolist()) for numbers, _ in blocks(points, 1.0, least=1)]  # costs what has points
    assert wide[-1] == {3000}
    assert len(near) < len(wide) < 2 * len(near)


def test_inference_goes_on_after_a_scene_in_another_unit(tmp_path):
    torch.manual_seed(0)
    model = dict(SEGMENTER["model"], block=1.0, network=dict(SEGMENTER["model"]["network"], num_categories=0))
    config = Config(dict(SEGMENTER, model=model))
    config.test_dataloader.dataset.dataset.transforms = []
    path = tmp_path / "scenes.pth"
    meta = dict(cfg=config.pretty_text, dataset_meta=dict(classes=ShapeNetPart.CLASSES))
    torch.save(dict(meta=meta, state_dict=MODELS.build(config.model).state_dict()), path)
    points = scene(600).numpy()
    wide, good = Inferencer(path)([points * 1000, points])
    assert "unit of the blocks" in wide["error"]
    assert len(good["labels"]) == 600
    assert good["up"] == "z"


@MODELS.register_module()
class NormalsAsLogits(nn.Module):
    """By which one sees which point is which, wherever its block has put it."""

    num_categories = 0

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, points, normals, category=None):
        assert points.shape[1] == 256
        assert points[..., :2].abs().max() < 0.6
        assert points[..., 2].min() >= 0
        return normals * self.weight


def test_every_point_of_a_scene_is_labelled_in_its_place():
    points = scene()
    normals = nn.functional.normalize(torch.randn(len(points), 3), dim=1)
    network = dict(type="NormalsAsLogits")
    model = PointSegmenter(network, num_points=256, block=1.0, draws=3, data_preprocessor=None).eval()
    cloud = Data(pos=points, normal=normals, y=torch.tensor(0), cloud=0, point_label=torch.zeros(len(points)).long())
    (found,) = model.test_step([cloud])
    torch.testing.assert_close(found["log_probs"], normals.log_softmax(-1))
    thin = torch.cat([points, points[:30] * 0.1 + torch.tensor([14.0, -7, 2])])  # and 30 points beyond the wall
    large = PointSegmenter(network, num_points=1024, block=1.0)
    assert all(len(set(draw.tolist())) == 1024 for draw in large._draws(thin)[0])  # neighbors, no copies
    for options, message in (
        (dict(block=-1.0), "block is -1.0"),
        (dict(up="w"), "up is 'w'"),
        (dict(overlap=0), "overlap"),
    ):
        with pytest.raises(ValueError, match=message):
            PointSegmenter(network, **options)


def test_a_random_block_takes_its_points_with_their_labels():
    points = scene()
    torch.manual_seed(0)
    cloud = Data(pos=points.clone(), point_label=torch.arange(len(points)))
    cloud.color = cloud.point_label.view(-1, 1).expand(-1, 3)
    block = RandomBlock(1.0, 400)(cloud)
    assert torch.equal(block.color[:, 0], block.point_label)
    assert block.pos.shape == (400, 3)
    moved = points[block.point_label] - block.pos
    torch.testing.assert_close(moved, moved[:1].expand(400, -1), atol=1e-5, rtol=0)
    assert block.pos[:, :2].abs().max() <= 0.5 + 1e-5
    assert block.pos[:, 2].min() >= 0
    whole = RandomBlock(1.0, None)(Data(pos=points.clone(), point_label=torch.arange(len(points))))
    assert len(set(whole.point_label.tolist())) == len(whole.pos) >= 100
    ball = RandomBlock(1.0, None, shape="ball")(Data(pos=points.clone(), point_label=torch.arange(len(points))))
    assert ball.pos.norm(dim=1).max() <= 0.5
    origin = points[ball.point_label] - ball.pos
    torch.testing.assert_close(origin, origin[:1].expand_as(origin))
    assert len(ball.pos) == ((points - origin[0]).norm(dim=1) <= 0.5).sum()
    alone = RandomBlock(1.0, 16)(Data(pos=torch.ones(1, 3), point_label=torch.tensor([7])))
    assert alone.point_label.tolist() == [7] * 16
    steps = load_config(ROOT / "configs/_base_/s3dis.py").train_dataloader.dataset.transforms
    assert [step.type for step in steps[:3]] == ["RandomBlock", "EstimateNormals", "RandomPoints"]
    assert steps[0].num is None
    with pytest.raises(ValueError, match="size is 0"):
        RandomBlock(size=0)


def test_s3dis_as_published(tmp_path):
    write_room(tmp_path / "Area_1/office_1")
    write_room(tmp_path / "Area_5/hallway_2", {"ceiling_1": 4, "clutter_10": 2})
    write_room(tmp_path / "Area_6/lobby_1")
    assert len(S3DIS.CLASSES) == 13
    assert S3DIS(tmp_path, "train").names == ["Area_1/office_1", "Area_6/lobby_1"]
    assert S3DIS(tmp_path, "test", test_area=6).names == ["Area_6/lobby_1"]
    assert len(S3DIS(tmp_path, "all")) == 3
    rooms = S3DIS(tmp_path, "train", cache=tmp_path / "cache")
    for _ in ("parsed", "from the cache"):
        room = rooms[0]
        names = sorted(ROOM)
        classes = [{"stairs": "clutter"}.get(n.split("_")[0], n.split("_")[0]) for n in names]
        expected = [S3DIS.CLASSES.index(c) for c, n in zip(classes, names) for _ in range(ROOM[n])]
        assert room.point_label.tolist() == expected
        assert room.pos[:, 0].tolist() == [i / 8 for n in names for i in range(ROOM[n])]
        assert room.get("normal") is None
        assert room.color.tolist() == [[200, 10, 0]] * sum(ROOM.values())
    assert len(list((tmp_path / "cache").iterdir())) == 1
    write_room(tmp_path / "other", {"chair_9": 7})
    (tmp_path / "other/Annotations/chair_9.txt").rename(tmp_path / "Area_1/office_1/Annotations/chair_9.txt")
    assert len(rooms[0].pos) == sum(ROOM.values()) + 7  # what changed is parsed again


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("lamp_1", "0 0 0 1 1 1\n", r"lamp_1\.txt: 'lamp' is no class; these are ceiling"),
        ("chair_1", "0 0 0 1 1 256\n", r"chair_1\.txt: colors of 0 to 255 were expected, not 1 to 256"),
        ("chair_1", "0 0 0 1 1 0\n0 0 0 1 0.5 1\n", r"chair_1\.txt: row 2 holds a color that is no whole number"),
        ("chair_1", "0 0 0\n", r"chair_1\.txt: columns x y z r g b were expected, not an array of shape \(1, 3\)"),
        ("chair_1", "0 0 0 1 1 1\n0 nan 0 1 1 1\n", r"chair_1\.txt: row 2 holds NaN"),
        ("chair_1", "0 0 0 1 1 1\n0 0 0 1 1\n", r"chair_1\.txt: "),
        ("chair_1", "0 0 0 18\x107 1 1\n", r"chair_1\.txt: "),
        ("chair_1", "", r"chair_1\.txt: "),
    ],
)
def test_s3dis_names_the_file_that_is_wrong(tmp_path, file, text, message):
    write_room(tmp_path / "Area_5/office_1", {"wall_1": 3})
    (tmp_path / f"Area_5/office_1/Annotations/{file}.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        S3DIS(tmp_path, "test")[0]


def test_s3dis_without_what_it_needs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no folder Area_5\. Expected there: Area_1/office_1/Annotations"):
        S3DIS(tmp_path, "test")
    (tmp_path / "Area_5/office_1/Annotations").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"holds no \.txt file of an object"):
        S3DIS(tmp_path, "test")[0]
    with pytest.raises(ValueError, match="S3DIS: split 'train' is empty"):
        S3DIS(tmp_path, "train")


def test_clouds_of_your_own(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"classes\.txt is missing\. Expected there: classes\.txt beside train"):
        SegmentedClouds(tmp_path)
    (tmp_path / "classes.txt").write_text("floor\nlamp\n")
    with pytest.raises(FileNotFoundError, match=r"train holds no \.npz"):
        SegmentedClouds(tmp_path)
    path = tmp_path / "train/room.npz"
    for arrays, message in (
        (dict(pos=np.eye(3)), r"room\.npz: arrays pos and point_label were expected, and got pos"),
        (dict(pos=np.eye(3), point_label=[0, 2, 1]), r"room\.npz: 1 of 3 .* labels 2 .*row 2\); those of classes\.txt"),
        (dict(pos=np.eye(3), point_label=[0, 1]), r"room\.npz is not a readable shape: labels of 3 points"),
        (dict(pos=np.eye(3) * np.nan, point_label=[0, 1, 1]), r"room\.npz is not a readable shape: 3 of 3 points"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=message):
            SegmentedClouds(tmp_path)[0]
    np.savez(path, pos=np.eye(3), point_label=[0, 1, 1])
    clouds = SegmentedClouds(tmp_path)
    assert clouds.metainfo == dict(classes=("floor", "lamp"))
    assert clouds[0].point_label.tolist() == [0, 1, 1]
    (tmp_path / "classes.txt").write_text("floor\nfloor\n")
    with pytest.raises(ValueError, match="must name each class once"):
        SegmentedClouds(tmp_path)
