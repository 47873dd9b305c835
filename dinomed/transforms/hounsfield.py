"""Whether the values of a CT can be Hounsfield units: a network that was trained on these answers for others too."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

AIR_HU = -200.0
"""Air, in and around a head, lies far below; fat lies above."""
LEAST_AIR = 1e-4
"""Share of the voxels; cropped to the skull a head still holds more."""
HIGHEST_HU = 40_000.0
"""Metal reaches some 30,000 in scans with an extended range."""
GREY_VALUES = 255
NO_HU = "its values are hardly Hounsfield units"
TO_HU = "rescale them (RescaleSlope, RescaleIntercept), set what was cut away to -1000, or export the CT again"


def hounsfield_doubt(array: npt.NDArray[np.floating]) -> str | None:
    """Say why values are hardly Hounsfield units of a CT.

    Args:
        array: Of a scan, (X, Y, Z), finite.

    Returns:
        A clause that begins with `NO_HU`; None where nothing speaks against them.
    """
    low, high = float(array.min()), float(array.max())
    said = f"{NO_HU}: they run from {low:g} to {high:g}"
    if high > HIGHEST_HU:
        return said
    if high <= AIR_HU:
        return f"{said}, so there is nothing but air"
    if np.count_nonzero(array < AIR_HU) >= LEAST_AIR * array.size:
        return None
    if low >= 0 and high <= GREY_VALUES:
        return f"{said}, as grey values of a picture do"
    if low >= 0 and high > 1000:
        return f"{said}, as stored values do before they are rescaled"
    return f"{said}, and there is no air (below {AIR_HU:g} HU)"
