"""Volumes in the files of scanners: where voxels lie, and that they lie there again after writing."""

import gzip
import json

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from attlas.dense.segmentation.medical import MedicalSlices, ReadSlice
from attlas.dense.segmentation.volumes import (
    Case,
    chaos,
    check_same_place,
    decathlon,
    read_dicom,
    read_nifti,
    save_slices,
    write_masks,
    write_nifti,
)

SHAPE = (5, 6, 4)  # along the patient's x, y, z
SPACING = (1.5, 2.0, 4.0)


def nifti(path, codes="RAS", shape=SHAPE, dtype=np.int16, values=None):
    """A file whose axes point as codes say, of one scene: a voxel's value is 100 x + 10 y + z of its place."""
    scene = sum(factor * axis for factor, axis in zip((100, 10, 1), np.meshgrid(*map(np.arange, shape), indexing="ij")))
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = -30, 20, 7
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    turned = nibabel.orientations.apply_orientation(scene if values is None else values, turn).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(turned, affine @ inv_ornt_aff(turn, shape)), path)
    return scene


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_the_corner_voxel_of_nifti_goes_home(tmp_path, codes):
    scene = nifti(tmp_path / "a.nii.gz", codes)
    volume = read_nifti(tmp_path / "a.nii.gz")
    assert np.array_equal(volume.values, scene)
    assert volume.spacing == pytest.approx(SPACING)
    assert volume.affine[:3, 3].tolist() == [-30, 20, 7]
    labels = np.zeros(SHAPE, np.int64)
    labels[0, 0, 0], labels[4, 0, 3] = 3, 1  # right is the last x
    write_nifti(tmp_path / "labels.nii.gz", labels, volume)
    before, after = (nibabel.load(tmp_path / name) for name in ("a.nii.gz", "labels.nii.gz"))
    assert after.shape == before.shape
    assert np.allclose(after.affine, before.affine)
    raw = np.asarray(before.dataobj)
    assert raw[np.asarray(after.dataobj) == 3].tolist() == [0]
    assert raw[np.asarray(after.dataobj) == 1].tolist() == [403]
    check_same_place(volume, read_nifti(tmp_path / "labels.nii.gz"))


