import gzip
import pickle
import random
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from attlas.backbones.classification import datasets as D
from attlas.data import build_transforms
from attlas.registry import DATASETS

ROOT = Path(__file__).parents[3]
RNG = np.random.default_rng(0)


def picture(*shape, high=256) -> np.ndarray:
    return RNG.integers(0, high, shape, dtype=np.uint8)


def put(path: Path, image: np.ndarray, **options) -> Path:
    """Writes an image (red, green, blue) in the format that the path's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = [flag for name, value in options.items() for flag in (getattr(cv2, name), value)]
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image, flags)
    return path


def idx(magic: int, array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """Five images to train on, packed, and two to test, plain, in Fashion-MNIST's files."""
    arrays = {}
    for part, count in (("train", 5), ("t10k", 2)):
        arrays[part] = picture(count, 28, 28), (np.arange(count) % 10).astype(np.uint8)
        for kind, magic, array in zip(("images-idx3", "labels-idx1"), (2051, 2049), arrays[part]):
            content, path = idx(magic, array), tmp_path / f"{part}-{kind}-ubyte"
            path.write_bytes(content) if part == "t10k" else Path(f"{path}.gz").write_bytes(gzip.compress(content))
    return tmp_path, arrays


# --- draws


CROP = [dict(type="RandomCrop", size=20), dict(type="PackImage")]


def same(a: dict, b: dict) -> bool:
    return torch.equal(a["image"], b["image"]) and (a["label"], a["index"]) == (b["label"], b["index"])


def test_a_draw_is_a_function_of_seed_epoch_and_item(mnist):
    dataset = D.FashionMNIST(mnist[0], transforms=CROP)
    first = dataset[1]
    assert {key: type(value) for key, value in first.items()} == dict(image=torch.Tensor, label=int, index=int)
    assert (first["image"].shape, first["image"].dtype) == ((3, 20, 20), torch.float32)
    np.random.seed(5)
    torch.manual_seed(5)
    state = np.random.get_state()[1].tolist(), torch.get_rng_state(), random.getstate()
    assert same(dataset[1], first)
    assert same(dataset[-4], first)
    assert same(pickle.loads(pickle.dumps(dataset))[1], first)
    assert np.random.get_state()[1].tolist() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert random.getstate() == state[2]
    others = [dataset[1 + 5], dataset[1 + 10], D.FashionMNIST(mnist[0], transforms=CROP, seed=1)[1]]
    assert [other["index"] for other in others] == [1, 1, 1]
    assert not any(torch.equal(other["image"], first["image"]) for other in others)
    assert [data["index"] for data in dataset] == [0, 1, 2, 3, 4]
    assert dataset.metainfo == dict(classes=D.FashionMNIST.CLASSES)
    assert dataset.num_classes == 10
    with pytest.raises(IndexError, match="index -6 of a data set of 5 items"):
        dataset[-6]


def epochs(root, num_workers):
    """Two epochs of batches, as MMEngine's Runner makes them."""
    loader = Runner.build_dataloader(
        dict(
            dataset=dict(type="attlas.FashionMNIST", root=str(root), transforms=CROP),
            sampler=dict(type="attlas.EpochSampler", shuffle=True),
            collate_fn=dict(type="default_collate"),
            batch_size=2,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        ),
        seed=3,
    )
    drawn = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        drawn.append(list(loader))
    return drawn


def test_epochs_differ_and_workers_do_not_matter(mnist):
    alone, workers = epochs(mnist[0], 0), epochs(mnist[0], 2)
    for a, b in zip(alone, workers):
        assert sorted(torch.cat([batch["index"] for batch in a]).tolist()) == [0, 1, 2, 3, 4]
        assert all(torch.equal(x[key], y[key]) for x, y in zip(a, b) for key in ("image", "label", "index"))
    assert alone[0][0]["image"].shape == (2, 3, 20, 20)
    assert alone[0][0]["label"].dtype == torch.int64
    first, second = ({int(i): x for b in epoch for i, x in zip(b["index"], b["image"])} for epoch in alone)
    assert not any(torch.equal(first[item], second[item]) for item in range(5))


