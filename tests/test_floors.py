"""The house rules (docs/design.md): a floor imports only floors below it, and no dependency of a higher one; a system
imports no other system; a module uses no private names of another; every file lies where it belongs."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from attlas import backbones, pointnets  # noqa: F401  the last two register
from attlas.dense import detection, gaze, matching, restoration, segmentation, video  # noqa: F401
from attlas.registry import MODELS

ROOT = Path(__file__).parents[1]

# Floor: the floors that it may import, and the distributions that it adds to theirs ("attlas" is the package root).
FLOORS = {
    # nms.py imports onnxscript when it is written to ONNX
    "kernels": (set(), {"torch", "numpy", "numba", "triton", "onnxscript"}),
    "attlas": (
        set(),
        # cv2 and matplotlib come with MMEngine; rendering.py imports open3d, and corruptions.py imagecorruptions, when
        # they are asked for
        {"torch", "numpy", "mmengine", "safetensors", "rich", "tensorboard", "cv2", "matplotlib", "open3d"}
        | {"imagecorruptions"},
    ),
    "backbones": ({"kernels", "attlas"}, set()),
    "pointnets": (
        {"kernels", "attlas", "backbones"},
        {"torch_geometric", "h5py", "scipy"},
    ),
    "dense": (
        {"kernels", "attlas", "backbones"},
        # PIL comes with Matplotlib; scipy reads MATLAB's files of key points and of masks; vlm/ imports transformers
        # when a vision-language model is asked for
        {"mmcv", "mmdet", "mmseg", "pycocotools", "nibabel", "pydicom", "PIL", "scipy", "transformers"},
    ),
}


def outside(floor: str) -> set[str]:
    """The distributions that a floor may import: its own and those of the floors below."""
    below, added = FLOORS[floor]
    return added.union(*(FLOORS[other][1] for other in below))


def module_of(path: Path) -> str:
    """The dotted name of a file of the repository, once installed."""
    inside = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return inside if inside.split(".")[0] in ("attlas", "tools") else f"attlas.{inside}"


def base_of(node: ast.ImportFrom, path: Path, module: str) -> str:
    """What stands between `from` and `import`, as an absolute name."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    above = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def imports(path: Path, module: str) -> set[str]:
    """The absolute names of everything that a file imports, wherever in the file, relative imports resolved."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{base_of(node, path, module)}.{alias.name}" for alias in node.names}
    return names


def floor_of(name: str) -> str | None:
    """The floor of a name below `attlas`; None for a name outside."""
    parts = name.split(".")
    if parts[0] != "attlas":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "attlas"


def offences(floor: str, names: set[str]) -> list[str]:
    allowed = FLOORS[floor][0] | {floor}
    found = []
    for name in sorted(names):
        target, distribution = floor_of(name), name.split(".")[0]
        if target is not None:
            if target not in allowed:
                found.append(f"{floor} imports {name}")
        elif distribution not in sys.stdlib_module_names | outside(floor):
            found.append(f"{floor} imports {name}, which is not among its dependencies")
    return found


def library() -> list[tuple[str, Path]]:
    return [(floor, path) for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


@pytest.mark.parametrize(("floor", "path"), library(), ids=lambda value: str(value).removeprefix(f"{ROOT}/"))
def test_a_file_imports_nothing_from_above(floor, path):
    assert offences(floor, imports(path, module_of(path))) == []


def test_the_walk_sees_what_it_should(tmp_path):
    """The rule is only as good as the reading of imports: each way to write one, within a function too."""
    path = tmp_path / "knn.py"
    path.write_text("import mmdet.apis as m\nfrom .. import registry\ndef f():\n    from ..pointnets.data import X\n")
    assert offences("kernels", imports(path, "attlas.kernels.knn")) == [
        "kernels imports attlas.pointnets.data.X",
        "kernels imports attlas.registry",
        "kernels imports mmdet.apis, which is not among its dependencies",
    ]
    path.write_text("from ..dense import Y\nfrom . import points\nfrom ..kernels import knn\n")
    assert offences("pointnets", imports(path, "attlas.pointnets.knn")) == ["pointnets imports attlas.dense.Y"]
    init = tmp_path / "__init__.py"
    init.write_text("from .knn import knn\nfrom ..backbones import B\n")
    assert imports(init, "attlas.kernels") == {"attlas.kernels.knn.knn", "attlas.backbones.B"}


# --- systems and private names ---------------------------------------------------------------------------------------

# Of the files beside the systems: what several of them share.
SHARED = {
    "backbones": {"__init__", "zoo", "channels", "published"},
    "pointnets": {
        "__init__",
        "classifier",
        "datasets",
        "explanation",
        "inference",
        "layers",
        "metrics",
        "pictures",
        "scenes",
        "segmenter",
        "shapes",
        "transforms",
        "viewer",
    },
    "dense/detection": {
        "__init__",
        "coco",
        "datasets",
        "doctor",
        "explanation",
        "export",
        "inference",
        "inspection",
        "mixer_encoder",
        "panoptic",
        "pictures",
        "position_relation",
    },
    "dense/segmentation": {
        "__init__",
        "datasets",
        "doctor",
        "explanation",
        "export",
        "inference",
        "maps",
        "medical",
        "metrics",
        "pictures",
        "scores",
        "views",
        "volumes",
    },
    "dense/matching": {"__init__", "datasets", "inference", "matcher", "metrics", "pictures", "warps"},
    "dense/restoration": {
        "__init__",
        "attribution",
        "datasets",
        "degradations",
        "export",
        "inference",
        "metrics",
        "network",
        "photographs",
        "pictures",
        "restorer",
    },
    "dense/vlm": {"__init__", "inference", "pictures", "rows", "views"},
    "dense/video": {
        "__init__",
        "datasets",
        "detector",
        "errors",
        "inference",
        "metrics",
        "pictures",
        "room_walks",
        "videos",
        "windows",
    },
    "dense/gaze": {
        "__init__",
        "datasets",
        "inference",
        "metrics",
        "pictures",
        "positions",
        "preprocessing",
        "shelves",
    },
}


def systems(floor: str) -> set[str]:
    """The modules of a folder that are each a published network, as `attlas.floor.name`."""
    package = f"attlas.{floor.replace('/', '.')}"
    return {f"{package}.{path.stem}" for path in (ROOT / floor).glob("*.py") if path.stem not in SHARED[floor]}


def test_a_file_beside_the_systems_is_a_system():
    of_images = {system.__module__ for system in backbones.systems().values()}
    of_sequences = {"attlas.backbones.transnormer"}  # give no maps, so they are no `Backbone`
    assert systems("backbones") - of_images == of_sequences
    # one reads networks of others, the other is put into them
    without_a_network = {"attlas.dense.vlm.carve", "attlas.dense.vlm.vision_remember"}
    networks = {entry.__module__ for entry in MODELS.module_dict.values()} | of_images | without_a_network
    assert {name for floor in SHARED for name in systems(floor) - networks} == set()


@pytest.mark.parametrize("floor", SHARED)
def test_a_system_imports_no_other_system(floor):
    known = systems(floor)
    for module in sorted(known):
        names = imports(ROOT / floor / f"{module.rpartition('.')[2]}.py", module)
        assert [n for n in names for other in known - {module} if n == other or n.startswith(f"{other}.")] == [], module


def private(path: Path, module: str) -> list[str]:
    """The private names of other modules of the library that a file imports, or reaches by a dot."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bound: dict[str, str] = {}  # local names of what is imported from the library
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = base_of(node, path, module)
            bound |= {a.asname or a.name: f"{base}.{a.name}" for a in node.names if base.split(".")[0] == "attlas"}
        elif isinstance(node, ast.Import):
            bound |= {a.asname or "attlas": a.name if a.asname else "attlas" for a in node.names if "attlas" in a.name}
    found = [name for name in bound.values() if is_private(name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            first = whole.partition(".")[0]
            if first in bound and is_private(whole):
                found.append(bound[first] + whole.removeprefix(first))
    return sorted(found)


def is_private(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last.startswith("_") and not last.endswith("__")


@pytest.mark.parametrize("floor", [*FLOORS, "tools"])
def test_private_names_stay_in_their_module(floor):
    found = {}
    for path in sorted((ROOT / floor).rglob("*.py")):
        if names := private(path, module_of(path)):
            found[path.relative_to(ROOT).as_posix()] = names
    assert found == {}


def test_the_walk_sees_private_names(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        "from ..kernels.knn import _search, find\nfrom ..kernels import knn as k\nimport attlas.registry\n"
        "k._tree(1); attlas.registry._all; k.__name__; self._own; find._cache\n"
    )
    assert private(path, "attlas.backbones.x") == [
        "attlas.kernels.knn._search",
        "attlas.kernels.knn._tree",
        "attlas.kernels.knn.find._cache",
        "attlas.registry._all",
    ]


# --- tests -----------------------------------------------------------------------------------------------------------

# All others test the file whose name they have; where that grows, the fuzzers stand beside them as test_<file>_fuzz.py.
OF_SEVERAL_FILES = {
    "test_floors.py",
    "test_golden.py",
    "backbones/test_systems.py",
    "dense/detection/test_configs.py",
    "dense/detection/test_training.py",
    "dense/restoration/test_configs.py",
    "dense/restoration/test_training.py",
    "dense/segmentation/test_configs.py",
    "dense/segmentation/test_training.py",
    "dense/video/test_training.py",
    "kernels/test_operators.py",
    "pointnets/test_baselines.py",
    "pointnets/test_training.py",
    "tools/test_restorers.py",
    "tools/test_tools.py",
}


def test_the_tests_that_are_called_slow_exist():
    """tests/slow.txt is written by measuring: a test that was renamed since is not slow any more."""
    for line in (ROOT / "tests/slow.txt").read_text().splitlines():
        path, *_, name = line.partition("[")[0].split("::")
        assert f"def {name}(" in (ROOT / path).read_text(), line


def test_a_test_lies_where_its_file_does():
    tests = ROOT / "tests"
    astray = []
    for path in tests.rglob("test_*.py"):
        inside = path.relative_to(tests)
        tested = ROOT / inside.with_name(f"{inside.stem.removeprefix('test_').removesuffix('_fuzz')}.py")
        if inside.as_posix() not in OF_SEVERAL_FILES and not (tested.exists() or tested.with_suffix("").is_dir()):
            astray.append(str(inside))
    assert astray == []
    assert [name for name in OF_SEVERAL_FILES if not (tests / name).exists()] == []


# --- what is loaded --------------------------------------------------------------------------------------------------

# What a user does, step by step in one process, and what must not be loaded after that step.
POINTS = {"torch_geometric", "trimesh", "h5py", "open3d", "torch._dynamo"}  # PyG imports the last
TRAINING = {"mmengine.runner", "attlas.engine", "attlas.optim"}
PICTURES = {"cv2", "matplotlib"}
STEPS = {
    "import attlas": {"torch", "numpy"},
    "import attlas.kernels": {"mmengine", "rich", "safetensors"} | POINTS | TRAINING | PICTURES,
    "from attlas import backbones; backbones.list(); backbones.create('shvit_s1')": POINTS | TRAINING | PICTURES,
    "from attlas.registry import MIXERS; MIXERS.get('BiLevelRouting')": POINTS | TRAINING | PICTURES,
    "import runpy, sys": POINTS | TRAINING | PICTURES,
    **{
        f"""
sys.argv = [{path.name!r}, '--help']
try:
    runpy.run_path({str(path)!r}, run_name='__main__')
except SystemExit as end:
    assert not end.code
""": POINTS | TRAINING | PICTURES
        for path in sorted((ROOT / "tools").glob("*.py"))
        if path.name != "make_furniture14.py"  # of the maintainers
    },
    "from attlas.registry import MODELS; MODELS.get('ImageClassifier')": POINTS | TRAINING | {"matplotlib"},
    "from attlas.registry import OPTIMIZERS; OPTIMIZERS.get('LAMB')": POINTS | {"mmengine.runner", "matplotlib"},
    "from attlas.registry import DATASETS; DATASETS.get('Furniture14')": {"open3d", "trimesh", "matplotlib"},
    "import attlas.engine": {"open3d", "trimesh"},
}


def test_each_step_loads_only_what_it_uses():
    code = "\n".join(
        f"exec({step!r})\nprint('loaded:', *(name for name in {sorted(forbidden)!r} if name in sys.modules))"
        for step, forbidden in STEPS.items()
    )
    done = subprocess.run([sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("loaded:")]
    assert dict(zip(STEPS, loaded)) == {step: [] for step in STEPS}


@pytest.mark.slow
def test_the_wheel_holds_the_floors_and_imports(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, "."]
    source = tmp_path / "source"  # a copy: the build leaves files beside setup.py
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "attlas", *(f for f in FLOORS if f != "attlas")):
        (source / name).symlink_to(ROOT / name)
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    for floor, path in library():
        inside = path.relative_to(ROOT)
        assert str(inside if floor == "attlas" else "attlas" / inside) in names
    assert {"attlas/furniture14.npz", "attlas/backbones/weights.csv"} <= names
    assert not [name for name in names if name.split("/")[0] in {"kernels", "pointnets", "tests", "tools", "configs"}]
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); import attlas.kernels; print(attlas.__file__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert shown.stdout.startswith(str(wheel))