def test_files_of_nifti_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.nii"):
        read_nifti(tmp_path / "a.nii")
    (tmp_path / "broken.nii").write_bytes(b"\x5c\x01" + bytes(100))
    with pytest.raises(ValueError, match=r"broken\.nii cannot be read as NIfTI"):
        read_nifti(tmp_path / "broken.nii")
    nifti(tmp_path / "whole.nii")
    (tmp_path / "short.nii").write_bytes((tmp_path / "whole.nii").read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"short\.nii cannot be read"):
        read_nifti(tmp_path / "short.nii")
    nifti(tmp_path / "nan.nii", dtype=np.float32, values=np.full(SHAPE, np.nan))
    with pytest.raises(ValueError, match="120 voxels that are NaN"):
        read_nifti(tmp_path / "nan.nii")
    header = nibabel.Nifti1Header()
    header["sform_code"], header["srow_x"], header["srow_y"] = 2, (1e9, 0, 0, 0), (0, 1e9, 0, 0)  # z leads nowhere
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), None, header), tmp_path / "flat.nii")
    with pytest.raises(ValueError, match=r"flat\.nii says no place"):
        read_nifti(tmp_path / "flat.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3, 2), np.int16), np.eye(4)), tmp_path / "two.nii")
    with pytest.raises(ValueError, match=r"has the shape \(3, 3, 3, 2\)"):
        read_nifti(tmp_path / "two.nii")
    assert read_nifti(tmp_path / "two.nii", channel=1).values.shape == (3, 3, 3)
    volume = read_nifti(tmp_path / "whole.nii")
    with pytest.raises(ValueError, match="integers from 0 to 255"):
        write_nifti(tmp_path / "x.nii", np.full(SHAPE, 300), volume)
    with pytest.raises(ValueError, match=r"must end in \.nii"):
        write_nifti(tmp_path / "x.png", np.zeros(SHAPE, int), volume)


def slice_of(
    path, pixels, position, direction=(1, 0, 0, 0, 1, 0), series="1.2.3", number=1, slope=1, spacing=(2.0, 1.5)
):
    """A file of DICOM in the format of scanners."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.InstanceNumber, data.Modality = series, number, "MR"
    data.ImagePositionPatient, data.ImageOrientationPatient = list(position), list(direction)
    data.PixelSpacing, data.SliceThickness = list(spacing), 9.0  # the thickness is not the distance
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleSlope, data.RescaleIntercept = slope, -5
    data.PixelData = pixels.astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def series(folder, count=4, skip=(), **options):
    """Axial slices whose names and numbers run against their positions. Values: 100 * height + 10 * row + column."""
    rows, columns = np.meshgrid(np.arange(6), np.arange(5), indexing="ij")
    for i in set(range(count)) - set(skip):
        height = count - 1 - i
        number = [3, 1, 4, 2, 7, 5, 6][i]
        slice_of(
            folder / f"IMG-{i:05d}.dcm", 100 * height + 10 * rows + columns, (-30, 20, 7 + 4 * height), number=number,
            **options,
        )  # fmt: skip


def test_dicom_is_sorted_by_position(tmp_path):
    series(tmp_path / "a", slope=2)
    volume = read_dicom(tmp_path / "a")
    assert volume.values.shape == SHAPE
    assert volume.spacing == pytest.approx(SPACING)
    # the first pixel is the rightmost and foremost: in RAS the last x and the last y
    assert volume.values[4, 5].tolist() == [-5, 195, 395, 595]
    assert volume.values[0, 0, 1] == 2 * (100 + 50 + 4) - 5
    assert np.allclose(volume.affine @ [4, 5, 0, 1], [30, -20, 7, 1])
    assert [path.stem for path in volume.source] == ["IMG-00003", "IMG-00002", "IMG-00001", "IMG-00000"]


def test_the_corner_voxel_of_dicom_goes_home(tmp_path):
    series(tmp_path / "a")
    volume = read_dicom(tmp_path / "a")
    labels = np.zeros(SHAPE, np.uint8)
    labels[4, 5, 3], labels[0, 5, 0] = 2, 4
    write_masks(tmp_path / "masks", labels, volume)
    top, bottom = (cv2.imread(str(tmp_path / f"masks/IMG-0000{i}.png"), cv2.IMREAD_UNCHANGED) for i in (0, 3))
    assert np.argwhere(top).tolist() == [[0, 0]]
    assert top[0, 0] == 126
    assert np.argwhere(bottom).tolist() == [[0, 4]]
    assert bottom[0, 4] == 252
    write_nifti(tmp_path / "labels.nii.gz", labels, volume)
    again = read_nifti(tmp_path / "labels.nii.gz")
    assert np.array_equal(again.values, labels)
    check_same_place(volume, again)


def test_labels_of_45_degrees_go_home(tmp_path):
    """Each axis is as near to one of the patient's as to another, and rounding decides."""
    direction, at = (-0.707107, 0.707107, 0, 0, 0, -1), np.array([-84.85, -120.3, 119.76])
    normal = np.cross(direction[:3], direction[3:])
    for i in range(25):
        pixels = np.full((12, 10), i)
        place = (at + 3 * i * normal).round(4)
        slice_of(tmp_path / f"a/{i}.dcm", pixels, place, direction, spacing=(0.46875, 0.46875))
    volume = read_dicom(tmp_path / "a")
    found = volume.in_source(volume.values)
    assert found.shape == volume.source_shape == (12, 10, 25)
    assert np.array_equal(found, np.broadcast_to(np.arange(25) - 5, found.shape))
    labels = np.zeros(volume.values.shape, np.uint8)
    labels[volume.values == 3 - 5] = 2
    write_masks(tmp_path / "masks", labels, volume)
    assert [i for i in range(25) if cv2.imread(str(tmp_path / f"masks/{i}.png")).any()] == [3]


def test_units_and_places_of_nifti(tmp_path):
    scene, affine = np.zeros(SHAPE, np.int16), np.diag([2.0, 3, 4, 1])
    for unit, factor in (("mm", 1), ("unknown", 1), ("meter", 1000), ("micron", 0.001)):
        image = nibabel.Nifti1Image(scene, affine)
        image.header.set_xyzt_units(unit)
        nibabel.save(image, tmp_path / "a.nii")
        assert read_nifti(tmp_path / "a.nii").spacing == pytest.approx((2 * factor, 3 * factor, 4 * factor))
    nibabel.save(nibabel.Nifti1Image(scene, None), tmp_path / "nowhere.nii")
    with pytest.raises(ValueError, match=r"nowhere\.nii says no place: its sform_code and its qform_code are 0"):
        read_nifti(tmp_path / "nowhere.nii")
    colors = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colors, affine), tmp_path / "colors.nii")
    with pytest.raises(ValueError, match=r"colors\.nii holds .*; a voxel has one real number"):
        read_nifti(tmp_path / "colors.nii")
    header = nibabel.Nifti1Image(np.broadcast_to(np.uint8(0), SHAPE), affine).header
    header["dim"][1:4] = 30000
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    with pytest.raises(ValueError, match=r"bomb\.nii\.gz cannot be read .* voxels are declared, which its"):
        read_nifti(tmp_path / "bomb.nii.gz")


