import sysconfig
from pathlib import Path

import numpy as np
import pytest

from attlas.backbones.language.datasets import TextFiles


@pytest.fixture
def folder(tmp_path):
    for number in range(10):
        path = tmp_path / "notes" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([65 + number]) * 50)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG" * 100)
    return tmp_path


def test_each_byte_of_the_test_is_predicted_once(folder):
    data = TextFiles(folder, "test", length=7, test_share=0.3)
    assert len(data.text) == 3 * 51
    assert len(data) == (len(data.text) - 1) // 7
    targets = np.concatenate([item["tokens"][1:].numpy() for item in data])
    assert targets.tolist() == data.text[1 : 1 + 7 * len(data)].tolist()
    assert [item["index"] for item in data] == list(range(len(data)))


def test_no_file_is_in_both_splits(folder):
    """And all are in one; by their names alone, wherever the folder lies."""
    train, test = (set(bytes(TextFiles(folder, split, 7).text)) for split in ("train", "test"))
    assert train & test == {0}
    assert train | test == {0, *range(65, 75)}
    moved = folder.rename(folder.with_name("elsewhere"))
    assert set(bytes(TextFiles(moved, "test", 7).text)) == test


def test_training_draws_anew_and_repeatably(folder):
    data, again = TextFiles(folder, length=7), TextFiles(folder, length=7)
    starts = [data[i + epoch * len(data)]["tokens"].tolist() for epoch in range(2) for i in range(len(data))]
    assert starts[: len(data)] != starts[len(data) :]
    assert starts == [again[i]["tokens"].tolist() for i in range(2 * len(again))]
    assert all(len(tokens) == 8 for tokens in starts)
    assert [item["tokens"].tolist() for item in TextFiles(folder, length=7, seed=1)] != starts[: len(data)]


def test_one_file(tmp_path):
    path = tmp_path / "book.log"
    path.write_bytes(bytes(range(200)))
    assert TextFiles(path, "train", 7).text.tolist() == list(range(180))
    assert TextFiles(path, "test", 7).text.tolist() == list(range(180, 200))


def test_the_standard_library_by_default():
    data = TextFiles(split="test")
    names = [path.name for path in Path(sysconfig.get_path("stdlib")).glob("*.py")]
    assert bytes(data.text).count(b"\0") >= round(0.1 * len(names))
    assert b"import" in bytes(data.text)


def test_bad_arguments(folder):
    for options, error, message in [
        (dict(split="val"), ValueError, "split is 'val'; it may be 'train', 'test'"),
        (dict(length=0), ValueError, "length is 0; it must be a positive integer"),
        (dict(length=100, split="test"), ValueError, "length=100 must be below the 51 bytes of the test text"),
        (dict(suffixes=".rst"), ValueError, r"must hold at least two files that end in \.rst, .*, got 0"),
        (dict(test_share="0.1"), ValueError, "test_share='0.1' must lie between 0 and 1"),
        (dict(test_share=0.0), ValueError, "test_share=0.0 must lie between 0 and 1"),
        (dict(root=folder / "note"), FileNotFoundError, "root .*note does not exist.*notes"),
        (dict(suffixes=(".rst",)), ValueError, r"must hold at least two files that end in \.rst, .*, got 0"),
    ]:
        with pytest.raises(error, match=message):
            TextFiles(**{"root": folder, **options})
