import numpy as np
import pytest
import torch

from attlas.backbones.language.inference import Reading
from attlas.files import save_figure


def test_a_file_and_an_array_are_the_same(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"hello")
    task = Reading()
    read, taken = task.read(path), task.take(np.frombuffer(b"hello", np.uint8))
    assert read["tokens"].tolist() == taken["tokens"].tolist() == list(b"hello")
    assert task.form(read) == (5,)


def test_what_is_said(tmp_path):
    task, source = Reading(), dict(tokens=torch.zeros(5, dtype=torch.int64))
    result = task.result(dict(bits=torch.tensor([1.0, 2.0, 3.0, 4.0])), source, (), 1)
    assert result == dict(bytes=5, bits_per_byte=2.5, along=[1.0, 2.0, 3.0, 4.0])
    assert task.said(result) == "2.500 bits per byte, 5 bytes"
    save_figure(task.draw(source, result), tmp_path / "bits.png")
    assert (tmp_path / "bits.png").stat().st_size > 1000


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"uint8 \(N,\) of at least two bytes, not uint8 \(1,\)"):
        Reading().take(np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match="NaN or infinite"):
        Reading().result(dict(bits=torch.tensor([torch.nan])), dict(tokens=torch.zeros(2)), (), 1)
