"""A figure as the address of a picture that lies in the page itself."""

import base64
import io
from urllib.parse import quote

import matplotlib as mpl
from matplotlib.figure import Figure

from figures.style import STYLE

SAFE = " !$&'()*+,-./:;=?@_~"
"""Characters of an SVG that an address in double quotes can hold as they are; what HTML minds, the template escapes."""


def as_data(figure: Figure) -> str:
    """SVG or PNG, whichever is smaller, as a `data:` address.

    An SVG in an `<img>` brings no ids, styles or scripts into the page. The same figure gives the same address: no
    dates, and ids from a fixed salt.
    """
    svg, png = io.BytesIO(), io.BytesIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": "vlm-guard"}):
        figure.savefig(svg, format="svg", bbox_inches="tight", metadata={"Date": None})
        figure.savefig(png, format="png", bbox_inches="tight")
    return min(
        "data:image/png;base64," + base64.b64encode(png.getvalue()).decode(),
        "data:image/svg+xml," + quote(" ".join(svg.getvalue().decode().split()), safe=SAFE),
        key=len,
    )
