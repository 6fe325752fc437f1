"""`python tools/benchmark`: what is measured (cases, images, network), how (measure), and the page of the results."""
