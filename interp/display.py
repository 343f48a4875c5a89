"""What objects show of themselves in Jupyter: titles, facts, tables and small charts -> HTML. Knows no object.

Whatever comes from outside is escaped. Text, lines and borders take their colours from the page, so that light and
dark themes both fit. No script, nothing that is fetched.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

HARMFUL, HARMLESS, PLAIN = "#d55e00", "#1f8fd6", "currentColor"
"""Colours of lines; those of the figures, a little lighter, since the page may be dark."""
WIDTH, HEIGHT, MARGIN = 300, 74, 6
"""Of a chart, pixels."""
NUMBER = (int, float, np.integer, np.floating)

_TEMPLATES = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
# Styles stand at each element: where a notebook is not trusted, Jupyter removes style sheets.
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
style="max-width: 100%; overflow: visible"><title>{{ told }}</title>
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


def card(kind: str, title: str, facts: Mapping[str, object], *parts: Markup) -> str:
    """A box: what it is, what it is called, name and value of each fact, then tables and charts."""
    return _CARD.render(kind=kind, title=title, facts=facts, parts=parts)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], marked: Collection[int] = ()) -> Markup:
    """Floats with three digits and numbers to the right, NaN and None as nothing.

    Args:
        columns: their names.
        rows: cells.
        marked: rows that are bold.
    """
    is_number = [bool(rows) and all(isinstance(row[i], NUMBER) for row in rows) for i in range(len(columns))]
    shown = [{"cells": list(map(_cell, row)), "is_marked": i in marked} for i, row in enumerate(rows)]
    sides = ["right" if one else "left" for one in is_number]
    return Markup(_TABLE.render(columns=columns, rows=shown, sides=sides))


def _cell(value: object) -> object:
    if value is None or value != value:
        return ""
    # 0.00012, but never 1.2e+03.
    return f"{value:.3g}" if isinstance(value, (float, np.floating)) and abs(value) < 1000 else value


@dataclass(frozen=True)
class Line:
    """One line of a chart, a value at each layer."""

    label: str
    layers: Sequence[int]
    values: Sequence[float]
    color: str = PLAIN
    dash: str = ""
    """Of its stroke, as in SVG."""


def chart(
    title: str, lines: Sequence[Line], marked: Collection[int] = (), span: tuple[float, float] | None = None
) -> Markup:
    """Lines over layers; nothing where none of them has a number.

    Args:
        title: stands above.
        lines: what is not finite is left out.
        marked: layers with a bar behind them.
        span: lowest and highest value of the axis; by default those of the lines.
    """
    drawn = [(line, [(at, value) for at, value in _known(line)]) for line in lines]
    points = [point for _, known in drawn for point in known]
    if not points:
        return Markup("")
    values, layers = [value for _, value in points], sorted({at for at, _ in points} | set(marked))
    low, high = span or (min(values), max(values))
    left, right, bottom = 44, WIDTH - MARGIN, HEIGHT - 14
    x = lambda at: round(left + (right - left) * (at - layers[0]) / max(1, layers[-1] - layers[0]), 1)  # noqa: E731
    y = lambda value: round(bottom - (bottom - MARGIN) * (value - low) / ((high - low) or 1), 1)  # noqa: E731
    shown = [
        {
            "label": line.label,
            "color": line.color,
            "dash": line.dash,
            "points": " ".join(f"{x(at)},{y(value)}" for at, value in known),
            "dots": [
                {"x": x(at), "y": y(value), "label": f"{line.label}, layer {at}: {value:.3g}"} for at, value in known
            ],
        }
        for line, known in drawn
        if known
    ]
    told = f"{title}; layers {layers[0]} to {layers[-1]}, values {min(values):.3g} to {max(values):.3g}"
    return Markup(
        _CHART.render(
            title=title,
            told=told,
            lines=shown,
            marks=[(x(at), f"layer {at}") for at in marked],
            ticks=[(x(at), at) for at in dict.fromkeys((layers[0], *sorted(marked), layers[-1]))],
            low=f"{low:.3g}",
            high=f"{high:.3g}",
            left=left,
            right=right,
            top=MARGIN,
            bottom=bottom,
            width=WIDTH,
            height=HEIGHT,
        )
    )


def _known(line: Line) -> list[tuple[int, float]]:
    return [
        (int(at), float(value)) for at, value in zip(line.layers, line.values, strict=True) if np.isfinite(float(value))
    ]


def folded(summary: str, part: Markup) -> Markup:
    """Shown on a click."""
    return Markup(_FOLDED.render(summary=summary, part=part))


def formula(text: str) -> Markup:
    """A line of mathematics; what stands behind an underscore is set below: c_q."""
    shown = re.sub(r"_(\w+)", r"<sub>\1</sub>", str(escape(text)))
    return Markup(f'<div style="font-size: 15px; font-family: serif; margin: 4px 0">{shown}</div>')
