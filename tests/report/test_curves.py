from __future__ import annotations

import re

import pytest

from fieldmark.report.curves import Series as Line
from fieldmark.report.curves import continued, overfitting, plot, section, ticks
from fieldmark.report.page import write_report
from fieldmark.runtime.evaluation import evaluation
from fieldmark.train.trained import by_fold


def rows(held, trained, right=None, learned=None, phase=0):
    """A curve: one row an epoch, the first without anything of the training."""
    out = []
    for epoch, loss in enumerate(held):
        row = {"phase": phase, "step": epoch * 10, "epoch": float(epoch), "lr": 0.001, "held_out_loss": loss}
        row["held_out_accuracy"] = 0.8 if right is None else right[epoch]
        if epoch:
            row |= {
                "train_loss": trained[epoch],
                "train_accuracy": 0.8 if learned is None else learned[epoch],
            }
        out.append(row)
    return out


def test_epochs_go_on_from_phase_to_phase():
    curve = rows([1, 1, 1], [1, 1, 1]) + rows([1, 1], [1, 1], phase=1)
    assert [row["epoch"] for row in continued(curve)] == [0, 1, 2, 2, 3]
    assert [row["epoch"] for row in curve] == [0, 1, 2, 0, 1], "the rows themselves stay"


@pytest.mark.parametrize(
    ("held", "trained", "learned", "expected"),
    [
        ([1, 0.5, 0.4, 0.5, 0.6], [9, 1, 0.8, 0.5, 0.3], 0.8, "It overfits from epoch 2.0 on"),
        ([1, 0.5, 0.4, 0.41, 0.41], [9, 1, 0.8, 0.5, 0.3], 0.8, "no sign that it overfits: held-out"),
        ([1, 0.5, 0.4, 0.5, 0.6], [9, 1, 0.8, 0.9, 1.0], 0.8, "no sign that it overfits: held-out"),
        ([1, 0.5, 0.4, 0.4, 0.4], [9, 1, 0.8, 0.5, 0.3], 0.99, "It knows its training photos better"),
        ([1, 0.8, 0.6, 0.5, 0.4], [9, 1, 0.8, 0.5, 0.3], 0.8, "still falling"),
    ],
)
def test_overfitting_in_words(held, trained, learned, expected):
    said = overfitting(rows(held, trained, learned=[learned] * 5), 200)
    assert expected in said, said


def test_a_gap_within_chance_is_none():
    curve = rows([1, 0.5, 0.4, 0.4, 0.4], [9, 1, 0.8, 0.5, 0.3], learned=[0.92] * 5)
    assert "no sign" in overfitting(curve, 40)
    assert "better than others" in overfitting(curve, 4000)


def test_few_looks_tell_nothing():
    assert "too seldom" in overfitting(rows([1, 0.5], [9, 1]), 10)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.87), (0, 3e-4), (-0.08, 0.12), (2, 2), (0, 0)])
def test_ticks_are_round_and_cover(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-12 and found[-1] >= high - 1e-12 and 2 <= len(found) <= 8
    (step,) = {float(f"{b - a:.6g}") for a, b in zip(found, found[1:], strict=False)}
    assert f"{step:.0e}"[0] in "125" or f"{step:.1e}"[:3] == "2.5"


def test_points_lie_where_their_values_are():
    svg = plot([Line("a <b>", "held", [(0.0, 0.5), (5.0, 1.0), (10.0, 0.75)])], "Named right", True)
    spots = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    (x0, low), (x1, high), (x2, middle) = spots
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.02) and high < middle < low, "up is more"
    assert middle == pytest.approx((low + high) / 2, abs=0.02)
    assert "a &lt;b&gt;" in svg and "<b>" not in svg and "epoch 5.0: 100%" in svg


def test_values_that_are_no_numbers_are_left_out():
    curve = rows([1, float("nan"), 0.4, 0.3], [9, 1, float("inf"), 0.5])
    charts = section(curve, {}, "finetune")["charts"]
    assert not any("nan" in chart["svg"] or "inf" in chart["svg"] for chart in charts)


def test_no_steps_no_section():
    assert section([], {"held_out": 3}, "instant") is None


def test_the_page(tmp_path):
    chosen = {
        "held_out": 120,
        "held_out_top1": 0.85,
        "held_out_top1_instant": 0.7833,
        "stopped": "the budget is spent",
    }
    curve = rows([1, 0.5, 0.4, 0.4, 0.4], [9, 1, 0.8, 0.5, 0.3])
    judged = evaluation(["a", "b"], ["x", "y"], [[0.9, 0.1], [0.2, 0.8]], ["x", "y"])

    def page(mode="finetune", **more):
        training = {"curve": curve, "chosen": chosen, "mode": mode, "plan": ["1. <all>: 4 epochs"]}
        given = {"title": "t", "evaluation": None, "judged": judged, "settings": {}, "data": {}}
        path = write_report(tmp_path / "r.html", **given, training=training, **more)
        return " ".join(path.read_text(encoding="utf-8").split())

    text = page(how="held out", folds=by_fold(*_folds()))
    for expected in (
        "2 photos held out of training",
        "they chose among them",
        "Of 120 held-out photos it names 85.0% right; instant mode named 78.3% of them. It ended when the budget",
        "1. &lt;all&gt;: 4 epochs",
        "Over 2 folds, top-1 was 75.0% on average, with a spread (standard deviation) of 35.4 points",
        'href="#training"',
    ):
        assert expected in text, expected
    assert text.count('<svg class="chart curve"') == 4
    assert "every training photo was named by a model that had not seen it" in page(how="out of fold")
    assert "the instant model was kept" in page("instant")
    assert "Over 1 fold" not in page(
        folds={"folds": [{"fold": 1, "n": 2, "top1": 1.0}], "mean": 1.0, "spread": None}
    )


def _folds():
    import numpy as np

    return np.array([0, 0, 1, 1]), np.array([True, True, True, False])
