"""The scope of the tests of segmentors."""

import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def _scope():
    """mmseg's, as the configs of segmentors have it, whatever a Runner before left."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield
