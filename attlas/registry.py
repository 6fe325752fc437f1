"""The registries of scope `attlas`: how a config finds a class by name.

Every entry is found as `attlas.Name` from any scope, and as bare `Name` from the scope `attlas`. Modules are imported
one after the other until one has registered the name, so that a config imports what it names. What is imported is found
as bare `Name` from `mmdet` and `mmseg` too: it is also put into MMEngine's root registry, which every scope searches
last, unless the root has that name. A name that nobody registered raises an error that lists the near ones and the
import line.
"""

import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from mmengine import registry as root

from . import config  # noqa: F401  so that MMEngine reads configs alike in every process that has a class of ours


class UnknownName(KeyError):
    """A `type` that nobody registered."""

    def __str__(self) -> str:  # a KeyError would print the message as one quoted line
        return self.args[0]


# What imports mmcv, mmdet and others, which take seconds and speak of what they lack.
FLOORS = ("backbones", "pointnets", "dense")


class Registry(root.Registry):
    """An MMEngine registry that imports what a name needs and explains a name that it does not know.

    Args:
        parent: MMEngine's registry of the same kind.
        *modules: what registers entries here, below `attlas`, in the order in which it is imported.
    """

    def __init__(self, parent: root.Registry, *modules: str):
        super().__init__(parent.name, parent=parent, scope="attlas")
        self.modules = tuple(f"attlas.{name}" for name in modules)
        self._waiting = list(self.modules)
        self._missing: dict[str, str] = {}  # the dependency that a module could not be imported without

    def import_from_location(self) -> None:
        """Import nothing: MMEngine calls this at every look-up, before it looks, and `get` imports what is needed."""

    def _import_until(self, name: str | None = None) -> None:
        """Import the modules that register something here until one has registered `name`."""
        if "mmengine.runner" in sys.modules:  # MMEngine's Runner must load files as we do, and find our hooks
            import_module("attlas.engine")
            import_module("attlas.optim")
        own = getattr(self.parent.module_dict.get(name), "__module__", "").startswith("mmengine.")
        while self._waiting and name not in self.module_dict:
            if own and self._waiting[0].split(".")[1] in FLOORS:
                return  # no floor has a class of a name of MMEngine's
            module = self._waiting.pop(0)  # first: a module that is being imported may itself build something
            try:
                import_module(module)
            except ModuleNotFoundError as error:
                missing = (error.name or str(error)).split(".")[0]
                if missing == "attlas":  # a mistake of ours, not a dependency
                    raise
                self._missing[module] = missing

    @contextmanager
    def switch_scope_and_registry(self, scope: str | None) -> Iterator[root.Registry]:
        """As MMEngine's, which warns where no other library has such a registry, as of mixers."""
        if self._get_root_registry() not in vars(root).values():
            yield self
        else:
            with super().switch_scope_and_registry(scope) as registry:
                yield registry

    def _register_module(self, module, module_name=None, force=False):
        super()._register_module(module, module_name, force)
        names = [module_name] if isinstance(module_name, str) else module_name or [module.__name__]
        for name in names:
            if name not in self.parent.module_dict:
                self.parent._register_module(module, name)

    def has(self, name: str) -> bool:
        """Whether a name, without its scope, is registered here; those of other scopes do not count."""
        self._import_until(name)
        return name in self.module_dict

    def get(self, key: str):
        scope, name = self.split_scope_key(key)
        if scope in (None, self.scope) and not self.has(name) and "." not in name:
            parent = self.parent if scope is None else None
            while parent is not None and name not in parent.module_dict:
                parent = parent.parent
            if parent is None:  # MMEngine would import any module of this name
                raise UnknownName(self._unknown(key))
        try:
            found = super().get(key)
        except RuntimeError:  # MMEngine's answer to a dotted name that does not import
            found = None
        if found is None:
            raise UnknownName(self._unknown(key))
        return found

    def _unknown(self, key: str) -> str:
        self._import_until()
        name = key.removeprefix("attlas.")
        near = difflib.get_close_matches(name, sorted({*self.module_dict, *self.parent.module_dict}), n=5, cutoff=0.5)
        # close_matches is case-sensitive, and the commonest slip is one of case or of a prefix
        near += [n for n in sorted(self.module_dict) if name.lower() in n.lower() and n not in near]
        lines = [f"type={key!r} is not a registered {self.name}."]
        lines.append("Near names: " + ", ".join(near) + "." if near else f"Known here: {', '.join(self.module_dict)}.")
        lines.append(
            "If it is a class of yours, decorate it with @MODELS.register_module() (or the registry that fits) of "
            "attlas.registry, and import its module in the config: custom_imports = dict(imports=['package.module'])"
        )
        for module, missing in self._missing.items():
            extra = floor if (floor := module.split(".")[1]) in ("pointnets", "dense") else "backbones"
            lines.append(
                f"{module} could not be imported, because {missing!r} is not installed: pip install 'attlas[{extra}]'"
            )
        return "\n".join(lines)


