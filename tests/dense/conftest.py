"""mmdet's classes are imported by the tests: attlas first, which offers mmcv what it lacks."""

import pytest

from attlas.dense.room_files import room_folder


@pytest.fixture(scope="session")
def furnished(tmp_path_factory):
    """The arguments of a folder of three small rooms that is finished."""
    arguments = dict(split="test", count=3, size=(96, 72), seed=5, cache=tmp_path_factory.mktemp("cache"), workers=0)
    room_folder(**arguments)
    return arguments
