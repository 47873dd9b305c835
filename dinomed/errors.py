"""The errors that a user of dinomed can meet.

Every message is one sentence that names what was given, what is wrong with it and what to do. The command line
turns an `InputError` into exit status 2 without a traceback; anything else is our own fault.
"""

from __future__ import annotations


class DinomedError(Exception):
    """Base class of everything that dinomed raises on purpose."""


class InputError(DinomedError, ValueError):
    """The user's file, argument or environment cannot be used as it is."""


class VolumeError(InputError):
    """A scan cannot be read, or holds something that cannot be segmented."""


class WeightsError(InputError):
    """Weights are missing, damaged or belong to another network."""


class BundleError(InputError):
    """A folder is no bundle, or its configuration does not hold together."""


class OutputError(InputError):
    """Results cannot be written where the user asked for them."""
