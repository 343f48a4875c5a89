"""HTML for Jupyter: titles, facts, tables, small charts, names of layers. `cards` says what each type of object shows.

Everything that comes from outside is escaped. Text, lines and borders take their colours from the page, so they fit
light and dark themes. There are no scripts, and nothing is fetched.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

__all__ = [
    "HARMFUL",
    "HARMLESS",
    "Line",
    "PLAIN",
    "card",
    "chart",
    "folded",
    "formula",
    "html",
    "is_window",
    "layers_in_words",
    "table",
]

HARMFUL, HARMLESS, PLAIN = "#d55e00", "#1f8fd6", "currentColor"
"""Colours of lines: those of the figures, slightly lighter because the page may be dark."""
WIDTH, HEIGHT, MARGIN = 300, 74, 6
"""Size of a chart in pixels."""
NUMBER = (int, float, np.integer, np.floating)

_TEMPLATES = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
# Styles are inline because Jupyter removes style sheets from notebooks that are not trusted.
_BORDER = "1px solid rgba(128, 128, 128, .4)"
_CARD = _TEMPLATES.from_string(f"""\
<div style="display: inline-block; max-width: 100%; border: {_BORDER}; border-radius: 6px; padding: 8px 14px;
 margin: 2px 0; font-size: 13px; line-height: 1.45; text-align: left">
