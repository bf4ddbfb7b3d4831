"""``fieldmark methods``: the methods of training, read from their cards."""

from __future__ import annotations

from fieldmark.cli.common import verb
from fieldmark.cli.screen import Screen


@verb(
    examples="""
    fieldmark methods
    fieldmark methods --json
    """
)
def methods(screen: Screen) -> None:
    """List the methods of training, for `train --method`."""
    from fieldmark.methods import DEFAULT_METHOD, cards

    rows = [
        {
            "name": card.name,
            "title": card.title,
            "year": card.year,
            "idea": card.idea,
            "source": card.source,
        }
        for card in cards()
    ]
    for row in rows:
        chosen = "  (the default)" if row["name"] == DEFAULT_METHOD else ""
        screen.say(f"{row['name']}{chosen}\n  {row['title']}: {row['idea']}\n  {row['source']}\n")
    screen.answer({"methods": rows, "default": DEFAULT_METHOD})
