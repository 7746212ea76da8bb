"""What can be reproduced, by name: kept apart from the code that does it, which takes seconds to import torch."""

from __future__ import annotations

STUDIES = ("which-model", "effective", "standard", "noise", "rest", "starts", "text")
NAMES = (*(f"fig{number}" for number in range(1, 10)), *STUDIES)
PRESETS = ("paper", "cpu", "tiny")
ADVICE_PRESETS = ("cpu", "long", "tiny", "standard", "acting")


def check(name: str, preset: str) -> None:
    """Refuse a name or preset that does not exist.

    Raises:
        ValueError: there is no such name, or no such preset of it.
    """
    if name not in (*NAMES, "all", "advice"):
        raise ValueError(f"`name` must be one of {', '.join(NAMES)}, all or advice, got {name!r}")
    presets = ADVICE_PRESETS if name == "advice" else PRESETS
    if preset not in presets:
        raise ValueError(f"`preset` must be one of {', '.join(presets)}, got {preset!r}")
