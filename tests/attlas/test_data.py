"""Draws repeat, whatever happens around them; and what every data set does is done by their base."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attlas import data
from attlas.data import EpochSampler, Items, KnownClasses, existing_root, find_files, first_split, seeded


def test_seeded_is_pure_and_gives_the_generators_back():
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    def draw(*key):
        with seeded(*key):
            return random.random(), np.random.rand(), torch.rand(()).item()

    before = state()
    first = draw(1, 2, 3)
    assert state() == before
    assert draw(1, 2, 3) == first
    for other in (draw(1, 2, 4), draw(0, 2, 3), draw(1, 0, 3)):
        assert all(a != b for a, b in zip(other, first))
    with pytest.raises(RuntimeError, match="shape"), seeded(5):
        torch.rand(3).view(2)
    assert state() == before


class Boxes(Items):
    """Items without one label: as many boxes as the item's number says, each of one of two classes."""

    def __init__(self, size=4, transforms=(), seed=0):
        super().__init__("train", size, ("cat", "dog"), transforms, seed)

    def get(self, item):
        return dict(boxes=torch.zeros(item, 4), labels=torch.arange(item) % 2, item=item)


def jitter(data):
    data["boxes"] = data["boxes"] + torch.rand(()) + random.random() + np.random.rand()
    return data


def test_a_draw_is_a_function_of_seed_epoch_and_item():
    dataset = Boxes(transforms=[jitter])
    first = dataset[3]["boxes"]
    random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(dataset[3]["boxes"], first)
    assert torch.equal(dataset[-1]["boxes"], first)
    assert torch.equal(Boxes(9, transforms=[jitter])[3]["boxes"], first)
    for other in (dataset[7], dataset[11], Boxes(transforms=[jitter], seed=1)[3]):
        assert other["item"] == 3
        assert not torch.equal(other["boxes"], first)
    assert [data["item"] for data in dataset] == [0, 1, 2, 3]


@pytest.mark.parametrize("index", [slice(2, 4), [2, 3], torch.tensor([2, 3]), np.array([False, False, True, True])])
def test_a_part_keeps_its_draws(index):
    dataset = Boxes(transforms=[jitter])
    part = dataset[index]
    assert len(part) == 2
    assert part.metainfo == dataset.metainfo == dict(classes=("cat", "dog"))
    assert [data["item"] for data in part] == [2, 3]
    assert torch.equal(part[1]["boxes"], dataset[3]["boxes"])
    assert torch.equal(part[2 * 2 + 1]["boxes"], dataset[2 * 4 + 3]["boxes"])  # in the third epoch too
    assert len(dataset) == 4


def test_errors_name_the_item_and_what_may_be():
    def fail(data):
        raise ValueError("no box is left")

    with pytest.raises(ValueError, match=r"^Boxes train\[2\]: no box is left$"):
        Boxes(transforms=[fail])[6]
    with pytest.raises(IndexError, match="index -5 of a data set of 4 items"):
        Boxes()[-5]
    with pytest.raises(ValueError, match="Boxes: split 'train' is empty"):
        Boxes(0)
    with pytest.raises(ValueError, match="seed is -1; it must be an integer of at least 0"):
        Boxes(seed=-1)
    with pytest.raises(TypeError, match="transforms holds 'Jitter'; its entries may be"):
        Boxes(transforms=["Jitter"])


def test_epoch_sampler_repeats_after_a_resumption():
    indices = []
    for _ in range(2):
        sampler = EpochSampler(range(5), shuffle=True, seed=1)
        sampler.set_epoch(7)
        indices.append(list(sampler))
    assert sorted(indices[0]) == [35, 36, 37, 38, 39]
    assert indices[0] == indices[1]


# --- folders


