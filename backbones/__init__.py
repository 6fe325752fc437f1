"""Second floor: images to feature maps, one file per published system."""
