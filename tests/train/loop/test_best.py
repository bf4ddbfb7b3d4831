"""Which weights are kept: what is better, copies of it, and the way through a checkpoint."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from fieldmark.train.loop.best import SOUP, Best, Score


def state(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), float(value))}


def test_the_score_by_its_definition() -> None:
    dice = np.random.default_rng(0)
    logits, labels = dice.normal(size=(40, 3)) * 4, dice.integers(0, 3, 40)
    score = Score.of(torch.from_numpy(logits), torch.from_numpy(labels))

    def nll(temperature: float) -> float:
        z = logits / temperature
        return float((np.log(np.exp(z).sum(1)) - z[np.arange(40), labels]).mean())

    assert score.accuracy == (logits.argmax(1) == labels).mean()
    best = minimize_scalar(nll, bounds=(0.05, 50), method="bounded")
    assert score.nll == pytest.approx(best.fun, abs=2e-3)


def test_classes_that_weigh_the_same() -> None:
    """90 photos of a class and 10 of another: what is told are the shares of photos, what is compared is the mean over
    classes; a class without a photo has no say."""
    labels = torch.tensor([0] * 90 + [2] * 10)
    common, rare = torch.zeros(100, 3), torch.zeros(100, 3)
    common[:, 0] = 3.0  # names all by the common class
    rare[:45, 0], rare[45:90, 1], rare[90:, 2] = 3.0, 3.0, 3.0
    for even in (False, True):
        one, other = (Score.of(logits, labels, even) for logits in (common, rare))
        assert (one.accuracy, other.accuracy) == (0.9, 0.55)
        assert one.beats(other) != even and other.beats(one) == even
        assert one.value[0] == pytest.approx(0.5 if even else 0.9)
        assert other.value[0] == pytest.approx(0.75 if even else 0.55)
        assert other.worse(one) != even and one.worse(other) == even
        assert Score.read(json.loads(json.dumps(one))) == one
    likely = -Score.of(rare, labels, True).value[1]
    p = np.exp(-np.array(Score.of(rare, labels).losses))
    assert likely == pytest.approx((-np.log(p[:90]).mean() - np.log(p[90:]).mean()) / 2)


def test_accuracy_comes_first_then_the_likelihood() -> None:
    assert Score(0.6, 9.0).beats(Score(0.5, 0.1))
    assert Score(0.5, 0.1).beats(Score(0.5, 0.2))
    assert not Score(0.5, 0.2).beats(Score(0.5, 0.2)) and not Score(0.4, 0.1).beats(Score(0.5, 0.2))
    assert not Score(0.5, math.nan).beats(Score(0.5, 0.2)), "what is no number is no better"


def test_logits_that_are_no_numbers_are_wrong() -> None:
    """Their arg max would be class 0, and right by chance."""
    logits = torch.zeros(4, 2)
    logits[2, 1] = math.nan
    assert Score.of(logits, torch.zeros(4, dtype=torch.long)) == Score(0.0, math.inf)


def test_the_standard_error() -> None:
    assert Score(0.75, 1.0).error(48) == pytest.approx((0.75 * 0.25 / 48) ** 0.5)
    assert Score(1.0, 0.0).error(50) == pytest.approx((0.98 * 0.02 / 50) ** 0.5), "of one mistake"


def test_the_last_weights_stay_unless_earlier_ones_were_better_beyond_chance() -> None:
    for last, kept in ((0.75, 2), (0.65, 1)):  # one standard error of 0.8 by 25 photos is 0.08
        best = Best()
        best.consider(state(1), Score(0.8, 1.0))
        given = state(2)
        best.settle(given, Score(last, 2.0), 25)
        given["w"].zero_()
        assert best.state["w"].tolist() == [kept] * 2
        assert best.score == (Score(last, 2.0) if kept == 2 else Score(0.8, 1.0))


def test_what_is_not_good_enough_does_not_stay() -> None:
    best = Best()
    best.consider(state(1), Score(0.8, 1.0))
    assert not best.settle(state(2), Score(0.9, 1.0), 25, enough=False) and best.state["w"].tolist() == [1, 1]
    assert best.settle(state(2), Score(0.79, 1.0), 25, enough=True) and best.state["w"].tolist() == [2, 2]


def test_a_copy_of_the_best_is_kept_and_waiting_is_counted() -> None:
    best = Best()
    first = state(1)
    assert best.consider(first, Score(0.5, 1.0)) and best.stale == 0
    first["w"].zero_()
    assert best.state["w"].tolist() == [1, 1], "a copy"
    assert not best.consider(state(2), Score(0.4, 1.0)) and best.stale == 1
    assert not best.consider(state(2), Score(0.5, 1.0)) and best.stale == 2
    assert best.state["w"].tolist() == [1, 1] and best.score == Score(0.5, 1.0)
    assert best.consider(state(3), Score(0.7, 1.0)) and best.stale == 0
    assert best.state["w"].tolist() == [3, 3]


def test_the_soup_is_of_the_last_few() -> None:
    best = Best()
    assert best.mixture() is None
    last = state(0)
    best.remember(last)
    assert best.mixture() is None, "one makes no mixture"
    last["w"].fill_(99)
    best.remember(state(2))
    assert best.mixture()["w"].tolist() == [1, 1]
    for value in range(10, 10 + SOUP):
        best.remember(state(value))
    assert len(best.recent) == SOUP and best.mixture()["w"].tolist() == [10 + (SOUP - 1) / 2] * 2


def test_through_a_checkpoint() -> None:
    best = Best()
    assert Best.unpack(*_through(best)) == Best()
    best.consider(state(1), Score(1 / 3, 0.1 + 0.2))
    best.consider(state(1), Score(0.1, 1.0))
    best.remember(state(4))
    best.remember(state(5))
    best.rows.append({"step": 3, "lr": 1 / 7})
    tensors, rest = _through(best)
    assert set(tensors) == {"best.w", "recent0.w", "recent1.w"}
    back = Best.unpack(tensors, rest)
    assert (back.score, back.rows, back.stale) == (best.score, best.rows, 1) and isinstance(back.score, Score)
    assert torch.equal(back.state["w"], best.state["w"])
    assert [one["w"].tolist() for one in back.recent] == [[4, 4], [5, 5]]


def _through(best: Best) -> tuple:
    tensors, rest = best.pack()
    return tensors, json.loads(json.dumps(rest))


def test_the_last_weights_where_answers_do_not_judge() -> None:
    """Of a detector: whatever they say of whole photos; the soup may be of one snapshot."""
    best = Best()
    best.consider(state(0), Score(1.0, 0.1))
    best.remember(state(1))
    assert best.mixture() is None and torch.equal(best.mixture(1)["w"], state(1)["w"])  # type: ignore[index]
    assert not best.settle(state(1), Score(0.2, 2.0), 100, enough=False)
    assert best.settle(state(1), Score(0.2, 2.0), 100, enough=False, always=True)
    assert torch.equal(best.state["w"], state(1)["w"]) and best.score == Score(0.2, 2.0)


def of_photos(right: list[bool], losses: list[float]) -> Score:
    return Score(sum(right) / len(right), sum(losses) / len(losses), tuple(right), tuple(losses))


@pytest.mark.parametrize(
    ("lost", "won", "rise", "worse"),
    [
        (0, 0, 0.0, False),
        (1, 0, 0.0, False),  # of 100 photos one says nothing
        (2, 0, 0.0, True),
        (3, 1, 0.0, True),
        (5, 4, 0.0, False),
        (6, 1, 0.0, True),
        (0, 0, 0.05, False),
        (0, 0, 0.2, True),  # as many are right, and all of them are less likely
        (0, 1, 0.2, False),
        (1, 0, -0.2, False),
        (6, 1, -0.2, True),
    ],
)
def test_worse_is_more_than_chance(lost: int, won: int, rise: float, worse: bool) -> None:
    """McNemar's comparison of the photos that one of two models names right, at one standard error."""
    before = [True] * 90 + [False] * 10
    after = [False] * lost + [True] * (90 - lost) + [True] * won + [False] * (10 - won)
    noise = [0.5 * (-1) ** number for number in range(100)]
    old = of_photos(before, [1.0] * 100)
    new = of_photos(after, [1.0 + rise + one for one in noise])
    assert new.worse(old) == worse and not old.worse(old)


def test_few_photos_are_taken_at_their_word() -> None:
    """One of thirty is three in a hundred."""
    old, new = of_photos([True] * 30, [0.5] * 30), of_photos([True] * 29 + [False], [0.5] * 30)
    assert new.worse(old)
    assert of_photos([True] * 30, [0.7, 0.6, 0.65] * 10).worse(old)


def test_worse_of_one_photo_or_of_none_that_is_known() -> None:
    assert of_photos([False], [2.0]).worse(of_photos([True], [1.0]))
    assert not of_photos([True], [1.0]).worse(of_photos([True], [1.0]))
    assert Score(0.4, 0.1).worse(Score(0.5, 1.0)) and not Score(0.5, 3.0).worse(Score(0.5, 1.0))


def test_what_json_makes_of_a_score() -> None:
    score = of_photos([True, False], [0.1, 2.0])
    assert Score.read(json.loads(json.dumps(score))) == score
    assert Score.read(json.loads(json.dumps(Score(0.5, 1.0)))) == Score(0.5, 1.0)