<div style="margin-bottom: 4px"><span style="opacity: .7">{{{{ kind }}}}</span>
 <b style="overflow-wrap: anywhere">{{{{ title }}}}</b></div>
{{% if facts %}}
<div style="display: grid; grid-template-columns: max-content minmax(0, 62ch); column-gap: 14px">
{{% for name, value in facts.items() %}}
<div style="opacity: .7">{{{{ name }}}}</div><div style="overflow-wrap: anywhere">{{{{ value }}}}</div>
{{% endfor %}}
</div>
{{% endif %}}
{{% for part in parts %}}
{{{{ part }}}}
{{% endfor %}}
</div>
""")
_TABLE = _TEMPLATES.from_string(f"""\
<table style="border-collapse: collapse; margin: 6px 0; font-size: 12px; background: none">
<thead><tr>
{{% for name in columns %}}
<th style="padding: 1px 9px; border-bottom: {_BORDER}; font-weight: 600; text-align: {{{{ sides[loop.index0] }}}}">\
{{{{ name }}}}</th>
{{% endfor %}}
</tr></thead><tbody>
{{% for row in rows %}}
<tr style="background: none">
{{% for cell in row.cells %}}
<td style="padding: 1px 9px; text-align: {{{{ sides[loop.index0] }}}}; \
font-weight: {{{{ 'bold' if row.is_marked else 'normal' }}}}">{{{{ cell }}}}</td>
{{% endfor %}}
</tr>
{{% endfor %}}
</tbody></table>
""")
_CHART = _TEMPLATES.from_string("""\
<div style="display: inline-block; vertical-align: top; margin: 6px 20px 6px 0">
<div style="opacity: .7; font-size: 12px">{{ title }}</div>
<svg width="{{ width }}" height="{{ height }}" viewBox="0 0 {{ width }} {{ height }}" role="img" \
style="max-width: 100%; overflow: visible"><title>{{ summary }}</title>
{% for x, label in marks %}
<rect x="{{ x - 4 }}" y="0" width="8" height="{{ bottom }}" fill="currentColor" fill-opacity=".16">\
<title>{{ label }}</title></rect>
{% endfor %}
<line x1="{{ left }}" x2="{{ right }}" y1="{{ bottom }}" y2="{{ bottom }}" stroke="currentColor" stroke-opacity=".35"/>
{% for line in lines %}
<polyline points="{{ line.points }}" fill="none" stroke="{{ line.color }}" stroke-width="1.6" \
stroke-dasharray="{{ line.dash }}"/>
{% for dot in line.dots %}
<circle cx="{{ dot.x }}" cy="{{ dot.y }}" r="2" fill="{{ line.color }}"><title>{{ dot.label }}</title></circle>
{% endfor %}
{% endfor %}
<g fill="currentColor" fill-opacity=".7" font-size="10">
<text x="{{ left - 4 }}" y="{{ top + 7 }}" text-anchor="end">{{ high }}</text>
<text x="{{ left - 4 }}" y="{{ bottom }}" text-anchor="end">{{ low }}</text>
{% for x, tick in ticks %}
<text x="{{ x }}" y="{{ height - 1 }}" text-anchor="middle">{{ tick }}</text>
{% endfor %}
</g></svg>
<div style="font-size: 11px">
{% for line in lines %}
<span style="white-space: nowrap; margin-right: 12px"><svg width="18" height="8"><line x1="0" x2="18" y1="4" y2="4" \
stroke="{{ line.color }}" stroke-width="2" stroke-dasharray="{{ line.dash }}"/></svg> {{ line.label }}</span>
{% endfor %}
</div></div>
""")
_FOLDED = _TEMPLATES.from_string("""\
<details><summary style="cursor: pointer; opacity: .7">{{ summary }}</summary>{{ part }}</details>
""")


@singledispatch
def html(value: object) -> str:
    """Return the HTML that Jupyter shows for a value; `cards` registers an implementation for each type.

    Raises:
        TypeError: no implementation is registered for this type.
    """
    raise TypeError(f"{type(value).__name__} has no card; register one with @display.html.register in interp/cards.py")


def card(kind: str, title: str, facts: Mapping[str, object], *parts: Markup) -> str:
    """Return a box with a title, facts, tables and charts.

    Args:
        kind: what the object is.
        title: its name.
        facts: names and values.
        parts: tables and charts below the facts.
    """
    return _CARD.render(kind=kind, title=title, facts=facts, parts=parts)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], marked: Collection[int] = ()) -> Markup:
    """Return a table: floats with three digits, numbers aligned to the right, NaN and None as empty cells.

    Args:
        columns: column names.
        rows: cells.
        marked: indices of rows in bold.
    """
    is_number = [bool(rows) and all(isinstance(row[i], NUMBER) for row in rows) for i in range(len(columns))]
    cells = [{"cells": list(map(_cell, row)), "is_marked": i in marked} for i, row in enumerate(rows)]
    sides = ["right" if numeric else "left" for numeric in is_number]
    return Markup(_TABLE.render(columns=columns, rows=cells, sides=sides))


def _cell(value: object) -> object:
    if value is None or value != value:
        return ""
    # 0.00012, but never 1.2e+03.
    return f"{value:.3g}" if isinstance(value, (float, np.floating)) and abs(value) < 1000 else value


@dataclass(frozen=True)
class Line:
    """One line of a chart, with a value at each layer."""

    label: str
    layers: Sequence[int]
    values: Sequence[float]
    color: str = PLAIN
    dash: str = ""
    """Dash pattern of the stroke, as in SVG."""


@dataclass(frozen=True)
class _Axes:
    """Maps layers and values to pixels; y grows downwards in SVG."""

    first: int
    last: int
    low: float
    high: float
    left: int = 44
    right: int = WIDTH - MARGIN
    bottom: int = HEIGHT - 14

    def x(self, layer: int) -> float:
        return round(self.left + (self.right - self.left) * (layer - self.first) / max(1, self.last - self.first), 1)

    def y(self, value: float) -> float:
        span = (self.high - self.low) or 1
        return round(self.bottom - (self.bottom - MARGIN) * (value - self.low) / span, 1)


def chart(
    title: str, lines: Sequence[Line], marked: Collection[int] = (), span: tuple[float, float] | None = None
) -> Markup:
    """Return a chart of lines over layers, or nothing if no line has a finite value.

    Args:
        title: text above the chart.
        lines: values that are not finite are left out.
        marked: layers with a bar behind them.
        span: lowest and highest value of the axis; by default those of the lines.
    """
    drawn = [(line, points) for line in lines if (points := _finite_points(line))]
    if not drawn:
        return Markup("")
    values = [value for _, points in drawn for _, value in points]
    layers = sorted({layer for _, points in drawn for layer, _ in points} | set(marked))
    axes = _Axes(layers[0], layers[-1], *(span or (min(values), max(values))))
    summary = f"{title}; layers {layers[0]} to {layers[-1]}, values {min(values):.3g} to {max(values):.3g}"
    return Markup(
        _CHART.render(
            title=title,
            summary=summary,
            lines=[_polyline(line, points, axes) for line, points in drawn],
            marks=[(axes.x(layer), f"layer {layer}") for layer in marked],
            ticks=[(axes.x(layer), layer) for layer in dict.fromkeys((layers[0], *sorted(marked), layers[-1]))],
            low=f"{axes.low:.3g}",
            high=f"{axes.high:.3g}",
            left=axes.left,
            right=axes.right,
            top=MARGIN,
            bottom=axes.bottom,
            width=WIDTH,
            height=HEIGHT,
        )
    )


def _finite_points(line: Line) -> list[tuple[int, float]]:
    points = [(int(layer), float(value)) for layer, value in zip(line.layers, line.values, strict=True)]
    return [(layer, value) for layer, value in points if np.isfinite(value)]


def _polyline(line: Line, points: Sequence[tuple[int, float]], axes: _Axes) -> dict[str, object]:
    """Return what the template needs to draw a line, with a dot and a tooltip at each point."""
    return {
        "label": line.label,
        "color": line.color,
        "dash": line.dash,
        "points": " ".join(f"{axes.x(layer)},{axes.y(value)}" for layer, value in points),
        "dots": [
            {"x": axes.x(layer), "y": axes.y(value), "label": f"{line.label}, layer {layer}: {value:.3g}"}
            for layer, value in points
        ],
    }


def folded(summary: str, part: Markup) -> Markup:
    """Return a part that is shown when its summary is clicked."""
    return Markup(_FOLDED.render(summary=summary, part=part))


def formula(text: str) -> Markup:
    """Return a line of mathematics; what follows an underscore becomes a subscript: c_q."""
    marked_up = re.sub(r"_(\w+)", r"<sub>\1</sub>", str(escape(text)))
    return Markup(f'<div style="font-size: 15px; font-family: serif; margin: 4px 0">{marked_up}</div>')


def is_window(layers: Sequence[int]) -> bool:
    """Return whether the layers follow one another without a gap."""
    return list(layers) == list(range(layers[0], layers[0] + len(layers)))


def layers_in_words(layers: Sequence[int]) -> str:
    """Name the layers of a guard: `layer 6`, `layers 3 to 7`, or `layers 3, 7`."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    return f"layers {layers[0]} to {layers[-1]}" if is_window(layers) else f"layers {', '.join(map(str, layers))}"
