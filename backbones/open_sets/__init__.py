"""Known or unknown: scores of a trained classifier for inputs of classes that it never saw. Import the module that you
need. None of them imports OpenCV, so classifiers of clouds are served as those of images."""
