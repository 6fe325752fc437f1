"""Packaging. The floors of the house are top-level folders that install below `attlas` (see docs/design.md)."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
FLOORS = ("kernels", "backbones", "pointnets", "dense")
packages, package_dir = ["attlas"], {"attlas": "attlas"}
for floor in FLOORS:
    for package in [floor, *(f"{floor}.{name}" for name in find_packages(str(here / floor)))]:
        packages.append(f"attlas.{package}")
        package_dir[f"attlas.{package}"] = package.replace(".", "/")

KERNELS = ["torch>=2.8", "numpy>=1.26", "numba>=0.61"]
# MMEngine imports cv2 and does not declare it
MMENGINE = ["onedl-mmengine>=0.10.12", "opencv-python-headless>=4.11"]
BACKBONES = [*MMENGINE, "safetensors>=0.4", "rich>=13", "tensorboard>=2.14"]
OPEN3D = "open3d-cpu>=0.19"
POINTNETS = ["torch-geometric>=2.6", OPEN3D, "scipy>=1.11", "h5py>=3.10", "matplotlib>=3.8"]
DENSE = ["onedl-mmcv>=2.3", "onedl-mmdetection>=3.5", "onedl-mmsegmentation>=1.4", "pycocotools>=2.0.8", OPEN3D]
DENSE += ["scipy>=1.11"]  # PF-PASCAL's key points and the truth of CUHK Avenue are MATLAB files
ROBUSTNESS = ["imagecorruptions-imaug>=1.1.5"]  # mmdet needs it, too
# pillow: transformers prepares images with it
VLM = ["transformers>=5", "pillow>=10"]
MEDICAL = ["nibabel>=5.2", "pydicom>=3.0"]
# the built-in photographs are files of these two
PHOTOS = ["scikit-image>=0.24", "scikit-learn>=1.5"]
EXPORT = ["onnx>=1.16", "onnxscript>=0.3", "onnxruntime>=1.18"]

setup(
    name="attlas",
    version=re.search(r'__version__ = "(.+)"', (here / "attlas/__init__.py").read_text()).group(1),
    description="An atlas of attention for 3-D point clouds and dense prediction",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=packages,
    package_dir=package_dir,
    package_data={
        "attlas": ["py.typed", "furniture14.npz", "FURNITURE14.md"],
        "attlas.backbones": ["weights.csv"],
        "attlas.dense": ["restoration/PHOTOGRAPHS.md"],
    },
    install_requires=KERNELS,
    extras_require={
        "backbones": BACKBONES,
        "pointnets": BACKBONES + POINTNETS,
        "dense": BACKBONES + DENSE,
        "robustness": ROBUSTNESS,  # tools/test.py --corruptions
        "medical": BACKBONES + DENSE + MEDICAL,  # attlas.dense.segmentation.volumes
        "vlm": BACKBONES + DENSE + VLM,  # attlas.dense.vlm
        "photos": PHOTOS,  # attlas.dense.restoration.Photographs
        "all": BACKBONES + POINTNETS + DENSE + MEDICAL + VLM + PHOTOS,
        "export": EXPORT,  # tools/export.py to ONNX
        # who tools/benchmark measures against; torch-cluster besides, which builds without isolation only
        "bench": ["fpsample>=1", "torch-quickfps>=2.1", "torch-fps>=0.6", "pykdtree>=1.4", "ninja", "scipy>=1.11"],
        # triton: for its interpreter; PyTorch's builds for GPUs bring it along
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff",
            "mypy",
            "setuptools>=77",
            "triton>=3.4; sys_platform == 'linux'",
            "trimesh>=4.5",  # bodies to test with, and tools/make_furniture14.py
            *EXPORT,
        ],
    },
)
