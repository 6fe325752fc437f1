"""Folders of rooms: what lies in them, and that they are made once, whole, by however many processes."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from pycocotools import mask as runs

from attlas import furniture
from attlas.dense import room_files as F
from attlas.dense.rooms import LABELS, LEAST, Room


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_holds_what_the_rooms_show(furnished):
    folder = F.room_folder(**furnished)
    found = json.loads(F.annotations(folder, "test").read_text())
    assert [category["name"] for category in found["categories"]] == list(furniture.CLASSES)
    assert [(image["id"], image["width"], image["height"]) for image in found["images"]] == [
        (n, 96, 72) for n in range(3)
    ]
    assert [entry["id"] for entry in found["annotations"]] == list(range(1, len(found["annotations"]) + 1))
    names = {category["id"]: category["name"] for category in found["categories"]}
    for image in found["images"]:
        room = Room("test", 5, image["id"])
        view = room.see(room.camera(), 96, 72)
        picture = cv2.imread(str(folder / "img_dir" / "test" / image["file_name"]))[..., ::-1]
        assert abs(picture.astype(float) - view.image).mean() < 4  # it is a JPEG
        for kind, truth in (("ann_dir", view.labels), ("ins_dir", view.instances)):
            path = folder / kind / "test" / f"{image['id']:06d}.png"
            np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), truth)
        entries = [entry for entry in found["annotations"] if entry["image_id"] == image["id"]]
        boxes, labels, numbers = view.boxes()
        assert len(entries) == len(boxes) > 0
        for entry, box, label, number in zip(entries, boxes, labels, numbers):
            mask = runs.decode(entry["segmentation"]).astype(bool)
            np.testing.assert_array_equal(mask, view.instances == number)
            left, top, width, height = entry["bbox"]
            assert [left, top, left + width, top + height] == box.tolist()
            assert entry["area"] == mask.sum() >= LEAST
            assert entry["iscrowd"] == 0
            assert names[entry["category_id"]] == LABELS[label]


def test_a_finished_folder_is_not_made_again(furnished, monkeypatch):
    def fail(*_):
        raise AssertionError("it is made again")

    folder = F.room_folder(**furnished)
    monkeypatch.setattr(F, "_make", fail)
    assert F.room_folder(**furnished) == folder
    for other in (dict(count=2), dict(size=(72, 96)), dict(seed=6), dict(split="train")):
        with pytest.raises(AssertionError, match="made again"):  # another setting, another folder
            F.room_folder(**furnished | other)
    monkeypatch.setattr(F, "MAKER", F.MAKER + 1)
    with pytest.raises(AssertionError, match="made again"):
        F.room_folder(**furnished)


def test_what_was_broken_off_goes_on(furnished, tmp_path, monkeypatch):
    """However far it came: half a room, a half-written file."""
    whole = contents(F.room_folder(**furnished))
    arguments = furnished | dict(cache=tmp_path)
    replacing, written = F.replacing, []

    def broken(path):
        written.append(path)
        if len(written) == 5:  # of the second room, the semantic map
            path.with_name(f".{path.stem}.999999999.unfinished.png").write_bytes(b"half")
            raise KeyboardInterrupt
        return replacing(path)

    monkeypatch.setattr(F, "replacing", broken)
    with pytest.raises(KeyboardInterrupt):
        F.room_folder(**arguments)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("instances_*.json"))
    assert len(list(tmp_path.rglob("ins_dir/test/0*.png"))) == 1
    first = written[2]
    before = first.stat().st_mtime_ns
    assert contents(F.room_folder(**arguments)) == whole
    assert first.stat().st_mtime_ns == before


@pytest.mark.slow
def test_processes_beside_and_a_kill(furnished, tmp_path):
    """Two processes make the same as one, also where the one that started them is killed and called again."""
    arguments = furnished | dict(cache=tmp_path, workers=2, count=8)
    whole = contents(F.room_folder(**furnished | dict(count=8)))
    code = f"from attlas.dense.room_files import room_folder; room_folder(**{arguments | dict(cache=str(tmp_path))!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 120
    while not list(tmp_path.rglob("ins_dir/test/0*.png")) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert contents(F.room_folder(**arguments)) == whole


@pytest.mark.slow
def test_a_process_that_fails_is_reported(furnished, tmp_path):
    arguments = furnished | dict(cache=tmp_path, workers=1, count=1)
    folder = tmp_path / "furnished_rooms" / F.Setting("test", 1, 96, 72, 5).name
    (folder / "img_dir" / "test" / "000000.jpg" / "in the way").mkdir(parents=True)
    with pytest.raises(RuntimeError, match=r"a process that makes rooms ended with 1:(.|\n)*000000.jpg"):
        F.room_folder(**arguments)


def test_progress_is_shown_on_terminals_alone(furnished, tmp_path, capsys):
    F.room_folder(**furnished | dict(cache=tmp_path, count=1, size=(16, 12)))
    assert capsys.readouterr().err == ""


def test_bad_arguments(tmp_path):
    for arguments, message in (
        (dict(split="val"), "split is 'val'; it may be 'train', 'test'"),
        (dict(count=0), "count is 0; it must be a positive integer"),
        (dict(size=320), "size is 320; it must be"),
        (dict(size=(320, 0)), r"size\[1\] is 0"),
        (dict(size="ab"), "size is 'ab'"),
        (dict(seed=-1), "seed is -1"),
        (dict(workers=-1), "workers is -1; it must be an integer of at least 0"),
        (dict(workers=True), "workers is True"),
    ):
        with pytest.raises(ValueError, match=message):
            F.room_folder(**dict(cache=tmp_path) | arguments)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be made .* name another folder in \$ATTLAS_CACHE"):
        F.room_folder(cache=tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]
