"""``fieldmark methods``: the methods of training, read from their cards."""

from __future__ import annotations

from dataclasses import asdict
from statistics import mean

from fieldmark.cli.common import verb
from fieldmark.cli.screen import Screen


@verb(
    examples="""
    fieldmark methods
    fieldmark methods --json
    """
)
def methods(screen: Screen) -> None:
    """List the methods of training, for `train --method`.

    Costs are times those of plain trained alike: for a photo learned, and for one answered. Points are how much better
    than that plain it was in the same time, on each set of photos that it was measured on; docs/methods has the whole
    table.
    """
    from fieldmark.methods import DEFAULT_METHOD, cards
    from fieldmark.methods.measured import of

    rows, family = [], ""
    for card in cards():
        if card.family != family:
            family = card.family
            screen.say(f"{family.upper()}")
        found = of(card.name)
        costs = {
            name: [value for row in found if (value := getattr(row, name)) is not None]
            for name in ("training", "answer")
        }
        rows.append(
            {
                **asdict(card),
                "needs": list(card.needs),
                "default": card.name == DEFAULT_METHOD,
                **{f"{name}_cost": mean(values) if values else None for name, values in costs.items()},
                "measured": [row._asdict() for row in found],
            }
        )
        name = card.name + (" *" if card.name == DEFAULT_METHOD else "")
        told = [f"{what} x{mean(values):.1f}" for what, values in costs.items() if values]
        told += [f"{row.set} ({row.budget}) {row.delta:+.1f}" for row in found if row.delta is not None]
        screen.say(f"  {name:<20}{card.year}  {card.idea}")
        if told:
            screen.say(f"{'':28}{', '.join(told)}")
    screen.say("* the default; details: docs/methods/NAME.md")
    screen.answer({"methods": rows, "default": DEFAULT_METHOD})
