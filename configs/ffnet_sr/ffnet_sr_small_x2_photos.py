# A small FFNet-SR that doubles the built-in photographs: minutes on a CPU, beside configs/hat/hat_small_x2_photos.py.
_base_ = ["../_base_/photographs_x2.py", "../_base_/schedule_photographs.py"]

model = dict(type="Restorer", network=dict(type="FFNetSR", scale=2, dim=64, depth=12))
