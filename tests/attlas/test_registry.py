import importlib
import subprocess
import sys
from pathlib import Path

import mmengine.runner  # noqa: F401
import pytest
from mmengine import registry as root

from attlas import registry
from attlas.registry import MODELS

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["mmdet", "mmseg"])
def neighbor(request):
    return importlib.import_module(f"{request.param}.registry").MODELS


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
    assert registry.HOOKS.get("CheckpointHook").__module__ == "attlas.resumption"


def test_every_registry_names_the_modules_that_register_in_it():
    registries = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
    for known in registries:
        with pytest.raises(registry.UnknownName):
            known.get("NoSuchName")  # imports all that there is
    for known in registries:
        for name, entry in known.module_dict.items():
            module = entry.__module__
            named = any(module == m or module.startswith(f"{m}.") for m in known.modules)
            assert named or not module.startswith("attlas."), f"{module} registers {name} among the {known.name}s"


def in_a_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_folder_of_operators_imported_by_its_own_name_registers_none_anew():
    """As transformers does where it runs in the repository."""
    out = in_a_new_process(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import attlas.kernels, kernels, torch
from attlas.kernels.halo_attention import halo_attention_op
print(kernels is not attlas.kernels, kernels.knn is attlas.kernels.knn)
print(torch.ops.attlas.halo_attention.default is halo_attention_op._opoverload)
""")
    assert out.split() == ["True"] * 3


def test_a_floor_that_is_not_installed_is_named_in_the_error():
    out = in_a_new_process("""
import sys
sys.modules["torch_geometric"] = None  # as if it were not installed
from attlas.registry import MODELS
for name in ("ImageClasifier", "RISurConvClassifier"):
    try:
        MODELS.get(name)
    except KeyError as error:
        print(error)
""")
    assert "Near names: ImageClassifier" in out
    assert "attlas.pointnets could not be imported, because 'torch_geometric' is not installed" in out
    assert "pip install 'attlas[pointnets]'" in out


def test_init_cfg_reads_files_by_our_loader_without_a_runner(tmp_path):
    out = in_a_new_process(f"""
import sys, torch
from mmengine.model import BaseModule
from attlas import checkpoint

class Line(BaseModule):
    def __init__(self):
        super().__init__(dict(type="Pretrained", checkpoint={str(tmp_path / "line.safetensors")!r}))
        self.line = torch.nn.Linear(2, 2)

assert "mmengine.runner" not in sys.modules
saved, line = Line(), Line()
checkpoint.save(saved.init_cfg["checkpoint"], saved.state_dict())
line.init_weights()
assert torch.equal(saved.line.weight, line.line.weight)
""")
    assert "2 of the network's 2 tensors loaded" in out


def test_a_name_of_mmengine_imports_no_floor():
    """They take seconds, and libraries in them speak of what they lack. Hooks below the floors may take its place."""
    in_a_new_process("""
import sys
import mmengine.hooks, mmengine.model  # which register their names
from attlas.registry import HOOKS, MODELS
assert MODELS.get("BaseDataPreprocessor").__module__.startswith("mmengine.")
assert HOOKS.get("CheckpointHook").__module__ == "attlas.resumption"
assert not [name for name in sys.modules if name.split(".")[0] in ("mmcv", "mmdet", "mmseg", "torch_geometric")]
for registry in (MODELS, HOOKS):
    registry._import_until()
    both = registry.module_dict.keys() & registry.parent.module_dict.keys()
    for name in both:
        if registry.parent.module_dict[name].__module__.startswith("mmengine."):
            assert registry.module_dict[name].__module__.split(".")[1] not in ("backbones", "pointnets", "dense"), name
""")


def test_who_trains_has_the_engine_from_the_first_look_up_on(monkeypatch):
    imported = []
    monkeypatch.setattr(registry, "import_module", imported.append)
    assert "mmengine.runner" in sys.modules
    registry.MIXERS.get("Attention")
    assert imported == ["attlas.engine", "attlas.optim"]
    imported.clear()
    monkeypatch.delitem(sys.modules, "mmengine.runner")
    registry.MIXERS.get("Attention")
    assert imported == []


@pytest.mark.parametrize("name", ["evil", "attlas.evil", "attlas.load"])
def test_a_bare_name_imports_no_module(tmp_path, monkeypatch, name):
    (tmp_path / "evil.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for known in (MODELS, registry.MIXERS):
        with pytest.raises(registry.UnknownName, match="is not a registered"):
            known.build(dict(type=name))
    assert "evil" not in sys.modules
