"""The registries of scope `attlas`: how a config finds a class by name.

Every entry is found as `attlas.Name` from any scope, and as bare `Name` from the scopes `attlas`, `mmdet` and `mmseg`
(entries are also put into MMEngine's root registry, which every scope searches last, unless the root has that name).
A name that nobody registered raises an error that lists the near ones and the import line.
"""

import difflib
from importlib import import_module

from mmengine import registry as root

# The floors that register something. A floor whose dependencies are not installed is skipped, and named in the error.
FLOORS = (
    "attlas.engine",
    "attlas.optim",
    "attlas.backbones",
    "attlas.backbones.classification",
    "attlas.pointnets",
    "attlas.dense",
)


class UnknownName(KeyError):
    """A `type` that nobody registered."""

    def __str__(self) -> str:  # a KeyError would print the message as one quoted line
        return self.args[0]


class Registry(root.Registry):
    """An MMEngine registry that imports the floors on first use and explains a name that it does not know."""

    missing_floors: dict[str, str] = {}

    def __init__(self, parent: root.Registry):
        super().__init__(parent.name, parent=parent, scope="attlas", locations=list(FLOORS))

    def import_from_location(self):
        if self._imported:
            return
        self._imported = True  # first: a floor that is being imported may itself build something
        for floor in self._locations:
            try:
                import_module(floor)
            except ModuleNotFoundError as error:
                missing = (error.name or str(error)).split(".")[0]
                if missing == "attlas":  # a mistake of ours, not a dependency
                    raise
                self.missing_floors[floor] = missing

    def _register_module(self, module, module_name=None, force=False):
        super()._register_module(module, module_name, force)
        names = [module_name] if isinstance(module_name, str) else module_name or [module.__name__]
        for name in names:
            if name not in self.parent.module_dict:
                self.parent._register_module(module, name)

    def get(self, key: str):
        try:
            found = super().get(key)
        except RuntimeError:  # MMEngine's answer to a dotted name that does not import
            found = None
        if found is None:
            raise UnknownName(self._unknown(key))
        return found

    def _unknown(self, key: str) -> str:
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
        lines += [
            f"{floor} could not be imported, because {module!r} is not installed: pip install 'attlas[{floor[7:]}]'"
            for floor, module in self.missing_floors.items()
        ]
        return "\n".join(lines)


# One for each of MMEngine's, so that default_scope = 'attlas' finds them all.
RUNNERS = Registry(root.RUNNERS)
RUNNER_CONSTRUCTORS = Registry(root.RUNNER_CONSTRUCTORS)
LOOPS = Registry(root.LOOPS)
HOOKS = Registry(root.HOOKS)
STRATEGIES = Registry(root.STRATEGIES)
DATASETS = Registry(root.DATASETS)
DATA_SAMPLERS = Registry(root.DATA_SAMPLERS)
TRANSFORMS = Registry(root.TRANSFORMS)
MODELS = Registry(root.MODELS)
# token mixers, (B, C, H, W) -> (B, C, H, W); no other library of the stack has such a registry
MIXERS = Registry(root.Registry("mixer", scope="mmengine"))
MODEL_WRAPPERS = Registry(root.MODEL_WRAPPERS)
WEIGHT_INITIALIZERS = Registry(root.WEIGHT_INITIALIZERS)
OPTIMIZERS = Registry(root.OPTIMIZERS)
OPTIM_WRAPPERS = Registry(root.OPTIM_WRAPPERS)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(root.OPTIM_WRAPPER_CONSTRUCTORS)
PARAM_SCHEDULERS = Registry(root.PARAM_SCHEDULERS)
METRICS = Registry(root.METRICS)
EVALUATOR = Registry(root.EVALUATOR)
TASK_UTILS = Registry(root.TASK_UTILS)
VISUALIZERS = Registry(root.VISUALIZERS)
VISBACKENDS = Registry(root.VISBACKENDS)
LOG_PROCESSORS = Registry(root.LOG_PROCESSORS)
INFERENCERS = Registry(root.INFERENCERS)
FUNCTIONS = Registry(root.FUNCTIONS)