# One for each of MMEngine's, so that default_scope = 'attlas' finds them all.
RUNNERS = Registry(root.RUNNERS, "engine")
RUNNER_CONSTRUCTORS = Registry(root.RUNNER_CONSTRUCTORS)
LOOPS = Registry(root.LOOPS)
HOOKS = Registry(root.HOOKS, "engine", "resumption", "optim", "backbones.classification", "dense.video")
STRATEGIES = Registry(root.STRATEGIES)
DATASETS = Registry(
    root.DATASETS,
    "data",
    "backbones.classification",
    "backbones.language",
    "pointnets",
    "dense.detection",
    "dense.segmentation",
    "dense.restoration",
    "dense.matching",
    "dense.video",
    "dense.gaze",
)
DATA_SAMPLERS = Registry(root.DATA_SAMPLERS, "data", "optim")
TRANSFORMS = Registry(
    root.TRANSFORMS,
    "corruptions",
    "backbones.classification",
    "pointnets",
    "dense.transforms",
    "dense.detection",
    "dense.segmentation",
    "dense.restoration",
    "dense.matching",
    "dense.video",
    "dense.gaze",
)
MODELS = Registry(
    root.MODELS,
    "backbones",
    "backbones.classification",
    "backbones.language",
    "pointnets",
    "dense.layers",
    "dense.detection",
    "dense.segmentation",
    "dense.restoration",
    "dense.matching",
    "dense.video",
    "dense.gaze",
)
# token mixers, (B, C, H, W) -> (B, C, H, W); no other library of the stack has such a registry
MIXERS = Registry(root.Registry("mixer", scope="mmengine"), "backbones", "dense.detection")
MODEL_WRAPPERS = Registry(root.MODEL_WRAPPERS)
WEIGHT_INITIALIZERS = Registry(root.WEIGHT_INITIALIZERS, "checkpoint")
OPTIMIZERS = Registry(root.OPTIMIZERS, "optim")
OPTIM_WRAPPERS = Registry(root.OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(root.OPTIM_WRAPPER_CONSTRUCTORS, "optim")
PARAM_SCHEDULERS = Registry(root.PARAM_SCHEDULERS)
METRICS = Registry(
    root.METRICS,
    "backbones",
    "backbones.classification",
    "backbones.language",
    "pointnets",
    "dense.detection",
    "dense.segmentation",
    "dense.restoration",
    "dense.matching",
    "dense.video",
    "dense.gaze",
)
EVALUATOR = Registry(root.EVALUATOR)
TASK_UTILS = Registry(root.TASK_UTILS)
VISUALIZERS = Registry(root.VISUALIZERS)
VISBACKENDS = Registry(root.VISBACKENDS)
LOG_PROCESSORS = Registry(root.LOG_PROCESSORS)
INFERENCERS = Registry(root.INFERENCERS)
FUNCTIONS = Registry(root.FUNCTIONS)
