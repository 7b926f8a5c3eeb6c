"""A self-contained HTML page: nothing is fetched, pictures are inside, light and dark, for a desk and for a phone."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from PIL import Image

JPEG_QUALITY = 85
WIDEST_PX = 1400

STYLE = """
:root{color-scheme:light dark;--ink:#1c1b19;--soft:#6d6a64;--paper:#fbfaf7;--card:#fff;--line:#dedad2;
--c1:#a34a1f;--c2:#2f6f8f;--good:#2d7a46;--bad:#b3362b;--wait:#8a6d1d}
@media(prefers-color-scheme:dark){:root{--ink:#ebe8e1;--soft:#a29d93;--paper:#171614;--card:#201f1c;--line:#3a3833;
--c1:#e08a5a;--c2:#6fb3d2;--good:#6cc088;--bad:#f08a7f;--wait:#dbb85a}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:66rem;padding:1.2rem 1rem 3rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:break-word}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.1rem;margin:1.8rem 0 .5rem}p{margin:.5rem 0}
.soft{color:var(--soft)}
.verdict{background:var(--card);border:1px solid var(--line);border-left:.4rem solid var(--wait);border-radius:.4rem;
padding:.7rem 1rem;font-size:1.1rem}
.verdict.good{border-left-color:var(--good)}.verdict.bad{border-left-color:var(--bad)}
.verdict li{font-size:1rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:.8rem}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:.4rem;padding:.5rem}
figcaption{color:var(--soft);font-size:.85rem}
img{max-width:100%;height:auto;display:block}
.wide{overflow-x:auto}.wide img{max-width:none;width:max(100%,40rem)}
svg.chart{width:100%;height:auto;font:10px system-ui,sans-serif;fill:var(--ink)}
.chart .title{font-size:12px;font-weight:600}.chart .tick{fill:var(--soft)}.chart .y,.chart .end{text-anchor:end}
.chart .x{text-anchor:middle}.grid{stroke:var(--line);stroke-width:.6;fill:none}
.level{stroke:var(--soft);stroke-width:1;stroke-dasharray:4 3;fill:none}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}.error{stroke-width:1;opacity:.6}
.line.c1,.error.c1{stroke:var(--c1)}.line.c2,.error.c2{stroke:var(--c2)}.mark.c1{fill:var(--c1)}.mark.c2{fill:var(--c2)}
.line.dashed{stroke-dasharray:5 3}
.line.faint{stroke:var(--c1);opacity:.3;stroke-width:1}
.legend{margin:.2rem 0 0;font-size:.85rem}.key{margin-right:1rem}.key::before{content:"";display:inline-block;
width:.9rem;height:.2rem;margin-right:.35rem;vertical-align:middle;background:var(--c1)}
.key.c2::before{background:var(--c2)}.key.dashed::before{opacity:.5}.key.faint::before{opacity:.3}
table{border-collapse:collapse;font-size:.95rem}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--line)}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
"""

TONES = {"learning": "good", "converged": "good", "not-learning": "bad", "early": ""}


def page(title: str, parts: Sequence[str], refresh_seconds: int = 0) -> str:
    """Return a whole page. `refresh_seconds`: the browser reads it again after so long; 0: never."""
    refresh = f'<meta http-equiv="refresh" content="{refresh_seconds}">' if refresh_seconds else ""
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"{refresh}<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def verdict_box(state: str, words: str, reasons: Sequence[str] = ()) -> str:
    """Return the sentence that matters most, and what to do."""
    items = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    return f'<div class="verdict {TONES.get(state, "")}">{escape(words)}{f"<ul>{items}</ul>" if items else ""}</div>'


def charts(svgs: Sequence[str], notes: Sequence[str]) -> str:
    """Return the charts beside each other, each above its note; those without points are left out."""
    figures = [
        f"<figure>{svg}<figcaption>{escape(note)}</figcaption></figure>"
        for svg, note in zip(svgs, notes, strict=True)
        if svg
    ]
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def section(title: str, body: str, folded: bool = False) -> str:
    """Return a titled part of the page, folded away if asked; "" where it would be empty."""
    if not body:
        return ""
    if folded:
        return f"<details><summary>{escape(title)}</summary>{body}</details>"
    return f"<h2>{escape(title)}</h2>{body}"


def words(pairs: Mapping[str, str]) -> str:
    """Return names and values as a table."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in pairs.items())
    return f'<div class="wide"><table>{rows}</table></div>' if rows else ""


def escaped(text: str) -> str:
    """Return text as it stands in a page."""
    return escape(text)


def note(text: str) -> str:
    """Return a remark in small letters."""
    return f'<p class="soft">{escape(text)}</p>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of figures; the first column is text."""
    above = "".join(f"<th{' class=n' if n else ''}>{escape(cell)}</th>" for n, cell in enumerate(head))
    lines = "".join(
        "<tr>" + "".join(f"<td{' class=n' if n else ''}>{escape(cell)}</td>" for n, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{above}</tr>{lines}</table></div>'


def picture(image: Image.Image, note: str) -> str:
    """Return a picture, inside the page as JPEG."""
    shown = image.convert("RGB")
    if shown.width > WIDEST_PX:
        shown = shown.resize((WIDEST_PX, round(shown.height * WIDEST_PX / shown.width)), Image.Resampling.LANCZOS)
    with BytesIO() as file:
        shown.save(file, "JPEG", quality=JPEG_QUALITY)
        data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure class="wide"><img src="data:image/jpeg;base64,{data}" alt="{escape(note)}"'
        f' width="{shown.width}" height="{shown.height}"><figcaption>{escape(note)}</figcaption></figure>'
    )


def picture_file(path: Path, note: str) -> str:
    """Return a picture's file, inside the page; "" where it cannot be read any more."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return picture(image, note)
    except OSError:
        return ""