def test_transforms_may_write_and_errors_name_the_image(mnist):
    def whiten(data):
        data["image"][:] = 255
        return data

    dataset = D.FashionMNIST(mnist[0], transforms=[whiten])
    assert dataset[0]["image"].min() == 255
    assert np.array_equal(dataset.get(0)["image"][..., 1], mnist[1]["train"][0][0])
    with pytest.raises(
        ValueError, match=r"FashionMNIST train\[3\]: CenterCrop of \(40, 40\) got an image of \(28, 28\)"
    ):
        D.FashionMNIST(mnist[0], transforms=[dict(type="CenterCrop", size=40)])[3]
    with pytest.raises(ValueError, match="seed is -1"):
        D.FashionMNIST(mnist[0], seed=-1)
    with pytest.raises(TypeError, match="transforms holds 'PackImage'; its entries may be"):
        D.FashionMNIST(mnist[0], transforms=["PackImage"])


# --- folders


@pytest.fixture
def imagenet(tmp_path):
    """Smooth pictures, which survive JPEG, by their paths below the root."""
    images = {}
    for name in ("train/n02/a.JPEG", "train/n01/b.JPEG", "train/n01/a.JPEG", "val/n01/v.JPEG", "val/n02/deep/v.png"):
        images[name] = cv2.resize(picture(3, 4, 3), (40, 30), interpolation=cv2.INTER_LINEAR)
        put(tmp_path / name, images[name])
    return tmp_path, images


def test_imagenet_layout(imagenet):
    root, images = imagenet
    (root / "test").mkdir()  # of flat files without labels, as ImageNet's
    put(root / "test" / "t.JPEG", images["val/n01/v.JPEG"])
    (root / "train" / "n01" / ".hidden.JPEG").write_bytes(b"")
    (root / "train" / "n01" / "notes.txt").write_bytes(b"")
    dataset = D.ImageFolder(root)
    assert dataset.classes == ("n01", "n02")
    assert [Path(dataset.name(i)).relative_to(root).as_posix() for i in range(3)] == [
        "train/n01/a.JPEG", "train/n01/b.JPEG", "train/n02/a.JPEG",
    ]  # fmt: skip
    assert dataset.labels.tolist() == [0, 0, 1]
    for item, name in enumerate(("train/n01/a.JPEG", "train/n01/b.JPEG", "train/n02/a.JPEG")):
        data = dataset[item]
        assert (data["image"].dtype, data["image"].shape) == (np.uint8, (30, 40, 3))
        assert np.abs(data["image"].astype(int) - images[name]).mean() < 6  # red is red
    val = D.ImageFolder(root, "val")
    assert np.array_equal(val[1]["image"], images["val/n02/deep/v.png"])
    assert len(D.ImageFolder(root, "all")) == 5
    with pytest.raises(FileNotFoundError, match=r"holds no file of split 'test' \(2 class folders; read are \.bmp"):
        D.ImageFolder(root, "test")
    (root / "test" / "t.JPEG").unlink()
    (root / "test").rmdir()
    with pytest.raises(FileNotFoundError, match="has no folder 'test'; it has 'train', 'val'"):
        D.ImageFolder(root, "test")


@pytest.mark.parametrize("in_memory", [False, True])
def test_eurosat_layout(tmp_path, in_memory):
    for name, count in (("Forest", 10), ("River", 5)):
        for i in range(count):
            put(tmp_path / name / f"{name}_{i + 1}.jpg", picture(8, 8, 3))
    train, val, test, whole = (
        D.ImageFolder(tmp_path, split, in_memory=in_memory) for split in ("train", "val", "test", "all")
    )
    assert train.classes == val.classes == ("Forest", "River")
    assert np.bincount(train.labels).tolist() == [8, 4]
    assert np.bincount(val.labels).tolist() == [2, 1]
    names = {dataset: {dataset.name(i) for i in range(len(dataset))} for dataset in (train, val, test, whole)}
    assert names[val] == names[test]
    assert not names[train] & names[val]
    assert names[train] | names[val] == names[whole]
    assert np.array_equal(train[3]["image"], D.read_image(train.name(3)))
    train[3]["image"][:] = 0  # is a copy
    assert train[3]["image"].any()
    assert len(D.ImageFolder(tmp_path, "test", test_share=0.5)) == 7
    with pytest.raises(ValueError, match=r"test_share is 20; it must lie in \[0, 1\]"):
        D.ImageFolder(tmp_path, test_share=20)


