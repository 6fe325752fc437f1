# HAT and the optimizer of all of its trainings. From the environment, or by --cfg-options:
#   name    NETWORK  hat_s, hat or hat_l; each config that has this one as a base says which if nobody does
#   mixer   MIXER    name of a mixer in the place of HAT's windows, such as RALA
import importlib

name = "{{$NETWORK:}}"
mixer = "{{$MIXER:own}}"
variants = importlib.import_module("attlas.dense.restoration.hat").VARIANTS
importlib.import_module("attlas.data").one_of("name", name, sorted({key.rpartition("_x")[0] for key in variants}))

model = dict(
    type="Restorer",
    # each config gives the `scale`
    network={**variants[f"{name}_x2"][0], "type": "HAT", "mixer": None if mixer == "own" else mixer},
    losses=dict(l1=1.0),
)
optim_wrapper = dict(optimizer=dict(type="Adam", lr=2e-4, betas=(0.9, 0.99)))
auto_scale_lr = dict(base_batch_size=32)
del variants
