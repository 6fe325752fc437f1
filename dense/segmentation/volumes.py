"""Medical volumes in files: NIfTI, DICOM series, and the layouts of CHAOS and of the Medical Segmentation Decathlon.

There is one reader for all. A volume's axes point to the patient's right (x), front (y) and head (z), as near as the
file's own axes can be turned to that without resampling: "RAS", as NIfTI counts. What was turned is kept, so that
labels are written in the frame of the file, voxel by voxel. DICOM counts x and y the other way around (LPS); they
change their signs here, and nowhere else.

It needs nibabel and pydicom: pip install 'attlas[medical]'. Nothing else of the package imports it.
"""

import gzip
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

try:
    import nibabel
    import pydicom
    from nibabel import orientations
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name!r} is not installed: pip install 'attlas[medical]'", name=error.name
    ) from None

from ...files import near_files, near_folders, printable, replacing
from ...images import MAX_PIXELS
from .medical import CHAOS, classes_of, gray_levels, natural, read_gray

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
EVEN = 0.02  # share of the spacing by which the distances of slices may differ
ASIDE = 0.25  # share of a voxel by which a slice may lie beside its place
MILLIMETERS = dict(meter=1000.0, mm=1.0, micron=0.001, unknown=1.0)
DEFLATED = 1032  # bytes that one byte of gzip may become
DICOM = b"DICM"  # at byte 128
SUFFIXES = (".dcm", ".ima")  # of DICOM; other files are known by their content


@dataclass
class Volume:
    """Values in a known place.

    Attributes:
        values: (X, Y, Z).
        affine: (4, 4), from indices (x, y, z, 1) to millimeters in RAS.
        source: the file, or the files of a series, slice by slice in the order of the source's third axis.
        source_shape, source_affine: those of the file's own array.
    """

    values: np.ndarray
    affine: np.ndarray
    source: tuple[Path, ...]
    source_shape: tuple[int, ...]
    source_affine: np.ndarray = field(repr=False)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimeters from voxel to voxel along x, y, z."""
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))

    def in_source(self, values: np.ndarray) -> np.ndarray:
        """An array (X, Y, Z) in the order of axes of the file."""
        if values.shape != self.values.shape:
            raise ValueError(f"values has the shape {values.shape}, the volume {self.values.shape}")
        # The volume's own affine is not asked: at 45 degrees an axis is as near to one as to another.
        straight = np.array([[0, 1], [1, 1], [2, 1]])
        turn = orientations.ornt_transform(straight, orientations.io_orientation(self.source_affine))
        found = orientations.apply_orientation(values, turn)
        if found.shape != self.source_shape:
            raise ValueError(f"{printable(self.source[0])} has {self.source_shape} voxels, and not {found.shape}")
        return found


def _turned(values: np.ndarray, affine: np.ndarray, source: Sequence[Path]) -> Volume:
    """A volume of the file's own array, its axes turned towards RAS."""
    name = printable(source[0])
    if values.ndim != 3 or not all(values.shape):
        raise ValueError(f"{name} has the shape {values.shape}; a volume has three axes, or channels behind.")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {values.dtype}; a voxel has one real number.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds {np.count_nonzero(~np.isfinite(values))} voxels that are NaN or infinite.")
    turn = orientations.io_orientation(affine) if np.isfinite(affine).all() else np.full((3, 2), np.nan)
    if np.isnan(turn).any():  # of an axis that leads nowhere
        raise ValueError(f"{name} says no place: its affine is {affine.tolist()}.")
    return Volume(
        orientations.apply_orientation(values, turn),
        affine @ orientations.inv_ornt_aff(turn, values.shape),
        tuple(map(Path, source)),
        values.shape,
        affine,
    )


