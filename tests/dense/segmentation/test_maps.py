"""What numbers in maps mean, and what is refused before the first step, with the file."""

import cv2
import numpy as np
import pytest

from attlas.dense.segmentation import ReadMap
from attlas.dense.segmentation.maps import Meaning, Survey

NAMES = ("sky", "road", "car")


def written(folder, numbers, image=None, name="a"):
    """The paths of an image and its map, of an array each."""
    paths = folder / f"{name}.jpg", folder / f"{name}.png"
    image = np.zeros((*numbers.shape[:2], 3), np.uint8) if image is None else image
    for path, picture in zip(paths, (image, numbers)):
        cv2.imwrite(str(path), picture)
    return str(paths[0]), str(paths[1])


@pytest.mark.parametrize(
    ("options", "numbers", "labels"),
    [
        ({}, [0, 1, 2, 255], [0, 1, 2, 255]),
        (dict(reduce_zero_label=True), [0, 1, 2, 3, 255], [255, 0, 1, 2, 255]),
        (dict(values={0: "sky", 7: "road", 300: "car", 9: None}), [0, 7, 300, 9], [0, 1, 2, 255]),
    ],
)
def test_numbers_become_labels(options, numbers, labels):
    found = Meaning(NAMES, **options).labels(np.array([numbers], np.uint16), "a.png")
    assert found.dtype == np.uint8
    assert found.tolist() == [labels]


@pytest.mark.parametrize(
    ("options", "numbers", "words"),
    [
        ({}, [0, 1, 3], r"a.png holds 3 \(1 pixels\). The 3 classes have the numbers 0 to 2, and 255 is ignored. If 0 "
                        ".*reduce_zero_label=True"),
        ({}, [0, 128, 254], r"holds 128 .*, 254 .*values=\{0: 'sky', 128: 'road', 254: 'car'\}"),
        ({}, [0, 100, 200, 254], r"values=\{0: 'sky', 100: 'road', 200: 'car', 254: None\}"),
        ({}, [*range(0, 250, 10)], "It has 25 numbers: was it resized with interpolation"),
        (dict(reduce_zero_label=True), [0, 4], "holds 4 .* have the numbers 1 to 3"),
        (dict(values={0: "sky", 7: "road", 30: "car"}), [0, 255], "holds 255 .* the numbers 0, 7, 30"),
    ],
)  # fmt: skip
def test_other_numbers_are_refused(options, numbers, words):
    with pytest.raises(ValueError, match=words):
        Meaning(NAMES, **options).labels(np.array([numbers], np.uint8), "a.png")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(values={0: "sky"}), "no number for road, car"),
        (dict(values={0: "sky", 1: "rod", 2: "car"}), r"values\[1\] is 'rod', none of the classes sky, road, car"),
        (dict(values={-1: "sky", 1: "road", 2: "car"}), "has the number -1"),
        (dict(values={0: "sky", 1: "road", 2: "car"}, reduce_zero_label=True), "give one of them"),
        (dict(classes=()), "must be 1 to 255 names"),
    ],
)
def test_meanings_that_are_none(options, words):
    with pytest.raises(ValueError, match=words):
        Meaning(**dict(classes=NAMES) | options)


def test_some_of_the_classes():
    """The others are ignored, and labels count in the order asked for."""
    few = Meaning(NAMES, reduce_zero_label=True).restricted(("car", "sky"))
    assert few.labels(np.array([[0, 1, 2, 3]]), "a.png").tolist() == [[255, 1, 255, 0]]
    assert few.classes == ("car", "sky")


def test_a_map_is_read_beside_its_image(tmp_path):
    numbers = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
    _, path = written(tmp_path, numbers)
    results = dict(seg_map_path=path, meaning=Meaning(NAMES), seg_fields=[], ori_shape=(2, 3))
    found = ReadMap().transform(results)
    assert np.array_equal(found["gt_seg_map"], numbers)
    assert found["seg_fields"] == ["gt_seg_map"]
    with pytest.raises(ValueError, match=r"a.png has 3 x 2 pixels, and its image b.jpg has 2 x 3. EXIF turns"):
        ReadMap().transform(results | dict(ori_shape=(3, 2), img_path="b.jpg"))
    with pytest.raises(ValueError, match=r"attlas.SegmentationMaps"):
        ReadMap().transform(dict(seg_map_path=path))


def test_the_table(tmp_path):
    pairs = [written(tmp_path, np.full((4, 5), value, np.uint8), name=str(value)) for value in (0, 2, 255)]
    survey = Survey(pairs, Meaning(NAMES), [[255, 0, 0], [0, 255, 0], [0, 0, 16]])
    survey.check()
    assert [line.split() for line in str(survey).splitlines()] == [
        ["number", "class", "color", "pixels"],
        ["0", "0", "sky", "#ff0000", "20", "(33.33", "%)"],
        ["2", "2", "car", "#000010", "20", "(33.33", "%)"],
        ["255", "(ignored)", "20", "(33.33", "%)"],
    ]
    assert list(survey.warnings()) == ["no map of the sample has a pixel of road"]


@pytest.mark.parametrize(
    ("classes", "options", "numbers", "words"),
    [
        # the classic: of 0 and 255 the latter is ignored, and every pixel is right
        (("background", "crack"), {}, [0, 255],
         r"1 of 1 maps, .*a.png first, hold no class but background: their numbers are 0, 255. If these are the "
         r"classes: values=\{0: 'background', 255: 'crack'\}"),
        (NAMES, {}, [0, 255], "no class but sky: .*Say what each number means"),
        (NAMES, {}, [255], "only ignored pixels: their numbers are 255"),
        (NAMES, dict(reduce_zero_label=True), [0, 1], "no class but sky"),
    ],
)  # fmt: skip
def test_a_sample_that_teaches_nothing(tmp_path, classes, options, numbers, words):
    pair = written(tmp_path, np.resize(np.array(numbers, np.uint8), (4, 4)))
    with pytest.raises(ValueError, match=words):
        Survey([pair], Meaning(classes, **options)).check()


def test_classes_that_count_from_0_after_all(tmp_path):
    pair = written(tmp_path, np.resize(np.array([0, 1, 2], np.uint8), (4, 4)))
    survey = Survey([pair], Meaning(NAMES, reduce_zero_label=True))
    survey.check()
    assert "Do the classes count from 0?" in next(survey.warnings())
    published = Survey([pair], Meaning(NAMES, reduce_zero_label=True).restricted(NAMES))
    assert list(published.warnings()) == ["no map of the sample has a pixel of car"]


def test_a_sample_holds_maps_to_their_images(tmp_path):
    numbers = np.resize(np.array([0, 1, 2], np.uint8), (4, 6))
    pair = written(tmp_path, numbers, np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(ValueError, match=r"a.png has 6 x 4 pixels, and its image .*a.jpg has 5 x 4"):
        Survey([pair], Meaning(NAMES))
    pair = written(tmp_path, np.dstack([numbers, numbers + 1, numbers]))
    with pytest.raises(ValueError, match=r"a.png is no map of labels: it holds 3 colors"):
        Survey([pair], Meaning(NAMES))
