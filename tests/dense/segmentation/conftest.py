"""The scope of the tests of segmentors, and their rooms."""

import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def _scope():
    """mmseg's, as the configs of segmentors have it, whatever a Runner before left."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


@pytest.fixture(scope="session")
def rooms(furnished):
    """The arguments of a `FurnishedRoomsMaps` of three small rooms."""
    return {"room_seed" if name == "seed" else name: value for name, value in furnished.items()}
