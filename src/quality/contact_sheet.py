"""`review.html`: the review list as one page of pictures or texts, to look at beside the file in which it is answered.

A page of its own: no script, nothing loaded from anywhere.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from src.data.images import Unreadable, load
from src.quality.labels_csv import said, shortened
from src.quality.review_list import Listed
from src.task import Item

SIDE = 128  # pixels
MOST = 500  # labels on the page, which then has a few megabytes
PAGE = """<!doctype html>
<meta charset="utf-8"><title>{title}</title>
<style>
  body {{ font: 14px sans-serif; margin: 1.5em; }}
  main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(15em, 1fr)); gap: 1em; }}
  article {{ border: 1px solid #ccc; padding: .6em; overflow-wrap: anywhere; }}
  img {{ min-width: 96px; display: block; margin-bottom: .4em; }}
  small {{ color: #555; }}
</style>
<h1>{title}</h1>
<p>{note}</p>
<main>
{cards}
</main>
"""
CARD = """<article>{shown}<b>{label}</b><br>{why_listed}<br>{votes}<br>{why}<br>
<small>{file}<br>{item}…</small></article>"""


def contact_sheet(listed: Sequence[Listed], items: Mapping[str, Item], *, title: str, max_pixels: int) -> str:
    """The first 500 of the list; an image that cannot be read any more shows as its reason."""
    note = f"The first {MOST} of {len(listed)}." if len(listed) > MOST else f"{len(listed)} to look at."
    cards = "\n".join(_card(one, items[one.label.item], max_pixels) for one in listed[:MOST])
    return PAGE.format(title=escape(title), note=note, cards=cards)


def _card(one: Listed, item: Item, max_pixels: int) -> str:
    payload = item.payload
    shown = f"<p>{escape(shortened(payload))}</p>" if isinstance(payload, str) else _picture(payload, max_pixels)
    label = one.shown
    cells = {"label": label.label or ("label not shown" if one.blind else "no label"), "why_listed": one.why,
             "votes": (votes := said(label)) and f"said: {votes}", "why": label.why, "file": item.name,
             "item": item.key[:12]}
    return CARD.format(shown=shown, **{name: escape(cell) for name, cell in cells.items()})


def _picture(path: Path, max_pixels: int) -> str:
    try:
        image = load(path, max_pixels)
    except (OSError, Unreadable) as error:
        return f"<p>{escape(str(error))}</p>"
    image.thumbnail((SIDE, SIDE))
    encoded = io.BytesIO()
    image.save(encoded, format="JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}">'
