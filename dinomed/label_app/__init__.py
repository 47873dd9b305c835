"""A MONAI Label app: dinomed's bundles in 3D Slicer. It is started with `python -m dinomed.label_app`."""