def read_nifti(path: str | Path, channel: int | None = None) -> Volume:
    """The volume of a NIfTI file.

    Args:
        path: a .nii or .nii.gz file. Its unit of length may be the meter, the millimeter or the micron; one that says
            none is in millimeters.
        channel: which volume of a file of several (X, Y, Z, channels); it must be said of such.

    Raises:
        FileNotFoundError: names the near files.
        ValueError: broken, not of three axes, colors or complex numbers, NaN, without a place (sform_code and
            qform_code are 0), or of more voxels than the file can hold; no such channel; names the file.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"path={printable(path)} must end in .nii or .nii.gz.")
    if not path.is_file():
        raise FileNotFoundError(f"{printable(path)} does not exist. {near_files(path)}")
    try:
        image: Any = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Pair):
            raise ValueError(f"it is of the kind {type(image).__name__}")
        unit = image.header.get_xyzt_units()[0]
        declared = math.prod(map(int, image.shape)) * image.get_data_dtype().itemsize
        held = path.stat().st_size * (DEFLATED if path.name.endswith(".gz") else 1)
        if declared > held:
            raise ValueError(f"{image.shape} voxels are declared, which its {path.stat().st_size:,} bytes do not hold")
        values = np.asanyarray(image.dataobj)
    except Exception as error:
        raise ValueError(f"{printable(path)} cannot be read as NIfTI: {printable(error)}") from None
    if channel is not None:
        if values.ndim != 4 or not 0 <= channel < values.shape[3]:
            raise ValueError(f"channel={channel!r}, but {printable(path)} has the shape {values.shape}.")
        values = values[..., channel]
    if not image.header["sform_code"] and not image.header["qform_code"]:
        raise ValueError(f"{printable(path)} says no place: its sform_code and its qform_code are 0.")
    affine = np.array(image.affine, float)
    affine[:3] *= MILLIMETERS[unit]
    return _turned(values, affine, [path])


class _Slice(NamedTuple):
    path: Path
    pixels: np.ndarray
    direction: np.ndarray  # of the row and of the column, three numbers each, in LPS
    position: np.ndarray  # of the first pixel, millimeters in LPS
    spacing: np.ndarray  # from row to row, from column to column
    thickness: float


def _read_slice(path: Path) -> tuple[str, _Slice]:
    """The SeriesInstanceUID of a file, and its slice."""
    try:
        data = pydicom.dcmread(path)
        if (declared := int(data.Rows) * int(data.Columns) * int(data.get("NumberOfFrames") or 1)) > MAX_PIXELS:
            raise ValueError(f"{declared:,} pixels are declared; {MAX_PIXELS:,} are the most")
        pixels = data.pixel_array.astype(np.float32)
        pixels = pixels * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
        found = _Slice(
            path,
            pixels,
            np.array(data.ImageOrientationPatient, float),
            np.array(data.ImagePositionPatient, float),
            np.array(data.PixelSpacing, float),
            float(data.get("SliceThickness") or 1),
        )
        if [pixels.ndim, *map(len, (found.direction, found.position, found.spacing))] != [2, 6, 3, 2]:
            raise ValueError(f"its pixels have the shape {pixels.shape}, and its place is {found[2:5]}")
        row, column = found.direction[:3], found.direction[3:]
        if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=1e-3):
            raise ValueError(f"its directions {found.direction.tolist()} are not at right angles, of length 1")
        if not (np.isfinite(found.position).all() and (found.spacing > 0).all()):
            raise ValueError(f"its place is {found.position.tolist()}, its spacing {found.spacing.tolist()}")
    except Exception as error:
        raise ValueError(f"{printable(path)} cannot be read as a slice of DICOM: {printable(error)}") from None
    return str(data.get("SeriesInstanceUID", "")), found


def read_dicom(folder: str | Path, series: str | None = None) -> Volume:
    """The volume of a series of DICOM files, its slices in the order of their positions along the normal.

    Neither file names nor InstanceNumber say where a slice lies. The array of the source is (row, column, slice).

    Args:
        folder: a folder whose DICOM files are meant: all of .dcm and .IMA, and those of other names that hold DICM at
            byte 128, but for a DICOMDIR.
        series: SeriesInstanceUID of the wanted ones, where there are several.

    Raises:
        FileNotFoundError: no such folder, or no DICOM files in it.
        ValueError: several series; slices that differ in size, direction or spacing; two at one place; a gap, with the
            place of the missing slice; a slice that lies beside the line of the others (which may lean, as those of a
            tilted gantry do); a broken file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder {printable(folder)} does not exist. {near_folders(folder)}")
    found: dict[str, list[_Slice]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if _is_dicom(path):
            name, one = _read_slice(path)
            found[name].append(one)
    if not found:
        raise FileNotFoundError(f"{printable(folder)} holds no DICOM files. {near_files(folder / 'x.dcm')}")
    if series is None and len(found) > 1:
        listed = ", ".join(f"{printable(name)} ({len(slices)} slices)" for name, slices in found.items())
        raise ValueError(f"{printable(folder)} holds several series: {listed}. Choose one: series=...")
    if series is not None and series not in found:
        raise ValueError(f"series={series!r} is not in {printable(folder)}. In it: {', '.join(map(printable, found))}.")
    slices = found[next(iter(found)) if series is None else series]
    one = slices[0]
    for other in slices:
        for what, mine, its in (
            ("pixels", one.pixels.shape, other.pixels.shape),
            ("directions", one.direction.tolist(), other.direction.tolist()),
            ("a spacing", one.spacing.tolist(), other.spacing.tolist()),
        ):
            if len(mine) != len(its) or not np.allclose(mine, its, atol=1e-4):
                raise ValueError(f"{printable(other.path)} has {what} of {its}, and {printable(one.path)} of {mine}.")
    normal = np.cross(one.direction[:3], one.direction[3:])
    slices.sort(key=lambda other: float(other.position @ normal))
    _check_gaps(folder, np.array([other.position @ normal for other in slices]))
    first, last = slices[0].position, slices[-1].position
    step = (last - first) / (len(slices) - 1) if len(slices) > 1 else normal * one.thickness
    most = ASIDE * min(*one.spacing, np.linalg.norm(step))
    for i, other in enumerate(slices):
        if (away := np.linalg.norm(other.position - (first + i * step))) > most:
            raise ValueError(
                f"{printable(other.path)} lies {away:.3f} mm beside its place on the line from the first slice to the "
                f"last, at {other.position.tolist()} in place of {(first + i * step).round(3).tolist()}."
            )
    affine = np.eye(4)
    affine[:3] = np.stack([one.direction[3:] * one.spacing[0], one.direction[:3] * one.spacing[1], step, first], 1)
    values = np.stack([other.pixels for other in slices], -1)
    return _turned(values, LPS_TO_RAS @ affine, [other.path for other in slices])


def _is_dicom(path: Path) -> bool:
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    with open(path, "rb") as file:
        return file.read(132)[128:] == DICOM


def _stem(path: Path) -> str:
    """The name of a slice; in others than those of `SUFFIXES` a dot is part of it, as in 1.2.840.1."""
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _check_gaps(folder: Path, depths: np.ndarray) -> None:
    gaps = np.diff(depths)
    if not len(gaps):
        return
    usual = float(np.median(gaps))
    if gaps.min() < 1e-3:
        raise ValueError(
            f"{printable(folder)}: {np.sum(gaps < 1e-3) + 1} slices lie at one place, or more; split them."
        )
    if (wrong := np.flatnonzero(abs(gaps - usual) > EVEN * usual)).size:
        i = int(wrong[0])
        raise ValueError(
            f"{printable(folder)}: the slices are {usual:.3f} mm apart, but {gaps[i]:.3f} mm between "
            f"{depths[i]:.3f} and {depths[i + 1]:.3f} mm along the normal: "
            + ("a slice is missing there." if gaps[i] > usual else "they overlap there.")
        )


def check_same_place(image: Volume, label: Volume) -> None:
    """Refuse a label that does not lie on its image.

    Raises:
        ValueError: shapes or affines differ; says both.
    """
    names = f"{printable(image.source[0])} and its label {printable(label.source[0])}"
    if image.values.shape != label.values.shape:
        raise ValueError(f"{names} differ in shape: {image.values.shape} and {label.values.shape}.")
    if not np.allclose(image.affine, label.affine, atol=1e-2):
        raise ValueError(
            f"{names} lie in different places: spacing {image.spacing} and {label.spacing}, origin "
            f"{image.affine[:3, 3].tolist()} and {label.affine[:3, 3].tolist()} mm. "
            "To take each voxel's nearest label: Case.read(resample=True)."
        )


def resampled(label: Volume, like: Volume) -> Volume:
    """Labels on the voxels of another volume: of each the nearest one, and 0 outside.

    Args:
        label: the labels.
        like: the volume whose shape and place are wanted.
    """
    to_label = np.linalg.inv(label.affine) @ like.affine
    found = np.zeros(like.values.shape, label.values.dtype)
    x, y = np.meshgrid(*map(np.arange, found.shape[:2]), indexing="ij")
    for z in range(found.shape[2]):  # a plane at a time
        at = np.einsum("ij,jxy->ixy", to_label[:3], np.stack([x, y, np.full_like(x, z), np.ones_like(x)]))
        index = np.floor(at + 0.5).astype(int)
        inside = np.all((index >= 0) & (index < np.reshape(label.values.shape, (3, 1, 1))), axis=0)
        found[..., z][inside] = label.values[tuple(index[:, inside])]
    return Volume(found, like.affine, label.source, like.source_shape, like.source_affine)


def write_nifti(path: str | Path, labels: np.ndarray, like: Volume) -> None:
    """Labels (X, Y, Z) of a volume as NIfTI, in the frame of the volume's file.

    Args:
        path: file to write, .nii or .nii.gz.
        labels: classes, integers from 0 to 255.
        like: the volume that was labeled.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"path={printable(path)} must end in .nii or .nii.gz.")
    image = nibabel.Nifti1Image(like.in_source(_bytes(labels)), like.source_affine)
    image.header.set_xyzt_units("mm")
    with replacing(path) as temporary:
        content = image.to_bytes()
        if path.name.endswith(".gz"):
            content = gzip.compress(content, mtime=0)
        temporary.write_bytes(content)


def write_masks(folder: str | Path, labels: np.ndarray, like: Volume, levels: Sequence[int] | None = None) -> None:
    """Labels (X, Y, Z) of a DICOM series as PNG masks, one beside each slice's name, as CHAOS has them.

    Args:
        folder: folder to write into.
        labels: classes, integers from 0 to 255.
        like: the volume that was labeled, of `read_dicom`.
        levels: gray level of each class; 63 * class by default.
    """
    gray = _gray(like.in_source(_bytes(labels)), levels)
    if len(like.source) != gray.shape[2]:
        raise ValueError(f"like is of {len(like.source)} files and {gray.shape[2]} slices: no series of DICOM.")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for i, path in enumerate(like.source):
        _write_png(Path(folder) / f"{_stem(path)}.png", gray[..., i])


def _bytes(labels: np.ndarray) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.integer) or (labels.size and not 0 <= labels.min() <= labels.max() <= 255):
        raise ValueError(f"labels must be integers from 0 to 255, and are {labels.dtype}.")
    return labels.astype(np.uint8)


def _gray(labels: np.ndarray, levels: Sequence[int] | None) -> np.ndarray:
    top = int(labels.max(initial=0))
    known = gray_levels([str(i) for i in range(len(levels) if levels else top + 1)], levels)
    if top >= len(known):
        raise ValueError(f"labels go to {top}, and there are {len(known)} gray levels.")
    return np.array(known, np.uint8)[labels]


def _write_png(path: Path, image: np.ndarray) -> None:
    done, content = cv2.imencode(".png", np.ascontiguousarray(image))
    assert done
    with replacing(path) as temporary:
        temporary.write_bytes(content.tobytes())


# --- published layouts -----------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A volume of a published set, and how it is read."""

    subject: str
    image: Path  # a NIfTI file, or a folder of DICOM files
    label: Path | None  # a NIfTI file, or a folder of PNG masks
    channel: int | None = None  # of a NIfTI file with several

    def read(self, levels: Sequence[int] | None = None, resample: bool = False) -> tuple[Volume, Volume | None]:
        """The image and its classes (uint8), on the same voxels.

        Args:
            levels: gray level of each class in PNG masks; CHAOS's MR by default, 63 * class.
            resample: whether a label of NIfTI that lies on other voxels is brought to those of the image.

        Raises:
            ValueError: as of the readers; a label that does not lie on its image; levels that are no class.
        """
        if not self.image.is_dir():
            image = read_nifti(self.image, self.channel)
            if self.label is None:
                return image, None
            label = read_nifti(self.label)
            if resample:
                label = resampled(label, image)
            check_same_place(image, label)
            if (label.values != np.round(label.values)).any() or label.values.min() < 0 or label.values.max() > 255:
                raise ValueError(f"{printable(self.label)} holds other values than the integers from 0 to 255.")
            label.values = label.values.astype(np.uint8)
            return image, label
        image = read_dicom(self.image)
        if self.label is None:
            return image, None
        known = gray_levels(CHAOS, None) if levels is None else tuple(levels)
        masks = np.stack([classes_of(read_gray(p), known, p) for p in self._masks(image)], -1)
        if masks.shape != image.source_shape:
            raise ValueError(f"{printable(self.label)} has masks of {masks.shape}, the slices {image.source_shape}.")
        return image, _turned(masks, image.source_affine, [self.label])

    def _masks(self, image: Volume) -> list[Path]:
        """The mask of each slice: that of its name, or if no names are the same, that of its place among the names,
        whose numbers count as numbers."""
        assert self.label is not None
        masks = {path.stem: path for path in sorted(self.label.glob("*.png"), key=lambda path: natural(path.name))}
        slices = [_stem(path) for path in image.source]
        if masks.keys() == set(slices):
            return [masks[name] for name in slices]
        if len(masks) != len(slices) or masks.keys() & set(slices):
            raise ValueError(f"{printable(self.label)} has {len(masks)} masks, and there are {len(slices)} slices.")
        of_slice = dict(zip(sorted(slices, key=natural), masks.values()))
        return [of_slice[name] for name in slices]


def chaos(root: str | Path, sequence: str = "T2SPIR") -> list[Case]:
    """The cases of CHAOS: <root>/<subject>/<sequence>/DICOM_anon/*.dcm and Ground/*.png, of the MR sets. Of T1DUAL,
    "T1DUAL/InPhase" and "T1DUAL/OutPhase" have one ground truth. `sequence=""` is the CT set.

    Raises:
        FileNotFoundError: no such folder, or no case in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"The folder {printable(root)} does not exist. {near_folders(root)}")
    kind, _, phase = sequence.partition("/")
    found = []
    for folder in sorted(root.iterdir(), key=lambda path: (len(path.name), path.name)):
        images, masks = folder / kind / "DICOM_anon" / phase, folder / kind / "Ground"
        if images.is_dir():
            found.append(Case(folder.name, images, masks if masks.is_dir() else None))
    if not found:
        raise FileNotFoundError(f"{printable(root)} holds no <subject>/{printable(sequence)}/DICOM_anon.")
    return found


def decathlon(
    root: str | Path, part: str = "training", channel: int | None = None
) -> tuple[list[Case], tuple[str, ...]]:
    """The cases of a task of the Medical Segmentation Decathlon, and the names of its classes, of its dataset.json.

    Args:
        root: folder with dataset.json.
        part: 'training', or 'test', which has no labels.
        channel: which of several images to read, of tasks with several (T1, FLAIR, ...).

    Raises:
        FileNotFoundError: no dataset.json.
        ValueError: it is broken, has no such part, or a file that it names is not there or lies outside of `root`.
    """
    path = Path(root) / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"{printable(path)} does not exist. {near_files(path)}")
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
        names = {int(number): str(name) for number, name in told["labels"].items()}
        entries = [dict(image=one) if isinstance(one, str) else dict(one) for one in told[part]]
        files = [(one["image"], one.get("label")) for one in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{printable(path)} is no description of the Decathlon's: {printable(repr(error))}") from None
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{printable(path)}: labels have the numbers {sorted(names)}, and must have 0, 1, 2, ...")
    inside = Path(root).resolve()
    cases = []
    for image, label in files:
        there = [(inside / name).resolve() for name in (image, label) if name]
        for file in there:
            if not file.is_relative_to(inside) or not file.is_file():
                raise ValueError(f"{printable(path)} names {printable(file)}, which is not there.")
        subject = there[0].name.removesuffix(".gz").removesuffix(".nii")
        cases.append(Case(subject, there[0], there[1] if label else None, channel))
    return cases, tuple(names[number] for number in range(len(names)))


def save_slices(
    folder: str | Path,
    subject: str,
    image: Volume,
    label: Volume,
    levels: Sequence[int] | None = None,
    window: tuple[float, float] | None = None,
) -> int:
    """Write a volume as the slices that `MedicalSlices` reads, from the feet to the head, as one sees them in a film:
    the patient's front up, the right side on the left.

    Args:
        folder: folder of a split; Img and GT are made in it.
        subject: name of the volume.
        image, label: the volume and its classes, of `Case.read`.
        levels: gray level of each class; 63 * class by default.
        window: values that become 0 and 255; the lowest and highest of the volume by default.

    Returns:
        The number of slices.
    """
    check_same_place(image, label)
    low, high = window or (float(image.values.min()), float(image.values.max()))
    if not low < high:
        raise ValueError(f"window={window!r} of {printable(image.source[0])} must grow from {low} to {high}.")
    values = np.clip((image.values.astype(np.float32) - low) / (high - low), 0, 1) * 255
    for name, volume in (("Img", np.round(values).astype(np.uint8)), ("GT", _gray(label.values, levels))):
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
        for i in range(volume.shape[2]):
            _write_png(Path(folder) / name / f"Subj_{subject}slice_{i + 1}.png", volume[::-1, ::-1, i].T)
    return image.values.shape[2]
