"""The built-in videos, few and small."""

import pytest

from attlas.dense.video.room_walks import walk_folder


@pytest.fixture(scope="session")
def walks(tmp_path_factory):
    """The arguments of the built-in videos, few and small ones."""
    cache = tmp_path_factory.mktemp("cache")
    arguments = dict(count=1, frames=24, size=(32, 24), cache=cache, workers=0)
    for split in ("train", "test"):
        walk_folder(split, **arguments)
    return arguments
