"""Figures embedded in the page as `data:` URLs."""

import base64
import io
from urllib.parse import quote

import matplotlib as mpl
from matplotlib.figure import Figure

from figures import paper_style

SAFE = " !$&'()*+,-./:;=?@_~"
"""Characters of an SVG that need no escape in a URL between double quotes; the template escapes those of HTML."""


def data_url(figure: Figure) -> str:
    """Return a figure as a `data:` URL, as SVG or PNG, whichever is smaller.

    An SVG in an `<img>` brings no ids, styles or scripts into the page. The same figure gives the same URL: there are
    no dates, and ids use a fixed salt.
    """
    svg, png = io.BytesIO(), io.BytesIO()
    with paper_style(), mpl.rc_context({"svg.hashsalt": "vlm-guard"}):
        figure.savefig(svg, format="svg", bbox_inches="tight", metadata={"Date": None})
        figure.savefig(png, format="png", bbox_inches="tight")
    return min(
        "data:image/png;base64," + base64.b64encode(png.getvalue()).decode(),
        "data:image/svg+xml," + quote(" ".join(svg.getvalue().decode().split()), safe=SAFE),
        key=len,
    )


def pdf_base64(figure: Figure) -> str:
    """Return a figure as PDF in base64, without a date: the same figure gives the same text."""
    pdf = io.BytesIO()
    with paper_style():
        figure.savefig(pdf, format="pdf", bbox_inches="tight", metadata={"CreationDate": None})
    return base64.b64encode(pdf.getvalue()).decode()
