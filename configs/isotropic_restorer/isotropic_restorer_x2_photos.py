# A plain transformer with neighborhood attention that doubles the built-in photographs: minutes on a CPU, beside
# configs/hat/hat_small_x2_photos.py. Another mixer: --cfg-options model.network.mixers.type=GnConv.
_base_ = ["../_base_/photographs_x2.py", "../_base_/schedule_photographs.py"]

model = dict(
    type="Restorer",
    network=dict(type="IsotropicRestorer", scale=2, dim=48, depth=6, mixers=dict(type="NeighborhoodAttention")),
)
