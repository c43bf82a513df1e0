"""Files beside the page: figures as SVG, PNG and CSV, numbers as CSV.

All written atomically.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nablab.plots import Figure, drawing
from nablab.plots.style import INK, PAPER

FONTS = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation "
    "Sans', Arial, sans-serif"
)
PNG_DPI = 200
# A path of this many characters is a curve: a tenth of a point is fine enough there.
LONG_PATH = 400
# With what spreadsheets begin a formula; they leave out white space before it. The
# empty text is none.
FORMULA = ("=", "+", "-", "@", "\t", "\n")


def slug(name: str) -> str:
    """Make a name safe in file names, ids and addresses.

    >>> slug("Held-out error / <b>")
    'held-out-error-b'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "figure"


def svg(figure: Figure, name: str) -> str:
    """Write the figure as SVG that can stand alone or inside a page.

    Text stays text in the system's font. Text and axes take the color of the text
    around (``currentColor``) and the background is transparent, so light and dark pages
    both work. Ids carry the figure's name, so that several figures share a page. The
    same figure gives the same bytes.
    """
    buffer = io.StringIO()
    with drawing():
        _settle(figure)
        figure.figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text, flags=re.DOTALL
    )
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href").replace(
        ' xmlns:xlink="http://www.w3.org/1999/xlink"', ""
    )
    text = _own_ids(text, slug(name))
    text = re.sub(r'(\sd=")([^"]*)"', lambda m: f'{m[1]}{_rounded(m[2])}"', text)
    text = re.sub(r"\n\s*", "\n", text)
    text = text.replace(INK, "currentColor").replace(PAPER, "var(--page, #fff)")
    # One font for the whole picture, named once at its root.
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", text)
    text = re.sub(
        r'( (?:x|y|width|height)=")(-?\d+\.\d+)"',
        lambda m: f'{m[1]}{float(m[2]):.2f}"',
        text,
    )
    return _open_tag(text, figure, slug(name))


def _settle(figure: Figure) -> None:
    """Lay the figure out once: each further layout would move everything by a hair."""
    if figure.figure.get_layout_engine() is not None:
        figure.figure.draw_without_rendering()
        figure.figure.set_layout_engine("none")


def _own_ids(text: str, prefix: str) -> str:
    """Drop ids that nothing refers to and prefix the others."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(
        r'\sid="([^"]+)"',
        lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "",
        text,
    )
    return re.sub(r'(url\(#|href="#)([^)"]+)', rf"\1{prefix}-\2", text)


def _rounded(path: str) -> str:
    """Round path data to as many digits as can be seen."""
    digits = 1 if len(path) > LONG_PATH else 2
    short = re.sub(
        r"-?\d+\.\d+",
        lambda m: f"{float(m[0]):.{digits}f}".rstrip("0").rstrip("."),
        path,
    )
    short = re.sub(r"\s+", " ", short).strip().replace("-0 ", "0 ")
    # Further points after a move or a line are lines without saying so.
    return short if set(short) & set("CQHV") else short.replace(" L ", " ")


def _open_tag(text: str, figure: Figure, name: str) -> str:
    """Replace the root tag: size by the view box, words for those who cannot see it."""
    end = text.index(">")
    found = re.search(r'viewBox="([^"]+)"', text[:end])
    box = found[1] if found else "0 0 576 400"
    width, height = (float(n) * 4 / 3 for n in box.split()[2:])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" '
        f'width="{width:.0f}" height="{height:.0f}" '
        f'role="img" aria-labelledby="{name}-title {name}-alt" font-family="{FONTS}" '
        'stroke-linejoin="round" stroke-linecap="butt">'
        f'<title id="{name}-title">{html.escape(figure.title)}</title>'
        f'<desc id="{name}-alt">{html.escape(figure.alt or figure.caption)}</desc>'
        + text[end + 1 :].strip()
        + "\n"
    )


def png(figure: Figure) -> bytes:
    """Write the figure as PNG on white, 200 dots per inch, without a date."""
    buffer = io.BytesIO()
    with drawing():
        _settle(figure)
        figure.figure.savefig(
            buffer,
            format="png",
            dpi=PNG_DPI,
            facecolor="white",
            metadata={"Software": None},
        )
    return buffer.getvalue()


def csv_of_columns(table: Mapping[str, Sequence[Any]]) -> str:
    """Write columns of one length as CSV."""
    return csv_of_rows(list(table), zip(*table.values(), strict=True))


def csv_of_rows(header: Sequence[str], rows: Any) -> str:
    """Write rows as CSV; floats with all their digits.

    Text is written so that no spreadsheet takes it for a formula.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_cell(name) for name in header])
    writer.writerows([_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    """Put an apostrophe before text that would begin a formula.

    Such text may be a level, a note or a name from elsewhere.

    >>> _cell("=1+1"), _cell("-0.5"), _cell(-0.5), _cell("sinc")
    ("'=1+1", '-0.5', -0.5, 'sinc')
    """
    if not isinstance(value, str):
        return value
    # the writer quotes no cell for a bare \\r
    value = value.replace("\r\n", "\n").replace("\r", "\n")
    if value[:1] not in FORMULA:
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
