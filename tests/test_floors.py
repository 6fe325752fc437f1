"""The floors of the house (docs/design.md): a floor imports only floors below it, and no dependency of a higher one."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Floor: the floors that it may import, and the distributions that it adds to theirs ("attlas" is the package root).
FLOORS = {
    "kernels": (set(), {"torch", "numpy", "numba", "triton"}),
    "attlas": (
        set(),
        # the last is of rendering.py alone, which loads when asked for
        {"torch", "numpy", "mmengine", "safetensors", "rich", "tensorboard", "cv2", "open3d"},
    ),
    "backbones": ({"kernels", "attlas"}, {"matplotlib"}),  # which MMEngine brings
    "pointnets": (
        {"kernels", "attlas", "backbones"},
        {"torch_geometric", "trimesh", "h5py", "scipy"},
    ),
    "dense": ({"kernels", "attlas", "backbones"}, {"mmcv", "mmdet", "mmseg"}),
}


def outside(floor: str) -> set[str]:
    """The distributions that a floor may import: its own and those of the floors below."""
    below, added = FLOORS[floor]
    return added.union(*(FLOORS[other][1] for other in below))


def imports(path: Path, module: str) -> set[str]:
    """The absolute names of everything that a file imports, wherever in the file, relative imports resolved."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
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
    inside = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    assert offences(floor, imports(path, inside if floor == "attlas" else f"attlas.{inside}")) == []


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


# What a user does, step by step in one process, and what is not to be loaded after that step.
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


def test_nobody_pays_for_what_he_does_not_use():
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
    assert not [name for name in names if name.split("/")[0] in {"kernels", "pointnets", "tests", "tools", "configs"}]
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); import attlas.kernels; print(attlas.__file__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert shown.stdout.startswith(str(wheel))
