import subprocess
import sys

import pytest
from mmengine import registry as root

from attlas import registry
from attlas.registry import MODELS


@pytest.fixture(params=["mmdet", "mmseg"])
def neighbor(request):
    """A registry of another scope below MMEngine's root, which is what mmdet's and mmseg's are."""
    children = root.MODELS._children
    found = children.get(request.param) or root.Registry("model", parent=root.MODELS, scope=request.param)
    yield found
    children.pop(request.param, None)


def test_found_from_other_scopes(neighbor):
    expected = MODELS.get("RISurConvClassifier")
    assert neighbor.get("attlas.RISurConvClassifier") is expected
    assert neighbor.get("RISurConvClassifier") is expected
    assert root.MODELS.get("attlas.RISurConvClassifier") is expected


def test_every_registry_of_mmengine_has_ours():
    names = {name for name, value in vars(root).items() if isinstance(value, root.Registry) and name.isupper()}
    missing = {n for n in names if not isinstance(getattr(registry, n, None), registry.Registry)}
    assert missing <= {"LOG_PROCESSOR"}, missing


def test_unknown_name_lists_near_ones_and_the_import_line():
    for name in ("RISurConvClasifier", "attlas.risurconvclassifier"):
        with pytest.raises(KeyError) as error:
            MODELS.build(dict(type=name))
        assert "RISurConvClassifier" in str(error.value)
        assert "custom_imports = dict(imports=" in str(error.value)


def test_a_taken_root_name_is_left_alone():
    taken = root.HOOKS.get("CheckpointHook")
    assert taken.__module__.startswith("mmengine")
    assert registry.HOOKS.get("CheckpointHook").__module__ == "attlas.engine"


def test_a_floor_that_is_not_installed_is_named_in_the_error():
    code = """
import sys
sys.modules["torch_geometric"] = None  # as if it were not installed
from attlas.registry import MODELS
try:
    MODELS.get("RISurConvClassifier")
except KeyError as error:
    print(error.args[0])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "attlas.pointnets could not be imported, because 'torch_geometric' is not installed" in out
    assert "pip install 'attlas[pointnets]'" in out
