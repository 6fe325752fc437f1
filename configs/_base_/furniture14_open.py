# Open sets on the built-in clouds, as furniture_views_open.py has them on pictures. Tested as they stand, not turned.
_base_ = ["furniture14.py", "furniture_known.py"]

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="KnownClasses",
        classes={{_base_.known}},
        share=0.2,
        part="rest",
        dataset={{_base_.train_dataloader.dataset}},
    )
)
sampled = [dict(type="SamplePoints", num=1024, include_normals=True), dict(type="UnitSphere")]
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="KnownClasses",
        classes={{_base_.known}},
        share=0.2,
        part="held_out",
        dataset=dict(type="Furniture14", split="train", transforms=sampled),
    )
)
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="KnownClasses",
        classes={{_base_.known}},
        dataset=dict(type="Furniture14", split="test", transforms=sampled),
    )
)
