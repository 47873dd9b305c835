"""Where MONAI Label's server begins: it looks for a class that is derived from `MONAILabelApp` in this file."""

from dinomed.label_app.app import MyApp

__all__ = ["MyApp"]
