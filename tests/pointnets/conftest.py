"""Shapes are read from files that a test writes."""

import pytest

from attlas.pointnets.shapes import read_shape


@pytest.fixture
def read(tmp_path):
    """read(name, content) -> the shape of a file that holds `content`."""

    def call(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_shape(path)

    return call
