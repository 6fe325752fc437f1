# A small HAT that doubles the built-in photographs: minutes on a CPU, from nothing.
_base_ = ["../_base_/photographs_x2.py", "../_base_/schedule_photographs.py"]

model = dict(
    type="Restorer",
    network=dict(
        type="HAT", scale=2, dim=64, depths=(2, 2), heads=4, window=8, compress=4, squeeze=8, drop_path_rate=0.0
    ),
)
