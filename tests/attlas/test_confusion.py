"""Confusion matrices: their figures, files and pictures."""

import numpy as np
import pytest

from attlas import confusion


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "ours.npz"
    counts = np.array([[3, 1], [0, 4]])
    np.savez(path, classes=np.array(["bed", "car"]), confusion_z=counts, confusion_SO3=4 * counts)
    return path


def test_class_accuracy_is_recall():
    counts = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 0]])
    np.testing.assert_array_equal(confusion.class_accuracy(counts), [75, np.nan, 0])


def test_confusion(results, tmp_path):
    classes, confusions = confusion.read_results(results)
    assert classes == ("bed", "car")
    assert confusion.overall_accuracy(confusions["SO3"]) == 87.5
    canvas = confusion.draw_confusions({"ours": results, "again": results})
    assert [axes.get_title() for axes in canvas.axes[:2]] == [
        "ours under z\noverall 87.5 %, class 87.5 %",
        "ours under SO(3)\noverall 87.5 %, class 87.5 %",
    ]
    assert [text.get_text() for text in canvas.axes[1].texts] == ["12", "4", "16"]
    (tmp_path / "text.npz").write_text("no zip file")
    with pytest.raises(
        ValueError, match=r"text\.npz is not a file of results: it is no npz archive; tools/test.py --out makes them"
    ):
        confusion.read_results(tmp_path / "text.npz")
    np.savez(tmp_path / "object.npz", classes=np.array([{}]), confusion=np.array([{}]))
    with pytest.raises(
        ValueError, match=r"object\.npz is not a file of results: it holds Python objects, and nothing is"
    ):
        confusion.read_results(tmp_path / "object.npz")
    np.savez(tmp_path / "none.npz", classes=np.array(["bed"]))
    with pytest.raises(ValueError, match=r"none\.npz has no confusion matrices of its 1 classes"):
        confusion.read_results(tmp_path / "none.npz")


@pytest.mark.parametrize("counts", [[[0, 0], [0, 0]], [[1, -1], [0, 2]], [[1, np.nan], [0, 2]]])
def test_what_holds_no_counts_is_refused(tmp_path, counts):
    np.savez(tmp_path / "a.npz", classes=np.array(["bed", "car"]), confusion_z=np.array(counts))
    with pytest.raises(ValueError, match=r"a\.npz: confusion_z must hold counts, 0 or more and not all 0"):
        confusion.read_results(tmp_path / "a.npz")


def test_names_of_many_classes_do_not_cover_each_other(tmp_path):
    np.savez(tmp_path / "a.npz", classes=np.array([f"class {i}" for i in range(150)]), confusion=np.eye(150, dtype=int))
    canvas = confusion.draw_confusions({"a": tmp_path / "a.npz"})
    canvas.draw_without_rendering()
    boxes = [text.get_window_extent() for text in canvas.axes[0].get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in zip(boxes, boxes[1:]))


@pytest.mark.parametrize("count", [2, 14, 25])
def test_confusion_shows_whole_names_and_titles(tmp_path, count):
    classes = np.array([f"a rather long name of class {i}" for i in range(count)])
    np.savez(tmp_path / "a.npz", classes=classes, confusion=np.ones((count, count), int))
    canvas = confusion.draw_confusions({"a result with a name": tmp_path / "a.npz"})
    canvas.draw_without_rendering()
    axes = canvas.axes[0]
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()):
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= canvas.bbox.x1
        assert box.y1 <= canvas.bbox.y1
    assert axes.get_window_extent().width > 0.25 * canvas.bbox.width


def test_millions_of_pixels_are_shown_in_percent(tmp_path):
    counts = np.array([[3_000_000, 1_000_000], [10_000, 4_000_000]])
    np.savez(tmp_path / "a.npz", classes=np.array(["wall", "floor"]), confusion=counts)
    axes = confusion.draw_confusions({"a": tmp_path / "a.npz"}).axes[0]
    assert [text.get_text() for text in axes.texts] == ["75", "25", "", "100"]
    assert axes.get_ylabel() == "true, % of each"


def test_files_of_one_name_keep_apart(tmp_path):
    ours, theirs = (tmp_path / name / "results.npz" for name in ("ours", "theirs"))
    assert confusion.shortest_names([ours, tmp_path / "other.npz"]) == ["results", "other"]
    assert confusion.shortest_names([ours, theirs]) == ["ours/results", "theirs/results"]
    with pytest.raises(ValueError, match="a file of results is named twice"):
        confusion.shortest_names([ours, tmp_path / "theirs/../ours/results.npz"])
