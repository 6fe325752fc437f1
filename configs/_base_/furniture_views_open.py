# Open sets on the built-in pictures: nine classes of furniture are known; cars, persons, plants, vessels and wallplates
# are unknown, and no network is trained on them. A fifth of the models of the training split, of all classes, is held
# out for the choice of thresholds. tools/test.py --open-set reads these loaders, and the names from the checkpoint.
_base_ = ["furniture_views.py", "furniture_known.py"]

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
small = [dict(type="Resize", size=64), dict(type="PackImage")]
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="KnownClasses",
        classes={{_base_.known}},
        share=0.2,
        part="held_out",
        dataset=dict(type="FurnitureViews", split="train", transforms=small),
    )
)
test_dataloader = dict(
    dataset=dict(
        _delete_=True, type="KnownClasses", classes={{_base_.known}}, dataset={{_base_.test_dataloader.dataset}}
    )
)
