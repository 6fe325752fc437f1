"""The stand-in for mmcv's compiled extension: when it is used, and that mmcv's own operators work on it."""

import importlib.util
import subprocess
import sys

import pytest

import attlas  # noqa: F401  before mmcv
from attlas.kernels import mmcv_ext

pytest.importorskip("mmcv")  # the machine of `make gpu` has none


def run(code: str) -> str:
    """What a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_every_name_can_be_imported():
    """mmcv asks for its 113 names when it is imported."""
    importlib.import_module("mmcv.ops")
    extension = importlib.import_module("mmcv._ext")
    assert importlib.util.find_spec("mmcv._ext") is not None
    for name in mmcv_ext.__all__:
        assert getattr(extension, name) is getattr(mmcv_ext, name)
    with pytest.raises(AttributeError, match="no attribute '__wrapped__'"):
        extension.__wrapped__  # noqa: B018


def test_a_missing_operator_says_what_to_do():
    extension = importlib.import_module("mmcv._ext")
    with pytest.raises(RuntimeError, match=r"operator upfirdn2d needs mmcv's compiled extension.*pip install"):
        extension.upfirdn2d(1, 2)


def test_a_compiled_extension_comes_first(tmp_path):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv/__init__.py").touch()
    (tmp_path / "mmcv/_ext.py").write_text("compiled = True")
    find = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    assert run(f"{find}; import attlas, mmcv._ext; print(vars(mmcv._ext).get('compiled'))") == "True"


def test_importing_attlas_imports_nothing_else():
    assert run("import attlas, sys; print({'torch', 'numpy', 'mmcv', 'mmengine'} & set(sys.modules))") == "set()"