def test_broken_pictures_are_named(imagenet):
    root, _ = imagenet
    path = root / "train" / "n01" / "a.JPEG"
    whole = path.read_bytes()
    dataset = D.ImageFolder(root)
    for content, message in [
        (b"", r"a\.JPEG is not a readable image: its 0 bytes do not begin as BMP, JPEG, PNG, PPM, TIFF or WebP"),
        (b"<html>not found</html>", r"a\.JPEG is not a readable image: its 22 bytes do not begin as BMP"),
        (whole[:-20], rf"a\.JPEG is not a readable image: the JPEG breaks off after {len(whole) - 20} bytes"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            dataset[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.JPEG"):
        dataset[0]
    with pytest.raises(ValueError, match=r"ImageFolder.max_pixels is 0; it must be a positive integer"):
        D.ImageFolder(root, max_pixels=0)
    for options in (dict(), dict(in_memory=True)):
        with pytest.raises(ValueError, match=r"JPEG is not .* 40 x 30 pixels are declared, more than max_pixels = 99"):
            D.ImageFolder(root, max_pixels=99, **options)[1]
    with pytest.raises(ValueError, match=r"ImageFolder.split is 'validation'; it may be 'train', 'val', 'test', 'all'"):
        D.ImageFolder(root, "validation")
    with pytest.raises(FileNotFoundError, match=r"nowhere' is not a folder. Expected there: <train\|val\|test>"):
        D.ImageFolder(root / "nowhere")


# --- lists


@pytest.fixture
def domainnet(tmp_path):
    """Three pictures by their paths below the root, and their list."""
    images = {}
    for name in ("clipart/axe/clipart_011_1.png", "clipart/a bee/clipart_020_7.png", "clipart/axe/clipart_011_2.png"):
        images[name] = picture(4, 5, 3)
        put(tmp_path / name, images[name])
    labels = [1, 0, 1]
    lines = [f"{name} {label}" for name, label in zip(images, labels)]
    (tmp_path / "clipart_train.txt").write_text("\n".join(lines) + "\n")
    return tmp_path, images, labels


def test_domainnet_layout(domainnet):
    """In the list's order, whatever else lies in the folders; the folders name the classes."""
    root, images, labels = domainnet
    put(root / "clipart/axe/clipart_011_3.png", picture(4, 5, 3))  # of the list of the tests
    dataset = D.ImageList(root, "clipart_train.txt")
    assert dataset.classes == ("a bee", "axe")
    for item, (name, label) in enumerate(zip(images, labels)):
        data = dataset[item]
        assert np.array_equal(data["image"], images[name])
        assert (data["label"], data["index"], dataset.name(item)) == (label, item, str(root / name))
    assert len(dataset) == 3
    elsewhere = root / "elsewhere" / "some.txt"
    elsewhere.parent.mkdir()
    # as of Windows, with an empty line and a mark of its encoding
    elsewhere.write_bytes("\ufeffclipart/axe/clipart_011_2.png\t2\r\n\r\n".encode())
    dataset = D.ImageList(root, elsewhere, classes=["one", "two", "three"])
    assert (dataset.num_classes, dataset[0]["label"]) == (3, 2)
    assert np.array_equal(dataset[0]["image"], images["clipart/axe/clipart_011_2.png"])
    with pytest.raises(ValueError, match=r"5 x 4 pixels are declared, more than max_pixels = 19"):
        D.ImageList(root, elsewhere, classes=["a", "b", "c"], max_pixels=19)[0]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/axe/a.png",
        "../axe/a.png",
        "clipart/../../axe/a.png",
        "clipart/axe/..",
        r"..\axe\a.png",
        r"clipart\..\..\a.png",
        r"\\server\share\axe\a.png",
        "C:/axe/a.png",
        "C:a.png",
        "clipart/axe/a.png\0",
        "//server/share/axe/a.png",
    ],
)
def test_paths_that_leave_the_root_are_refused(domainnet, path):
    root, *_ = domainnet
    listed = root / "clipart_train.txt"
    listed.write_text(listed.read_text() + f"{path} 0\n")
    for classes in (None, ["bee", "axe"]):
        with pytest.raises(ValueError, match=r"clipart_train\.txt, line 4: '.*' leaves the root\.$"):
            D.ImageList(root, listed, classes=classes)


@pytest.mark.parametrize(
    "line",
    ["clipart/axe/a.png", "7", "clipart/axe/a.png axe", "clipart/axe/a.png -1", "clipart/axe/a.png 1.0",
     "clipart/axe/a.png 1_0", "clipart/axe/a.png \u0663", "clipart/axe/a.png 10000000", "clipart/axe/a.png 1 \x1b[2J",
     "\udcff"],
)  # fmt: skip
def test_lines_that_are_no_path_and_label(domainnet, line):
    root, *_ = domainnet
    listed = root / "clipart_train.txt"
    listed.write_bytes(listed.read_bytes() + f"\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(
        ValueError, match=r"train\.txt, line 5: a path and a label from 0 to 9,999,999 .*, got '"
    ) as found:
        D.ImageList(root, "clipart_train.txt")
    assert "\x1b" not in str(found.value)


def test_lists_that_do_not_name_the_classes(domainnet):
    root, *_ = domainnet
    listed, message = root / "clipart_train.txt", r"Name the classes yourself: classes=\[\.\.\.\]\."
    for lines, found in [
        (["a/x.png 0", "b/x.png 0"], r"label 0 is of the folders 'a' and 'b', so neither names the class\. "),
        (["a/x.png 0", "a/y.png 1"], r"not every label has a folder of its own that names it\. "),
        (["x.png 0"], r"not every label has a folder of its own that names it\. "),
        (["a/x.png 0", "b/x.png 9999999"], r"label 1 has no picture to name its class by\. "),
    ]:
        listed.write_text("\n".join(lines))
        with pytest.raises(ValueError, match=found + message):
            D.ImageList(root, listed)
        if "9999999" not in lines[-1]:
            assert len(D.ImageList(root, listed, classes=["one", "two"])) == len(lines)
    with pytest.raises(ValueError, match=r"clipart_train\.txt: labels 0 to 8 were expected, not 0 to 9999999"):
        D.ImageList(root, listed, classes=[*"abcdefghi"])
    with pytest.raises(TypeError, match=r"ImageList\.classes is 'names\.txt'; it must be a sequence of names"):
        D.ImageList(root, listed, classes="names.txt")
    for classes in (["bee", 2], [1, 2]):
        with pytest.raises(TypeError, match=r"ImageList\.classes is \[.*\]; it must be a sequence of names"):
            D.ImageList(root, listed, classes=classes)
    with pytest.raises(ValueError, match=r"ImageList\.classes has a name twice: \['a', 'a'\]"):
        D.ImageList(root, listed, classes=["a", "a"])
    listed.write_text("\n \n")
    with pytest.raises(ValueError, match=r"ImageList: the list .*clipart_train\.txt is empty"):
        D.ImageList(root, listed)
    with pytest.raises(FileNotFoundError, match=r"the list .*clipart_trian\.txt is missing\. Near it: .*clipart_train"):
        D.ImageList(root, "clipart_trian.txt")
    with pytest.raises(FileNotFoundError, match=r"nowhere' is not a folder\. Expected there: the list of the pictures"):
        D.ImageList(root / "nowhere", "clipart_train.txt")
    listed.write_text("clipart/axe/none.png 0")
    with pytest.raises(
        FileNotFoundError, match=r"clipart_train\.txt lists .*none\.png, which is missing\. Near it: .*clipart"
    ):
        D.ImageList(root, listed)[0]
    with pytest.raises(ValueError, match=r"ImageList\.max_pixels is 0; it must be a positive integer"):
        D.ImageList(root, listed, max_pixels=0)


# --- CIFAR


def cifar(path: Path, labels: np.ndarray) -> np.ndarray:
    """Writes records of labels (N, L) and random images, and gives the images (N, 3, 32, 32)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = picture(len(labels), 3, 32, 32)
    path.write_bytes(np.hstack([labels.astype(np.uint8), images.reshape(len(labels), -1)]).tobytes())
    return images


def test_cifar10(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    batches = [cifar(folder / f"data_batch_{i}.bin", np.array([[i], [9]])) for i in range(1, 6)]
    cifar(folder / "test_batch.bin", np.array([[3]]))
    for root in (tmp_path, folder):
        dataset = D.CIFAR10(root)
        assert dataset.labels.tolist() == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
        for item, image in enumerate(np.concatenate(batches)):
            assert np.array_equal(dataset[item]["image"], image.transpose(1, 2, 0))
    assert [data["label"] for data in D.CIFAR10(tmp_path, "test")] == [3]
    assert dataset.classes[9] == "truck"
    (folder / "data_batch_3.bin").write_bytes(bytes(3072))
    with pytest.raises(ValueError, match=r"data_batch_3\.bin has 3072 bytes, not a multiple of 3073: it is broken"):
        D.CIFAR10(tmp_path)
    cifar(folder / "test_batch.bin", np.array([[10]]))
    with pytest.raises(ValueError, match=r"test_batch\.bin: labels 0 to 9 were expected, not 10 to 10"):
        D.CIFAR10(tmp_path, "test")
    with pytest.raises(ValueError, match=r"CIFAR10.split is 'val'"):
        D.CIFAR10(tmp_path, "val")


def test_cifar100(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    images = cifar(folder / "train.bin", np.array([[1, 5], [0, 2]]))
    with pytest.raises(FileNotFoundError, match=r"fine_label_names\.txt is missing"):
        D.CIFAR100(tmp_path)
    (folder / "fine_label_names.txt").write_text("\n".join(f"fine{i}" for i in range(100)) + "\n")
    (folder / "coarse_label_names.txt").write_text("\n".join(f"coarse{i}" for i in range(20)) + "\n\n")
    fine, coarse = D.CIFAR100(folder), D.CIFAR100(tmp_path, labels="coarse")
    assert (fine.num_classes, coarse.num_classes) == (100, 20)
    assert [fine.classes[data["label"]] for data in fine] == ["fine5", "fine2"]
    assert [coarse.classes[data["label"]] for data in coarse] == ["coarse1", "coarse0"]
    assert np.array_equal(fine[1]["image"], images[1].transpose(1, 2, 0))
    cifar(folder / "train.bin", np.array([[1, 5], [20, 2]]))
    with pytest.raises(ValueError, match=r"train\.bin: labels 0 to 19 were expected, not 1 to 20"):
        D.CIFAR100(folder)
    cifar(folder / "train.bin", np.array([[1, 5], [0, 2]]))
    (folder / "fine_label_names.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"fine_label_names\.txt lists 2 names; 100 were expected"):
        D.CIFAR100(folder)


@pytest.mark.parametrize(
    ("dataset", "pickled"), [(D.CIFAR10, "cifar-10-batches-py/data_batch_1"), (D.CIFAR100, "cifar-100-python/train")]
)
def test_pickled_cifar_is_refused(tmp_path, dataset, pickled):
    with pytest.raises(
        FileNotFoundError, match=r"missing\. Get the binary version: cifar-100?-binary\.tar\.gz of https"
    ):
        dataset(tmp_path)
    path = tmp_path / pickled
    path.parent.mkdir()
    path.write_bytes(b"")
    for root in (tmp_path, path.parent):
        with pytest.raises(
            FileNotFoundError, match=r"Here lies the pickled version, and nothing is ever unpickled\. Get"
        ):
            dataset(root)


# --- MNIST


def test_mnist(mnist):
    root, arrays = mnist
    for dataset, classes in ((D.MNIST, "0123456789"), (D.FashionMNIST, D.FashionMNIST.CLASSES)):
        for split, part in (("train", "train"), ("test", "t10k")):
            items = dataset(root, split)
            assert items.classes == tuple(classes)
            for data, image, label in zip(items, *arrays[part], strict=True):
                assert data["label"] == label
                assert data["image"].shape == (28, 28, 3)
                assert np.array_equal(data["image"], image[..., None].repeat(3, 2))


def test_mnist_errors_name_the_file(mnist):
    root, arrays = mnist
    with pytest.raises(
        FileNotFoundError, match=r"FashionMNIST: .*train-images-idx3-ubyte is missing.* apt-get install dat"
    ):
        D.FashionMNIST(root / "nowhere")
    with pytest.raises(ValueError, match=r"FashionMNIST\.split is 'val'"):
        D.FashionMNIST(root, "val")
    packed, plain = root / "train-images-idx3-ubyte.gz", root / "t10k-images-idx3-ubyte"
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is not a whole gzip file"):
        D.MNIST(root)
    content = plain.read_bytes()
    for changed, message in [
        (b"", "magic number 2051 of an IDX file was expected, not a file of 0 bytes"),
        (idx(2049, arrays["t10k"][1]), "magic number 2051 of an IDX file was expected, not 2049"),
        (content[:10], r"t10k-images-idx3-ubyte says that its shape is \(2,\), and 0 bytes follow its header"),
        (content[:-1], r"says that its shape is \(2, 28, 28\), and 1567 bytes follow"),
        (content + b"0", r"says that its shape is \(2, 28, 28\), and more than 1568 bytes follow"),
        (struct.pack(">4I", 2051, 2**31, 28, 28), r"shape is \(2147483648, 28, 28\); 1,073,741,824 bytes are the most"),
        (idx(2051, arrays["t10k"][0][:1]), "1 images and 2 labels lie in"),
    ]:
        plain.write_bytes(changed)
        with pytest.raises(ValueError, match=message):
            D.MNIST(root, "test")
    plain.write_bytes(content)
    (root / "t10k-labels-idx1-ubyte").write_bytes(idx(2049, np.array([1, 10], np.uint8)))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte: labels 0 to 9 were expected, not 1 to 10"):
        D.MNIST(root, "test")
    for path, array in zip((plain, root / "t10k-labels-idx1-ubyte"), arrays["t10k"]):
        path.write_bytes(idx(2051 if array.ndim == 3 else 2049, array[:0]))
    with pytest.raises(ValueError, match="MNIST: split 'test' is empty"):
        D.MNIST(root, "test")


# --- configs


@pytest.mark.parametrize("name", ["imagenet", "domainnet", "eurosat", "cifar10", "cifar100", "fashion_mnist"])
def test_pipelines_of_the_base_configs(name):
    config = Config.fromfile(ROOT / f"configs/_base_/{name}.py")
    large = (224, (250, 310))
    size, raw = dict(imagenet=large, domainnet=large, eurosat=(64, (64, 64)), fashion_mnist=(32, (28, 28))).get(
        name, (32, (32, 32))
    )
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert issubclass(DATASETS.get(loader.dataset.type), D.Images)
        data = build_transforms(loader.dataset.transforms)(dict(image=picture(*raw, 3), label=1, index=2))
        assert data["image"].shape == (3, size, size)
        assert data["image"].dtype == torch.float32
        assert (data["label"], data["index"]) == (1, 2)
    assert config.val_dataloader.dataset == config.test_dataloader.dataset
    assert config.val_evaluator == config.test_evaluator == dict(type="ImageAccuracy")
    assert config.train_dataloader.sampler == dict(type="EpochSampler", shuffle=True)


# --- SVHN


@pytest.fixture(params=[True, False], ids=["packed", "plain"])
def svhn(request, tmp_path):
    """Three images to test on, in SVHN's file as MATLAB writes it."""
    io = pytest.importorskip("scipy.io")
    images, labels = picture(32, 32, 3, 3), np.array([[10], [1], [9]], np.uint8)
    path = tmp_path / "test_32x32.mat"
    io.savemat(path, {"note": "of no use", "y": labels, "X": images, "z": 1.5}, do_compression=request.param)
    return path, images, labels, request.param


def test_svhn(svhn):
    path, images, *_ = svhn
    data = D.SVHN(path.parent, "test")
    assert data.classes == tuple("0123456789")
    for number, (item, label) in enumerate(zip(data, (0, 1, 9), strict=True)):
        assert item["label"] == label
        assert np.array_equal(item["image"], images[..., number])
    with pytest.raises(FileNotFoundError, match=r"SVHN: .*train_32x32\.mat is missing\. Get it"):
        D.SVHN(path.parent)
    with pytest.raises(ValueError, match=r"SVHN\.split is 'val'"):
        D.SVHN(path.parent, "val")


def test_svhn_errors_name_the_file(svhn):
    io = pytest.importorskip("scipy.io")
    path, images, labels, packed = svhn
    content = path.read_bytes()
    broken = [(content[:100], "is not a MATLAB file"), (content[:-9], "broken MATLAB file: an array is cut off")]
    bomb = struct.pack("<2I", 14, 1 << 31 | 8)
    if packed:
        bomb = zlib.compress(bomb)
        broken.append(
            (content[:128] + struct.pack("<2I", 15, len(bomb)) + bomb, "2,147,483,656 bytes; 2,147,483,648 are")
        )
    for changed, words in broken:
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=f"test_32x32.mat .*{words}"):
            D.SVHN(path.parent, "test")
    for arrays, words in (
        (dict(X=images), "has no array 'y' of bytes; it has X"),
        (dict(X=images, y=labels.astype(float)), "has no array 'y' of bytes"),
        (dict(X=images[..., :2], y=labels), r"X \(32, 32, 3, 2\) and y \(3, 1\) are not"),
        (dict(X=images, y=labels - 1), "labels 1 to 10 were expected, not 0 to 9"),
    ):
        io.savemat(path, arrays, do_compression=packed)
        with pytest.raises(ValueError, match=f"test_32x32.mat.*{words}"):
            D.SVHN(path.parent, "test")