def test_slices_beside_their_place(tmp_path):
    for folder, aside in (("jump", (0, 0, 3, 0, 0)), ("tilted", (0, 1, 2, 3, 4))):
        for i, away in enumerate(aside):
            slice_of(tmp_path / f"{folder}/{i}.dcm", np.zeros((6, 5)), (-30, 20 + away, 7 + 4 * i))
    with pytest.raises(ValueError, match=r"2\.dcm lies 3\.000 mm beside its place"):
        read_dicom(tmp_path / "jump")
    assert read_dicom(tmp_path / "tilted").spacing == pytest.approx((1.5, 2, 17**0.5))


def test_files_of_dicom_by_any_name(tmp_path):
    """By DICOM's mark, or a suffix that promises it."""
    names = ("a.IMA", "b", "1.2.840.3", "1.2.840.4")
    for i, name in enumerate(names):
        slice_of(tmp_path / "a" / name, np.full((6, 5), i), (-30, 20, 4 * i))
    slice_of(tmp_path / "a/DICOMDIR", np.zeros((6, 5)), (0, 0, 0), series="9")
    (tmp_path / "a/README").write_text("Slices of a phantom. " * 20)
    volume = read_dicom(tmp_path / "a")
    assert [path.name for path in volume.source] == [*names]
    write_masks(tmp_path / "masks", np.zeros(volume.values.shape, int), volume)
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {
        "a.png", "b.png", "1.2.840.3.png", "1.2.840.4.png"
    }  # fmt: skip
    (tmp_path / "a/old.ima").write_bytes(bytes(500))
    with pytest.raises(ValueError, match=r"old\.ima cannot be read as a slice"):
        read_dicom(tmp_path / "a")


def test_series_that_are_no_volume(tmp_path):
    series(tmp_path / "gap", count=6, skip=(2,))
    with pytest.raises(ValueError, match=r"4\.000 mm apart, but 8\.000 mm between 15\.000 and 23\.000 mm.* missing"):
        read_dicom(tmp_path / "gap")
    series(tmp_path / "two")
    slice_of(tmp_path / "two/other.dcm", np.zeros((6, 5)), (0, 0, 0), series="9.9")
    with pytest.raises(ValueError, match=r"several series: 1\.2\.3 \(4 slices\), 9\.9 \(1 slices\)"):
        read_dicom(tmp_path / "two")
    assert read_dicom(tmp_path / "two", "9.9").spacing == pytest.approx((1.5, 2, 9))
    with pytest.raises(ValueError, match=r"series='8' is not in"):
        read_dicom(tmp_path / "two", "8")
    series(tmp_path / "twice")
    slice_of(tmp_path / "twice/again.dcm", np.zeros((6, 5)), (-30, 20, 7))
    with pytest.raises(ValueError, match="2 slices lie at one place"):
        read_dicom(tmp_path / "twice")
    series(tmp_path / "wide")
    slice_of(tmp_path / "wide/x.dcm", np.zeros((6, 7)), (-30, 20, 23))
    with pytest.raises(ValueError, match=r"x\.dcm has pixels of \(6, 7\)"):
        read_dicom(tmp_path / "wide")
    series(tmp_path / "broken")
    (tmp_path / "broken/IMG-00001.dcm").write_bytes(b"no DICOM" * 30)
    with pytest.raises(ValueError, match=r"IMG-00001\.dcm cannot be read as a slice"):
        read_dicom(tmp_path / "broken")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="no DICOM files"):
        read_dicom(tmp_path / "none")


def chaos_files(root, names="IMG"):
    """CHAOS's MR: a folder for each subject, anonymous slices, masks of 63 * class."""
    for subject in (10, 2):
        folder = root / f"{subject}/T2SPIR"
        series(folder / "DICOM_anon")
        (folder / "Ground").mkdir()
        for i in range(4):
            mask = np.zeros((6, 5), np.uint8)
            mask[0, i] = 63 * (4 - i)
            cv2.imwrite(str(folder / f"Ground/{names}-{i:05d}.png"), mask)


