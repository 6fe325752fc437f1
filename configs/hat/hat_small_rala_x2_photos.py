# The small HAT with another mixer in the place of its windows: RALA, linear attention over the whole picture.
_base_ = ["./hat_small_x2_photos.py"]

model = dict(network=dict(mixer=dict(type="RALA", heads=4)))
