"""Names of the arrays and records that pass between the rooms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Array = NDArray[np.float64]
"""Of any shape."""
Mask = NDArray[np.bool_]
Record = dict[str, Any]
"""What is written as one JSON object."""