def plant(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(root, split="all", test_share=0.5):
    """{class: names of its files} of the suffixes .a and .b, relative to the root."""
    classes, files, labels = find_files("Here", root, split, (".a", ".b"), "<class>/<file>.", test_share)
    return {name: [f[len(f"{root}/") :] for f, y in zip(files, labels) if classes[y] == name] for name in classes}


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
@pytest.mark.parametrize("layout", ["{part}/{kind}/1.a", "{kind}/{part}/1.a", "{kind}/{part}/deep/1.a"])
def test_splits_by_any_name(tmp_path, train, val, layout):
    kinds = ["cat", "test"] if layout.startswith("{part}") else ["cat", "dog"]  # within a split any name is a class
    plant(tmp_path, *(layout.format(part=part, kind=kind) for part in (train, val) for kind in kinds))
    assert found(tmp_path, "train") == {kind: [layout.format(part=train, kind=kind)] for kind in kinds}
    assert found(tmp_path, "val") == {kind: [layout.format(part=val, kind=kind)] for kind in kinds}
    assert sum(map(len, found(tmp_path).values())) == 4
    assert first_split(found, tmp_path, ("test", "val")) == "val"
    with pytest.raises(FileNotFoundError, match=r"Here: .* (has no folder|holds no file of split) 'test'"):
        found(tmp_path, "test")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train/cat/1.a", "Train/cat/1.a"], r"holds 'Train', 'train': which is the split 'train'\?"),
        (["val/cat/1.a", "valid/cat/1.a", "train/cat/1.a"], r"holds 'val', 'valid': which is the split 'val'\?"),
        (["train/1.a", "bus/1.a"], r"holds 'train', as splits are called, beside 'bus': are these splits or classes\?"),
        (["bus/test/1.a", "bus/more/1.a", "car/1.a"], r"bus holds 'test', as splits are called, beside 'more'"),
        (
            ["set/train/cat/1.a", "set/val/cat/1.a"],
            r"holds one folder, 'set', and that holds 'train', 'val'.*root is.*/set$",
        ),
        (["set/cat/1.a", "set/dog/1.a"], r"holds one folder, 'set', and that holds 'cat', 'dog'\. As one class\?"),
        (["train/Cat/1.a", "val/cat/1.a"], r"the splits spell one class 'Cat', 'cat'\. Rename one"),
    ],
)
def test_folders_that_may_be_classes_or_not_are_refused(tmp_path, names, words):
    plant(tmp_path, *names)
    with pytest.raises(ValueError, match=words):
        found(tmp_path)


def test_folders_beside_the_splits_without_data_do_not_matter(tmp_path):
    plant(tmp_path, "train/cat/1.a", "notes/readme.txt", ".git/1.a", "__MACOSX/train/cat/1.a")
    assert found(tmp_path) == {"cat": ["train/cat/1.a"]}
    plant(tmp_path / "letters", "A/1.a", "a/1.a")  # a data set of letters
    assert found(tmp_path / "letters") == {"A": ["A/1.a"], "a": ["a/1.a"]}


