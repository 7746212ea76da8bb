"""A figure beside its record, as PNG and SVG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from collapsar.core.files import write_atomically
from collapsar.report import png_bytes, svg_string


def write_pictures(folder: Path, name: str, figure: Figure, title: str, dpi: int = 150) -> None:
    """NAME.png and NAME.svg; the second is laid out as the first, as laying out is half of the work."""
    write_atomically(folder / f"{name}.png", png_bytes(figure, dpi=dpi))
    figure.set_layout_engine("none")
    write_atomically(folder / f"{name}.svg", svg_string(figure, name.replace("_", "-"), title) + "\n")
