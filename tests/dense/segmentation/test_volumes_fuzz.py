"""Mutated files of NIfTI and DICOM, read in a child process: it lives, and an error names the file."""

import gzip
import random
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from fuzzing import fuzz, mutated, tally, tries
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from attlas.dense.segmentation.volumes import read_dicom, read_nifti

COUNT = tries(400)
TEMPORARY = tempfile.TemporaryDirectory(prefix="attlas-fuzz-")  # of the process, parent or child
FOLDER = Path(TEMPORARY.name)
NIFTI = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([1.0, 2, 3, 1])).to_bytes()


def dicom() -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, pydicom.uid.MRImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.SeriesInstanceUID = "1.2"
    data.ImagePositionPatient, data.ImageOrientationPatient, data.PixelSpacing = [1, 2, 3], [1, 0, 0, 0, 1, 0], [1, 2]
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 4, 3, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = bytes(range(24))
    data.save_as(FOLDER / "whole", enforce_file_format=True)
    return (FOLDER / "whole").read_bytes()


FILES = {"a.nii": NIFTI, "a.nii.gz": gzip.compress(NIFTI, mtime=0), "a.dcm": dicom()}


def try_one(given) -> list:
    """The shape of the volume of a file that is mutated by a seed."""
    name, seed = given
    folder = FOLDER / name.partition(".")[2]
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(mutated(FILES[name], random.Random(seed)))
    volume = read_dicom(folder) if name.endswith("dcm") else read_nifti(folder / name)
    assert np.isfinite(volume.values).all()
    assert np.isfinite(volume.affine).all()
    assert volume.in_source(volume.values).shape == volume.source_shape
    return list(volume.values.shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_mutated_volumes(name, count):
    outcomes = fuzz(try_one, [[name, seed] for seed in range(COUNT)])
    for outcome in outcomes:
        assert outcome.died is None, outcome
        assert len(outcome.value or [0] * 3) == 3
        if outcome.error:
            kind, message = outcome.error
            assert kind == "ValueError", outcome
            assert name in message, outcome
    count("mutated volumes", f"{name} " + tally(outcomes))