def test_what_is_left_out_is_counted(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(data, "_tell", told.append)
    plant(tmp_path, "cat/1.A", "cat/deep/2.b", "dog/1.a")
    assert found(tmp_path) == {"cat": ["cat/1.A", "cat/deep/2.b"], "dog": ["dog/1.a"]}
    assert told == []
    plant(tmp_path, "cat/.ipynb_checkpoints/1.a", "cat/deep/@eaDir/1.a", "cat/3.gif", "cat/4.gif", "dog/\x1b", "5.a")
    plant(tmp_path, "cat/.hidden.a")
    assert found(tmp_path) == {"cat": ["cat/1.A", "cat/deep/2.b"], "dog": ["dog/1.a"]}
    assert told == [
        f"Here {tmp_path}, all: 3 files in 2 classes; left out: 2 .gif, 2 hidden folders, 1 in no folder of a class or "
        "split, 1 without a suffix"
    ]
    with pytest.raises(FileNotFoundError, match=r"read are \.c; left out are 2 \.a, 2 \.gif, 2 hidden folders, 1 \.b"):
        find_files("Here", tmp_path, "all", (".c",), "", 0.5)


def test_links_are_followed_and_cycles_end(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(data, "_tell", told.append)
    plant(tmp_path, "store/1.a", "store/2.a", "root/cat/0.a", "root/dog/0.a")
    (tmp_path / "root/dog/session").symlink_to(tmp_path / "store")
    (tmp_path / "root/fox").symlink_to(tmp_path / "store")
    for place, target in (("cat/up", "root"), ("cat/self", "root/cat"), ("dog/twice", "store")):
        (tmp_path / "root" / place).symlink_to(tmp_path / target)
    assert found(tmp_path / "root") == {
        "cat": ["cat/0.a"], "dog": ["dog/0.a", "dog/session/1.a", "dog/session/2.a"], "fox": ["fox/1.a", "fox/2.a"],
    }  # fmt: skip
    assert told[0].endswith("left out: 3 folders that were read already, by a link")


def test_a_folder_that_does_not_exist_names_its_neighbors(tmp_path):
    (tmp_path / "Pictures").mkdir()
    for wrong in ("picures", "picures/train"):
        with pytest.raises(
            FileNotFoundError, match=rf"Here: root .*{wrong}' is not .* It has x\. Near it: .*/Pictures\."
        ):
            existing_root("Here", tmp_path / wrong, "It has x.")
    with pytest.raises(FileNotFoundError, match=rf"The nearest folder that exists is {tmp_path}\."):
        existing_root("Here", tmp_path / "xyz" / "zyx", "")


# --- known classes ---------------------------------------------------------------------------------------------------


def known(**options):
    return KnownClasses(Numbers(12), **options)


class Numbers(Items):
    """Items 0, 1, 2, ... of the classes "zero", "one", "two", in turn; three items show an object."""

    def __init__(self, size, of=dict):
        self.labels, self.of = np.arange(size) % 3, of
        super().__init__("all", size, ("zero", "one", "two"), (), 0)

    def group(self, item):
        return f"object {item % 3}-{item // 9}"

    def get(self, item):
        label = int(self.labels[item])
        return dict(label=label, item=item) if self.of is dict else self.of(y=torch.tensor(label), item=item)

    def draw(self, epoch, item):
        data = self.get(item)
        (data if self.of is dict else vars(data)).update(epoch=epoch)
        return data


def test_only_known_classes_are_kept_and_numbered_anew():
    dataset = KnownClasses(Numbers(12), ("two", "zero"))
    assert dataset.classes == dataset.metainfo["classes"] == ("two", "zero")
    assert [(d["item"], d["label"]) for d in dataset] == [
        (0, 1),
        (2, 0),
        (3, 1),
        (5, 0),
        (6, 1),
        (8, 0),
        (9, 1),
        (11, 0),
    ]
    assert dataset.labels.tolist() == [1, 0] * 4
    assert dataset[3 + 2 * len(dataset)] == dict(item=5, label=0, epoch=2)  # draws stay those of the data set
    assert dataset.get(1) == dict(item=2, label=0)
    assert dataset.name(1) == "Numbers all[2]"
    assert [d["item"] for d in dataset[np.array([1, 3])]] == [2, 5]
    part = KnownClasses(Numbers(12)[np.arange(6, 12)], ("one",))
    assert [d["item"] for d in part] == [7, 10]
    nested = KnownClasses(dataset, ("zero",))
    assert [d["item"] for d in nested] == [0, 3, 6, 9]


def test_other_classes_are_unknown():
    dataset = KnownClasses(Numbers(6), ("one",), unknown=("two",))
    assert [(d["item"], d["label"]) for d in dataset] == [(1, 0), (2, -1), (4, 0), (5, -1)]
    assert [d["label"] for d in KnownClasses(Numbers(6), ("one",), unknown="others")] == [-1, 0, -1] * 2


def test_a_label_may_be_an_attribute():
    item = KnownClasses(Numbers(6, SimpleNamespace), ("two",))[1]
    assert (item.y.dtype, item.y.item(), item.item) == (torch.int64, 0, 5)


def test_objects_are_held_out_whole():
    whole = Numbers(90)
    rest, held = (KnownClasses(whole, ("one", "two"), share=0.3, part=part) for part in ("rest", "held_out"))
    of_rest, of_held = ({d.group(i) for i in range(len(d))} for d in (rest, held))
    assert of_rest.isdisjoint(of_held)
    assert len(of_rest) == 14
    assert len(of_held) == 6  # three of the ten objects of each class
    assert len(rest) + len(held) == 60
    assert [d["item"] for d in held] == [
        d["item"] for d in KnownClasses(whole, ("one", "two"), share=0.3, part="held_out")
    ]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (dict(classes=("zero", "tow")), ValueError, "Did you mean 'two'"),
        (dict(classes="zero"), TypeError, "must be a sequence of names"),
        (dict(classes=()), ValueError, "classes is empty"),
        (dict(classes=("one", "one")), ValueError, "a name twice"),
        (dict(classes=("one",), unknown=("one",)), ValueError, "in classes and in unknown"),
        (dict(classes=("one",), part="val", share=0.5), ValueError, "part is 'val'"),
        (dict(classes=("one",), share=0.5), ValueError, "share has parts"),
        (dict(classes=("one",), part="rest"), ValueError, "a part is of a share"),
        (dict(classes=("one",), part="rest", share=2.0), ValueError, r"must lie in \[0, 1\]"),
        (dict(classes=("one",), part="rest", share=1.0), ValueError, "is empty"),
    ],
)
def test_known_classes_that_cannot_be_are_refused(options, error, said):
    with pytest.raises(error, match=said):
        known(**options)


def test_known_classes_need_labels():
    plain = Numbers(6)
    plain.labels = None
    with pytest.raises(ValueError, match="Numbers have no labels"):
        KnownClasses(plain, ("one",))
