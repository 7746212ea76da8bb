"""One style for every picture: colours that survive colour blindness, type that survives a column's width.

Blue means for, orange against; nothing is shown by colour alone. Sizes are points at 3.3 inches, the width of a
column of text. Colours are named, so that a page can replace them by its own (light or dark).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.backends.backend_mixed import MixedModeRenderer
from matplotlib.backends.backend_svg import FigureCanvasSVG, RendererSVG
from matplotlib.colors import FuncNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.textpath import text_to_path

COLUMN_INCHES = 3.3
# Width of a picture on a page: its letters can be read at 360 pixels, and are not too large at 590.
PAGE_INCHES = 4.0

# Okabe and Ito's palette, which can be told apart with the common colour blindnesses, and the two ends of the
# diverging map.
COLOURS: Mapping[str, str] = {
    "ink": "#1b1f24",
    "muted": "#5b636e",
    "rule": "#c3c9d1",
    "blue": "#0072b2",
    "orange": "#e69f00",
    "vermilion": "#d55e00",
    "green": "#009e73",
    "purple": "#aa4499",
    "for": "#0b4f8a",
    "against": "#b84a00",
}
CLUSTER_COLOURS = ("blue", "vermilion", "green", "purple", "orange")

DIVERGING = LinearSegmentedColormap.from_list(
    "collapsar", [COLOURS["against"], "#ffffff", COLOURS["for"]]
).with_extremes(bad="#d9dce1")

# A mean prediction has one large entry per column and many small ones of the other sign. An exponent below 1
# shows both; the colour bar states the scale.
_EXPONENT = 0.6


class StateStyle(NamedTuple):
    """How a class state is drawn and written: a key of ``COLOURS``, a marker of matplotlib, a character like it."""

    colour: str
    marker: str
    symbol: str


STATES: Mapping[str, StateStyle] = {
    "separated": StateStyle("blue", "o", "●"),
    "merged": StateStyle("orange", "s", "■"),
    "vanished": StateStyle("vermilion", "X", "✖"),
    "unseen": StateStyle("muted", "d", "◆"),
}

_FORMULAS = RendererAgg(1, 1, 72).mathtext_parser

_RC = mpl.rc_params_from_file(Path(__file__).parent / "collapsar.mplstyle", use_default_template=False)


def styled() -> AbstractContextManager[None]:
    """The style, for the duration of a ``with`` block around the making of a figure.

    Example:
        >>> with styled():
        ...     ax = Figure(figsize=(COLUMN_INCHES, 2.0)).subplots()
    """
    return mpl.rc_context(_RC)


def strength(values: Any, vmax: float) -> np.ndarray:
    """How strongly a value is coloured, in [-1, 1]: sign(v) min(|v| / vmax, 1)^0.6; NaN stays NaN.

    Args:
        values: In nats, any shape.
        vmax: The magnitude that gets the full colour, positive.
    """
    relative = np.asarray(values, dtype=np.float64) / vmax
    return np.sign(relative) * np.minimum(np.abs(relative), 1.0) ** _EXPONENT


def diverging_norm(vmax: float) -> FuncNorm:
    """The same scale for matplotlib: centred at 0, full colour at ±``vmax``."""

    def inverse(s: Any) -> np.ndarray:
        return np.sign(s) * np.abs(s) ** (1 / _EXPONENT) * vmax

    forward: Callable[[Any], np.ndarray] = lambda values: strength(values, vmax)  # noqa: E731
    return FuncNorm((forward, inverse), vmin=-vmax, vmax=vmax)


def raster_canvas(figure: Figure) -> FigureCanvasAgg:
    """What lays the figure out, and draws it, in pixels; a formula is parsed once for all figures."""
    canvas = FigureCanvasAgg(figure)
    canvas.get_renderer().mathtext_parser = _FORMULAS
    return canvas


def png_bytes(figure: Figure, dpi: int = 200) -> bytes:
    """The figure as PNG on white, the same bytes for the same figure.

    Args:
        figure: Made inside ``styled()``.
        dpi: Dots per inch.
    """
    stream = io.BytesIO()
    own = figure.dpi, figure.get_facecolor()
    with styled():
        figure.set(dpi=dpi, facecolor="white")
        raster_canvas(figure).print_png(stream, metadata={"Software": None})
        figure.set(dpi=own[0], facecolor=own[1])
    return stream.getvalue()


def picture_bytes(figure: Figure, suffix: str, name: str, label: str = "", dpi: int = 200) -> bytes:
    """The figure as a file of its own.

    Args:
        figure: Made inside ``styled()``.
        suffix: ".png", ".svg" or ".pdf".
        name: As for ``svg_string``.
        label: As for ``svg_string``.
        dpi: Dots per inch, for everything but lines.

    Raises:
        ValueError: ``suffix`` is none of these.
    """
    if suffix == ".png":
        return png_bytes(figure, dpi)
    if suffix == ".svg":
        return svg_string(figure, name, label).encode()
    if suffix != ".pdf":
        raise ValueError(f"`suffix` must be .png, .svg or .pdf, got {suffix!r}")
    stream = io.BytesIO()
    figure.savefig(stream, format="pdf", facecolor="white", dpi=dpi, metadata={"CreationDate": None})
    return stream.getvalue()


class _Canvas(FigureCanvasSVG):
    """Measures text for the layout with the renderer that draws it, and a formula once for all figures: same bytes."""

    _renderer: Any = None

    def write(self, stream: io.StringIO) -> None:
        """As ``print_svg`` does it, without a date."""
        figure, dpi = self.figure, self.figure.dpi
        figure.dpi = 72
        vector, mixed = cast("Any", RendererSVG), cast("Any", MixedModeRenderer)  # their stubs know neither well
        width, height = figure.get_size_inches()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        svg = vector(72 * width, 72 * height, stream, image_dpi=dpi, metadata=nothing)
        svg._text2path = text_to_path
        self._renderer = mixed(figure, width, height, dpi, svg)
        figure.draw(self._renderer)
        self._renderer.finalize()
        figure.dpi = dpi

    def get_renderer(self) -> Any:
        """What the layout measures text with."""
        return self._renderer


def svg_string(figure: Figure, name: str, label: str = "", *, adaptive: bool = False) -> str:
    """The figure as an SVG element whose text is text, the same string for the same figure.

    Args:
        figure: Made inside ``styled()``.
        name: Prefix of every id in it, letters, digits and hyphens: unique within a page.
        label: Text alternative. Empty: the figure is hidden from screen readers.
        adaptive: Whether the colours may be set by the page, as CSS variables ``--blue`` and so on, the keys
            of ``COLOURS``.

    Raises:
        ValueError: ``name`` cannot be part of an id.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name):
        raise ValueError(f"`name` must be a letter followed by letters, digits or hyphens, got {name!r}")
    stream = io.StringIO()
    with styled(), mpl.rc_context({"svg.hashsalt": name}):
        # ``savefig`` draws everything twice, the first time only for the layout; the bytes are the same
        _Canvas(figure).write(stream)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Groups are called figure_1, axes_1 in every figure.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    if adaptive:
        for key, colour in COLOURS.items():
            text = text.replace(colour, f"var(--{key}, {colour})")
    role = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return text.replace("<svg ", f"<svg {role} ", 1).strip()
