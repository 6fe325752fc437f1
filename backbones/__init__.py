"""Second floor: images to feature maps, one file per published system.

    from attlas import backbones

    backbones.list("*former*")
    network = backbones.create("biformer_tiny", pretrained="biformer_tiny_best.pth", num_classes=14)
    maps = backbones.create("biformer_tiny", out_indices=(0, 1, 2, 3))(image)

Every system is imported here, so that it is known by being a file. `classification` and `inspection`, which take OpenCV
and Matplotlib, and `language` load when they are asked for.
"""

from importlib import import_module
from pkgutil import iter_modules

from .skeletons.backbone import Backbone
from .skeletons.isotropic import Isotropic
from .skeletons.pyramid import Pyramid
from .zoo import Variant, create, load, register, systems, variant
from .zoo import names as list

__all__ = ["Backbone", "Isotropic", "Pyramid", "Variant", "create", "list", "load", "register", "systems", "variant"]

for _module in iter_modules(__path__):
    if _module.name not in ("classification", "inspection", "language"):
        import_module(f".{_module.name}", __name__)
