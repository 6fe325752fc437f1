"""What all networks of images are built on: `Backbone`, and the two skeletons `Pyramid` and `Isotropic`."""
