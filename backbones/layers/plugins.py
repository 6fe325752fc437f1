"""Plug-ins: mixers that stand in networks of others, too."""

from torch import nn

from ...registry import MIXERS, MODELS


def register_plugin(mixer: type[nn.Module]) -> type[nn.Module]:
    """Register a mixer by its name, for our skeletons (`dim`) and for the `plugins` of mm's networks (`in_channels`).

        plugins=[dict(cfg=dict(type="attlas.ELA", variant="T"), stages=(True,) * 4, position="after_conv3")]

    Under its name MODELS has a subclass that differs in the name of its first argument alone.
    """

    def __init__(self, in_channels: int, *args, **options):
        mixer.__init__(self, in_channels, *args, **options)

    names = dict(__init__=__init__, __doc__=mixer.__doc__, __module__=mixer.__module__)
    MODELS.register_module(name=mixer.__name__, module=type(mixer.__name__, (mixer,), names))
    MIXERS.register_module(module=mixer)
    return mixer
