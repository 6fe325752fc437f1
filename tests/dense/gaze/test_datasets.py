"""Scanpaths in files of the layout that the authors' preprocessing reads, objects of fixations, and crops."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate

from attlas.dense.gaze.datasets import (
    BookCovers,
    CutObjects,
    ShelfQuestions,
    mask_boxes,
    objects_of_points,
    read_index,
)
from attlas.dense.gaze.preprocessing import GazePreprocessor


def write(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), rgb[..., ::-1])


BOXES = [[5 + 30 * c, 4 + 40 * r, 25 + 30 * c, 34 + 40 * r] for r in range(2) for c in range(3)]


@pytest.fixture
def covers(tmp_path):
    """Two pictures of six covers; each cover has a color of its own, and three people looked."""
    table = {}
    for number, name in enumerate(("a.png", "b.png")):
        image, mask = np.zeros((80, 100, 3), np.uint8), np.zeros((80, 100, 3), np.uint8)
        for place, (x1, y1, x2, y2) in enumerate(BOXES):
            image[y1:y2, x1:x2] = (40 * place, 10, 200)
            mask[y1 + place % 2 : y2, x1:x2] = 255  # edges of a row differ by less than ten pixels
        write(tmp_path / "images" / name, image)
        write(tmp_path / "binarymask" / f"14x6-{name}", mask)
        target = BOXES[4 - number]
        table[name] = dict(
            ground_truth=[dict(zip(("xmin", "ymin", "xmax", "ymax"), [target[0] + 2, *target[1:]]))],
            fixations={
                "p1": [[10, 10], [98, 20], [45, 60]],
                "p2": [[15, 20], [16, 21]],
                "p3": [[50, 50]] * (3 + number),
            },
            target="target_1",
        )
    (tmp_path / "amazon_data.json").write_text(json.dumps(table))
    return tmp_path


def test_book_covers(covers):
    cut = CutObjects(size=(30, 26))
    data = BookCovers(covers, "all", transforms=[cut], longest=None)
    assert len(data) == 6
    assert (data.get(0)["boxes"][:, [0, 2, 3]] == np.array(BOXES)[:, [0, 2, 3]]).all()
    item = data[0]
    assert item["path"].tolist() == [0, 2, 4]  # the second lies in no box, and nearest to the third
    assert item["target"] == 4
    assert data[3]["target"] == 3
    assert item["crops"].shape == (6, 3, 30, 26)
    assert [crop[:, 15, 13].tolist() for crop in item["crops"]] == [[40 * place, 10, 200] for place in range(6)]
    assert item["name"] == "a.png, p1"
    assert [len(BookCovers(covers, split, longest=None)) for split in ("train", "val", "test")] == [4, 1, 1]
    assert len(BookCovers(covers, "all", longest=1)) == 3  # lengths 3 2 3 3 2 4, mean 2.83, deviation 0.69


def test_an_index_orders_the_trials(covers, tmp_path):
    index = tmp_path / "split.txt"
    index.write_text("5\n4\n3\n2\n1\n0\n")
    data = BookCovers(covers, "test", index=index, longest=None)
    assert [trial.person for trial in data.trials] == ["p1"]
    for text, message in (("5\n5\n", "each once"), ("9\n", "from 0 to 5"), ("x\n", "no number of a trial")):
        index.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_index(index, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(fixations={"p": [[1, float("nan")]]}), "of finite x and y"),
        (dict(fixations={"p": []}), "one at least"),
        (dict(ground_truth=[]), "index out of range"),
        (dict(ground_truth=[dict(xmin=90, ymin=70, xmax=99, ymax=79)]), "overlaps with no cover"),
    ],
)
def test_bad_tables_are_refused(covers, change, message):
    table = json.loads((covers / "amazon_data.json").read_text())
    table["a.png"] |= change
    (covers / "amazon_data.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=message):
        BookCovers(covers)


@pytest.mark.parametrize(("shelf", "question", "objects"), [("yogurt", "Q3_2", 27), ("wine", "Q1_7", 22)])
def test_shelf_questions(tmp_path, shelf, question, objects):
    image = np.random.default_rng(0).integers(0, 256, (1050, 1680, 3), dtype=np.uint8)
    write(tmp_path / "img/Question" / f"{question}.png", image)
    rows = [
        (7, "s1", question, 5, 3.0),
        (7, "s1", question, 5, objects),
        (8, "s2", question, 2, 2),
        (9, "s1", "Q2_1", 1, 1),
    ]
    text = "ID,Sub_ID,Question,T_Package,Choice\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    (tmp_path / "fixations.csv").write_text(text)
    data = ShelfQuestions(tmp_path, "all", shelf=shelf, transforms=[CutObjects((34, 29), pad=3)])
    assert [trial.path for trial in data.trials] == [[2, objects - 1], [1]]
    assert data[0]["target"] == 4
    boxes = data.get(0)["boxes"]
    assert boxes.shape == (objects, 4)
    assert boxes[-1, 3] == 1050  # the shelf stands at the lower edge
    assert boxes[0, 1] == {"yogurt": 1050 - 3 * 305, "wine": 1050 - 2 * 449}[shelf]
    crops = data[0]["crops"]
    assert crops.shape == (objects, 3, 34, 29)
    assert (crops[..., :3] == 255).all() and (crops[..., 26:] == 255).all()  # noqa: PT018
    (tmp_path / "fixations.csv").write_text(text + f"8,s2,{question},2,{objects + 1}\n")
    with pytest.raises(ValueError, match="trial 8 names an object outside"):
        ShelfQuestions(tmp_path, shelf=shelf)
    (tmp_path / "fixations.csv").write_text("ID,Choice\n")
    with pytest.raises(ValueError, match="lacks the columns Sub_ID, Question, T_Package"):
        ShelfQuestions(tmp_path, shelf=shelf)
    with pytest.raises(FileNotFoundError, match=r"fixations.csv does not exist|is not a folder"):
        ShelfQuestions(tmp_path / "img")


def test_objects_of_points():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [40, 0, 50, 10]])
    points = np.array([[7, 5], [12, 5], [30, 5], [0, 0], [10, 10]])
    assert objects_of_points(points, boxes).tolist() == [0, 1, 2, 0, 0]
    with pytest.raises(ValueError, match="boxes are"):
        objects_of_points(points, np.zeros((0, 4)))
    assert mask_boxes(np.zeros((9, 9), np.uint8)).shape == (0, 4)


def scene(**changes):
    image = np.arange(80 * 100 * 3, dtype=np.uint32).astype(np.uint8).reshape(80, 100, 3)
    return dict(image=image, boxes=BOXES, target=1, path=[0, 1], name="x") | changes


def test_crops_with_cells():
    item = CutObjects((30, 26), grid=(4, 5))(scene())
    assert item["cells"].tolist() == [[0, 0], [0, 2], [0, 3], [2, 0], [2, 2], [2, 3]]
    same = CutObjects((30, 20))(scene())
    assert torch.equal(same["crops"][4].permute(1, 2, 0), torch.from_numpy(scene()["image"][44:74, 35:55]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(boxes=[]), "no objects"),
        (dict(boxes=[[200, 10, 210, 20]]), "outside the picture of 100 x 80"),
        (dict(boxes=[[10, float("nan"), 20, 20]]), "center of box 0"),
        (dict(boxes=[[10, 10, 10, 20]], target=0), "holds no pixel"),
        (dict(target=6), "from 0 to 5"),
        (dict(target=1.5), "must be the number of a box"),
    ],
)
def test_bad_scenes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CutObjects((30, 26))(scene(**change))


def test_batches_are_filled_up_and_scaled():
    cut = CutObjects((30, 26), grid=(4, 5))
    items = [cut(scene()), cut(scene(boxes=BOXES[:2], path=[1]))]
    batch = GazePreprocessor()(pseudo_collate(items))
    assert batch["crops"].shape == (2, 6, 3, 30, 26)
    assert batch["counts"].tolist() == [6, 2]
    assert torch.equal(batch["crops"][1, :2], items[1]["crops"].float() / 255)
    assert batch["paths"][1].tolist() == [1]
    amazon = GazePreprocessor("amazon")(pseudo_collate(items[:1]))
    assert amazon["counts"] is None
    assert torch.equal(amazon["crops"][0, 0, 0], items[0]["crops"][0, 2].float())  # blue first, 0 to 255
    shelf = GazePreprocessor("shelf")(pseudo_collate(items))["crops"][0]
    assert (shelf.amin((1, 2, 3)) == 0).all()
    assert (shelf.amax((1, 2, 3)) == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(path=torch.tensor([], dtype=torch.int64)), "the path is empty"),
        (dict(path=torch.tensor([6])), "outside the scene of 6 objects"),
        (dict(crops=torch.zeros(0, 3, 30, 26, dtype=torch.uint8)), "has no objects"),
        (dict(crops=torch.zeros(6, 3, 30, 26)), "must be uint8"),
    ],
)
def test_bad_items_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GazePreprocessor()(pseudo_collate([CutObjects((30, 26))(scene()) | change]))
    with pytest.raises(ValueError, match="legacy_scale"):
        GazePreprocessor("amazn")