@pytest.mark.parametrize("names", ["IMG", "liver_GT"])
def test_chaos(tmp_path, names):
    chaos_files(tmp_path, names)
    cases = chaos(tmp_path)
    assert [case.subject for case in cases] == ["2", "10"]
    image, label = cases[0].read()
    for i in range(4):  # slice i lies at height 3 - i
        assert label.values[4 - i, 5, 3 - i] == 4 - i
        assert image.values[4 - i, 5, 3 - i] == 100 * (3 - i) + i - 5
    assert label.values.sum() == 10
    cv2.imwrite(str(cases[0].label / f"{names}-00001.png"), np.full((6, 5), 255, np.uint8))
    with pytest.raises(ValueError, match=rf"{names}-00001\.png holds gray levels that are no class: 255 \(30 pixels\)"):
        cases[0].read()
    (cases[0].label / f"{names}-00001.png").unlink()
    with pytest.raises(ValueError, match="has 3 masks, and there are 4 slices"):
        cases[0].read()


def test_masks_are_paired_in_the_order_of_numbers(tmp_path):
    for i in range(12):
        slice_of(tmp_path / f"images/slice{i}.dcm", np.full((6, 5), i), (-30, 20, 4 * i))
        (tmp_path / "masks").mkdir(exist_ok=True)
        mask = np.zeros((6, 5), np.uint8)
        mask[0, 0] = 63 * (i % 5)
        cv2.imwrite(str(tmp_path / f"masks/m{i:03d}.png"), mask)
    _, label = Case("a", tmp_path / "images", tmp_path / "masks").read()
    assert label.values[4, 5].tolist() == [i % 5 for i in range(12)]


def test_decathlon(tmp_path):
    nifti(tmp_path / "imagesTr/la_003.nii.gz", "LAS")
    labels = np.zeros(SHAPE, np.uint8)
    labels[4, 0, 3] = 1
    nifti(tmp_path / "labelsTr/la_003.nii.gz", "PSR", values=labels)  # turned otherwise, and at the same place
    nifti(tmp_path / "imagesTs/la_001.nii.gz")
    told = dict(
        labels={"0": "background", "1": "left atrium"},
        training=[dict(image="./imagesTr/la_003.nii.gz", label="./labelsTr/la_003.nii.gz")],
        test=["./imagesTs/la_001.nii.gz"],
    )
    (tmp_path / "dataset.json").write_text(json.dumps(told))
    cases, classes = decathlon(tmp_path)
    assert classes == ("background", "left atrium")
    assert cases[0].subject == "la_003"
    image, label = cases[0].read()
    assert image.values[label.values == 1].tolist() == [403]
    (test,), _ = decathlon(tmp_path, "test")
    assert test.read()[1] is None
    nifti(tmp_path / "labelsTr/la_003.nii.gz", shape=(5, 6, 3))
    with pytest.raises(ValueError, match=r"differ in shape: \(5, 6, 4\) and \(5, 6, 3\)"):
        cases[0].read()
    image = nibabel.load(tmp_path / "imagesTr/la_003.nii.gz")
    moved = np.diag([1.0, 1, 1, 1])
    moved[0, 3] = 1
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), moved @ image.affine), cases[0].label)
    with pytest.raises(ValueError, match="lie in different places"):
        cases[0].read()
    expected = np.zeros(SHAPE)  # 1 mm of 1.5 is the next voxel
    expected[1:] = image.get_fdata()[::-1][:-1] > 100
    bright = (image.get_fdata() > 100).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(bright, moved @ image.affine), cases[0].label)
    assert np.array_equal(cases[0].read(resample=True)[1].values, expected)
    (tmp_path / "dataset.json").write_text(json.dumps(told | dict(test=["../outside.nii.gz"])))
    with pytest.raises(ValueError, match="which is not there"):
        decathlon(tmp_path, "test")
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(ValueError, match="no description of the Decathlon's"):
        decathlon(tmp_path)


def test_from_scanner_to_slices(tmp_path):
    """A slice is seen with the patient's right on the left, and the front up, as CHAOS's own are."""
    chaos_files(tmp_path / "chaos")
    for case in chaos(tmp_path / "chaos"):
        assert save_slices(tmp_path / "slices/train", case.subject, *case.read()) == 4
    data = MedicalSlices(str(tmp_path / "slices"), pipeline=[ReadSlice()])
    assert [(one["subject"], one["slice"]) for one in map(data.get_data_info, range(8))] == [
        (subject, i) for subject in ("2", "10") for i in (1, 2, 3, 4)
    ]
    lowest = data[0]
    assert np.argwhere(lowest["gt_seg_map"]).tolist() == [[0, 3]]
    assert lowest["gt_seg_map"][0, 3] == 1
    raw = pydicom.dcmread(tmp_path / "chaos/2/T2SPIR/DICOM_anon/IMG-00003.dcm").pixel_array
    assert np.array_equal(lowest["img"], np.round(raw * 255 / 354))
