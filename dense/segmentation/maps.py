"""Maps of labels in files: what their numbers mean, and what is wrong with them, said with the file.

A training that reads its labels wrongly learns something, and nothing tells: masks of 0 and 255, of which the latter is
ignored; classes that count from 1; maps that were resized with interpolation. So a `Meaning` says what every number is,
`ReadMap` refuses any other, and `survey` shows a sample of files before the first step.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from ...files import printable
from ...images import read_image, read_map
from ...registry import TRANSFORMS

IGNORED = 255  # label of pixels that neither train nor count, in mmseg's heads and ours
UNKNOWN = -1
LOOKED_AT = 24  # files of a sample


class Meaning:
    """What the numbers in maps mean.

    Args:
        classes: names of the classes.
        values: the class of each number in the files by its name, or None for pixels to ignore. By default number i is
            class i, and 255 is ignored.
        reduce_zero_label: whether, without `values`, 0 is ignored and number i is class i - 1 instead.

    Raises:
        ValueError: there are no classes, or more than 255; `values` name others, or leave one out.
    """

    def __init__(
        self,
        classes: Sequence[str],
        values: Mapping[int, str | None] | None = None,
        reduce_zero_label: bool = False,
    ):
        self.classes, self.reduce_zero_label = tuple(classes), reduce_zero_label
        if not 0 < len(self.classes) <= IGNORED:
            raise ValueError(f"classes must be 1 to {IGNORED} names, not {len(self.classes)}")
        self.table = np.full(65536, UNKNOWN, np.int16)
        if values is None:
            self.table[IGNORED] = IGNORED
            if reduce_zero_label:
                self.table[0] = IGNORED
            self.table[np.arange(len(self.classes)) + reduce_zero_label] = np.arange(len(self.classes))
            return
        if reduce_zero_label:
            raise ValueError("reduce_zero_label and values both say what 0 means; give one of them")
        for value, name in values.items():
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(self.table):
                raise ValueError(f"values has the number {value!r}; numbers in maps are 0 to {len(self.table) - 1}")
            if name is not None and name not in self.classes:
                raise ValueError(f"values[{value}] is {name!r}, none of the classes {_some(self.classes)}")
            self.table[value] = IGNORED if name is None else self.classes.index(name)
        if absent := [name for name in self.classes if name not in values.values()]:
            raise ValueError(f"values has no number for {_some(absent)}")

    def restricted(self, classes: Sequence[str]) -> "Meaning":
        """The same numbers where `classes`, some of these in any order, are all; pixels of others are ignored. What 0
        means is no question then (`reduce_zero_label` is False): the numbers are those of a published set."""
        found = Meaning(classes)
        new = np.array([found.classes.index(name) if name in found.classes else IGNORED for name in self.classes])
        named = (self.table != UNKNOWN) & (self.table != IGNORED)
        found.table = self.table.copy()
        found.table[named] = new[self.table[named]]
        return found

    @property
    def values(self) -> list[int]:
        """The numbers that stand for classes."""
        return np.flatnonzero((self.table != UNKNOWN) & (self.table != IGNORED)).tolist()

    def labels(self, numbers: np.ndarray, path: Any) -> np.ndarray:
        """The labels, uint8 (H, W), of the numbers (H, W) of the file `path`.

        Raises:
            ValueError: a number means nothing; says which, how often, and what may be meant.
        """
        found = self.table[numbers]
        if (found == UNKNOWN).any():
            raise ValueError(f"{printable(path)} {self._unknown(numbers)}")
        return found.astype(np.uint8)

    def _unknown(self, numbers: np.ndarray) -> str:
        kinds, counts = np.unique(numbers, return_counts=True)
        strange = self.table[kinds] == UNKNOWN
        shown = ", ".join(f"{kind} ({count:,} pixels)" for kind, count in zip(kinds[strange][:5], counts[strange]))
        more = f" and {strange.sum() - 5} more" if strange.sum() > 5 else ""
        known = self.values
        range_ = f"{known[0]} to {known[-1]}" if known == [*range(known[0], known[-1] + 1)] else _some(known)
        text = f"holds {shown}{more}. The {len(self.classes)} classes have the numbers {range_}"
        ignored = np.flatnonzero(self.table == IGNORED).tolist()
        text += f", and {_some(ignored)} is ignored." if ignored else "."
        if kinds[strange].tolist() == [len(self.classes)] and known[-1] == len(self.classes) - 1:
            return text + " If 0 is no class but to be ignored: reduce_zero_label=True."
        return text + _proposed(kinds, self.classes)


def _proposed(kinds: np.ndarray, classes: Sequence[str]) -> str:
    """Which `values` may be meant by the numbers of a map."""
    if len(kinds) > len(classes) + 1:
        return f" It has {len(kinds)} numbers: was it resized with interpolation, or is it a picture?"
    if len(kinds) < len(classes):
        return " Say what each number means: values={number: name of a class, or None, ...}."
    names = [*classes, None]
    return f" If these are the classes: values={dict(zip(kinds.tolist(), names))}."


def _some(names: Sequence[Any], most: int = 6) -> str:
    shown = ", ".join(printable(name, 30) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


@TRANSFORMS.register_module()
class ReadMap(BaseTransform):
    """`gt_seg_map` uint8 (H, W), labels, from the file at `seg_map_path`, by the `meaning` that a `SegmentationMaps`
    hands over. It takes the place of mmseg's LoadAnnotations, which takes any number modulo 256.

    Raises:
        ValueError: the file is no map, of another size than its image (`ori_shape`), or holds numbers without a
            meaning; names the file.
    """

    def transform(self, results: dict) -> dict:
        path = results["seg_map_path"]
        if "meaning" not in results:
            raise ValueError("ReadMap reads maps of attlas.SegmentationMaps, which says what their numbers mean")
        labels = results["meaning"].labels(read_map(path), path)
        if "ori_shape" in results:
            check_size(labels.shape, results["ori_shape"][:2], path, results.get("img_path"))
        results["gt_seg_map"] = labels
        results.setdefault("seg_fields", []).append("gt_seg_map")
        return results


def check_size(of_map: Sequence[int], of_image: Sequence[int], path: Any, image: Any) -> None:
    """Refuse a map of another size than its image; sizes are (height, width)."""
    if tuple(of_map) == tuple(of_image):
        return
    turned = (
        " EXIF turns the image: is the map of the pixels as they are stored?" if [*of_map][::-1] == [*of_image] else ""
    )
    raise ValueError(
        f"{printable(path)} has {of_map[1]} x {of_map[0]} pixels, and its image {printable(image)} has {of_image[1]} x "
        f"{of_image[0]}.{turned}"
    )


class Survey:
    """The numbers in a sample of maps.

    Args:
        pairs: paths of images and of their maps.
        meaning: what the numbers mean.
        colors: red, green, blue of each class, to be shown.
        count: most files that are read, spread evenly.

    Raises:
        ValueError: a file is no map, of another size than its image, or has a number without a meaning.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        meaning: Meaning,
        colors: Sequence[Sequence[int]] = (),
        count: int = LOOKED_AT,
    ):
        self.meaning, self.colors, self.of = meaning, colors, len(pairs)
        self.files = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int))]
        self.pixels: Counter[int] = Counter()
        for image, path in self.files:
            numbers = read_map(path)
            meaning.labels(numbers, path)
            check_size(numbers.shape, read_image(image).shape[:2], path, image)
            kinds, counts = np.unique(numbers, return_counts=True)
            self.pixels.update(dict(zip(kinds.tolist(), counts.tolist())))

    def check(self) -> None:
        """Refuse what teaches nothing.

        Raises:
            ValueError: of several classes the sample has one, or none, beside what is ignored.
        """
        kinds = sorted(self.pixels)
        labels = {int(self.meaning.table[kind]) for kind in kinds} - {IGNORED}
        if len(labels) > 1 or len(self.meaning.classes) == 1:
            return
        (first, *_) = self.files
        what = "only ignored pixels" if not labels else f"no class but {printable(self.meaning.classes[labels.pop()])}"
        raise ValueError(
            f"{len(self.files)} of {self.of} maps, {printable(first[1])} first, hold {what}: their numbers are "
            f"{_some(kinds)}.{_proposed(np.array(kinds), self.meaning.classes) if len(kinds) > 1 else ''}"
        )

    def warnings(self) -> Iterator[str]:
        """What may be wrong, and may be not."""
        found = {int(self.meaning.table[kind]) for kind in self.pixels}
        if self.meaning.reduce_zero_label and 0 in self.pixels and len(self.meaning.classes) - 1 not in found:
            yield (
                f"reduce_zero_label=True: 0 is ignored, and {len(self.meaning.classes)} would be the last class "
                f"({printable(self.meaning.classes[-1])}), which no map of the sample has. Do the classes count from 0?"
            )
        if absent := [name for label, name in enumerate(self.meaning.classes) if label not in found]:
            yield f"no map of the sample has a pixel of {_some(absent)}"

    def __str__(self) -> str:
        """The table of numbers, classes and pixels."""
        total = sum(self.pixels.values())
        rows = [("number", "class", "color", "pixels")]
        for number in sorted(self.pixels):
            label, share = int(self.meaning.table[number]), self.pixels[number] / total
            name = "(ignored)" if label == IGNORED else f"{label} {printable(self.meaning.classes[label], 30)}"
            color = "#{:02x}{:02x}{:02x}".format(*self.colors[label]) if label < len(self.colors) else ""
            rows.append((str(number), name, color, f"{self.pixels[number]:,} ({100 * share:.2f} %)"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            f"  {row[0]:>{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:{widths[2]}}  {row[3]:>{widths[3]}}"
            for row in rows
        )
