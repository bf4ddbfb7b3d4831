"""Losses by configuration: the words, the table, the sum and what is kept of it."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from fieldmark import losses
from fieldmark.losses.combine import Criterion, build
from fieldmark.losses.cosine_margin import cosine_margin
from fieldmark.losses.cross_entropy import cross_entropy
from fieldmark.losses.focal import focal
from fieldmark.losses.triplet import triplet
from fieldmark.runtime.errors import UsageError

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
EVERY = "+".join(card.name for card in losses.CARDS)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [6, 3] and embeddings [6, 4] that want gradients."""
    generator = torch.Generator().manual_seed(0)
    logits, embedding = torch.randn(6, 3, generator=generator), torch.randn(6, 4, generator=generator)
    return logits.requires_grad_(), embedding.requires_grad_()


def criterion(spec: str, **kwargs) -> Criterion:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    return build(spec, classes=3, embedding=4, **kwargs)


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ("focal", {"focal": 1}),
        ("cross_entropy+0.1*triplet", {"cross_entropy": 1, "triplet": 0.1}),
        (" 0.5 * focal + 1e-2*center", {"focal": 0.5, "center": 0.01}),
        ("1e+2*cross_entropy+1.e+1*center", {"cross_entropy": 100, "center": 10}),
        ({"cross_entropy": 1, "contrastive": 0.2}, {"cross_entropy": 1, "contrastive": 0.2}),
    ],
)
def test_words(spec: str, weights: dict[str, float]) -> None:
    assert [(name, term.weight) for name, term in losses.parse(spec).items()] == list(weights.items())


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        ("focal", [{}]),
        ("focal()", [{}]),
        ("focal(gamma=3)+0.1*triplet(margin=0.3)", [{"gamma": 3}, {"margin": 0.3}]),
        (
            " cross_entropy + 0.2 * cosine_margin( margin = .2, scale=1e+1 )",
            [{}, {"margin": 0.2, "scale": 10}],
        ),
        ({"focal(gamma=0)": 1, "center": 0.01}, [{"gamma": 0}, {}]),
    ],
)
def test_settings(spec: str, settings: list[dict[str, float]]) -> None:
    assert [term.settings for term in losses.parse(spec).values()] == settings


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("hinge", "no loss is called 'hinge'; there are: cross_entropy, focal, .*cosine_margin"),
        ("", "not NAME"),
        ("cross_entropy+", "not NAME"),
        ("cross_entropy*0.1", r"not NAME, WEIGHT\*NAME or NAME\(SETTING=NUMBER\)"),
        ("focal(gamma=3", "not NAME"),
        ("focal(gamma=3)2", "not NAME"),
        ("focal((gamma=3))", "not NAME"),
        ({"0.5*focal": 1}, "not NAME"),
        ("focal(3)", r"focal has no setting '3'; its settings: gamma \(0 to 10\)"),
        ("focal(margin=3)", "focal has no setting 'margin'"),
        ("cross_entropy(gamma=3)", "no setting 'gamma'; it has none"),
        ("focal(gamma)", "gamma of the loss focal is '': it is a number from 0 to 10"),
        ("focal(gamma=high)", "gamma of the loss focal is 'high'"),
        ("focal(gamma=-1)", "from 0 to 10"),
        ("focal(gamma=nan)", "from 0 to 10"),
        ("focal(gamma=1,gamma=2)", "gamma twice"),
        ("x*focal", "'x' .* not a number"),
        ("focal+focal", "twice"),
        ("0*focal", "above 0"),
        ("nan*focal", "above 0"),
        ("-1*focal", "above 0"),
        ("triplet", r"head untrained.*cross_entropy\+0.1\*triplet"),
        ({}, "head untrained"),
        ({"focal": "2"}, "above 0"),
    ],
)
def test_words_that_cannot_be(spec: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        losses.parse(spec)
    assert "\n" not in str(caught.value)


def test_the_table_needs_no_torch() -> None:
    code = f"import sys; from fieldmark import losses; losses.parse({EVERY!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("card", losses.CARDS, ids=lambda card: card.name)
def test_the_table_tells_the_truth(card: losses.Card) -> None:
    module, cls = card.home.split(":")
    assert callable(getattr(import_module(module), card.name))
    spec = card.name if card.needs == "logits" else f"cross_entropy+{card.name}"
    part = criterion(spec).parts[card.name]
    assert type(part).__name__ == cls
    held = "parameters" if list(part.parameters()) else "buffers" if list(part.buffers()) else "nothing"
    assert held == card.holds
    constructor = inspect.signature(type(part)).parameters
    assert {one.name: one.default for one in card.settings} == {
        name: known.default
        for name, known in constructor.items()
        if name not in ("label_smoothing", "weight", "classes", "embedding")
    }
    for one in card.settings:
        assert one.least <= one.default <= one.most
        for end in (one.least, one.most):
            one_more = f"cross_entropy+{card.name}({one.name}={end})".replace("cross_entropy+cross", "cross")
            made = criterion(one_more).parts[card.name]
            assert getattr(made, one.name) == end
            assert criterion(one_more)(*batch()[:1], LABELS, batch()[1])["loss"].isfinite()
    logits, embedding = batch()
    criterion(spec)(logits, LABELS, embedding)["loss"].backward()
    assert logits.grad is not None
    assert (embedding.grad is not None) == (card.needs == "embedding")


def test_the_sum() -> None:
    logits, embedding = batch()
    weight = torch.tensor([0.5, 1.0, 1.5])
    one = criterion("cross_entropy+0.1*triplet+2*focal", weight=weight, label_smoothing=0.1)
    result = one(logits, LABELS, embedding)
    parts = {
        "cross_entropy": cross_entropy(logits, LABELS, 0.1, weight),
        "triplet": triplet(embedding, LABELS),
        "focal": focal(logits, LABELS, label_smoothing=0.1, weight=weight),
    }
    total = parts["cross_entropy"] + 0.1 * parts["triplet"] + 2 * parts["focal"]
    assert list(result) == ["loss", *parts]
    torch.testing.assert_close(result["loss"], total)
    for name, value in parts.items():
        torch.testing.assert_close(result[name], value.detach())
    expected = torch.autograd.grad(total, (logits, embedding))
    torch.testing.assert_close(torch.autograd.grad(result["loss"], (logits, embedding)), expected)


def test_the_page_says_what_can_be_set() -> None:
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    for card in losses.CARDS:
        for number, one in enumerate(card.settings):
            name = "" if number else f"`{card.name}` "
            assert f"| {name}| `{one.name}` | {one.default:g} | {one.least:g} to {one.most:g} |" in page


def test_settings_reach_the_losses() -> None:
    logits, embedding = batch()
    result = criterion("focal(gamma=3)+0.1*triplet(margin=1.5)")(logits, LABELS, embedding)
    parts = focal(logits, LABELS, 3.0), triplet(embedding, LABELS, 1.5)
    torch.testing.assert_close((result["focal"], result["triplet"]), tuple(value.detach() for value in parts))
    assert parts[0] != focal(logits, LABELS) and parts[1] != triplet(embedding, LABELS)


@pytest.mark.parametrize("spec", [EVERY, "cross_entropy"])
def test_the_two_halves_of_the_sum(spec: str) -> None:
    """What the logits are judged by and what the embedding is: together all of it."""
    logits, embedding = batch()
    one = criterion(spec, log_prior=torch.log(torch.tensor([0.7, 0.2, 0.1])))
    for way in (one.train(), one.eval()):
        if way.training:  # centres move
            way = criterion(spec, log_prior=one.log_prior)
        whole = copy.deepcopy(way)(logits, LABELS, embedding)["loss"]
        halves = way.of_logits(logits, LABELS), way.of_embedding(embedding, LABELS)
        torch.testing.assert_close(halves[0] + halves[1], whole)
    assert bool(halves[1] == 0) == (spec == "cross_entropy")


@pytest.mark.parametrize(
    ("spec", "pairs"),
    [
        ("focal+0.1*center", False),
        ("cross_entropy+triplet(margin=0.3)", True),
        ({"focal": 1, "contrastive": 1}, True),
    ],
)
def test_which_losses_need_pairs(spec: str, pairs: bool) -> None:
    assert losses.needs_pairs(spec) == pairs


def test_the_prior_is_added_in_training_only() -> None:
    logits, _ = batch()
    prior = torch.log(torch.tensor([0.7, 0.2, 0.1]))
    one = criterion("cross_entropy", log_prior=prior)
    torch.testing.assert_close(one(logits, LABELS)["loss"], cross_entropy(logits + prior, LABELS))
    torch.testing.assert_close(one.eval()(logits, LABELS)["loss"], cross_entropy(logits, LABELS))


def test_the_prior_makes_logits_right_for_even_classes() -> None:
    """One feature for all photos, nine of class 0 and one of class 1: the plain logits learn that nothing is seen."""
    logits = torch.zeros(1, 2, requires_grad=True)
    labels, prior = torch.tensor([0] * 9 + [1]), torch.log(torch.tensor([0.9, 0.1]))
    one = build("cross_entropy", classes=2, embedding=1, log_prior=prior)
    one(logits.expand(10, 2), labels)["loss"].backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6


def test_what_is_kept_is_checkpointed() -> None:
    logits, embedding = batch()
    one = criterion(EVERY, weight=torch.ones(3), log_prior=torch.zeros(3))
    one(logits, LABELS, embedding)
    state = one.state_dict()
    assert set(state) == {"parts.center.centers", "parts.cosine_margin.weight"}
    torch.manual_seed(1)
    other = build(EVERY, classes=3, embedding=4)
    other.load_state_dict(state)
    torch.testing.assert_close(other.eval()(logits, LABELS, embedding), one.eval()(logits, LABELS, embedding))


def test_with_soft_targets_the_embedding_sees_pure_ones_only() -> None:
    logits, embedding = batch()
    targets = torch.nn.functional.one_hot(LABELS, 3).float()
    targets[0], targets[1] = torch.tensor([0.6, 0.4, 0.0]), torch.tensor([0.99, 0.01, 0.0])
    result = criterion("cross_entropy+triplet")(logits, targets, embedding)
    torch.testing.assert_close(result["cross_entropy"], cross_entropy(logits, targets).detach())
    torch.testing.assert_close(result["triplet"], triplet(embedding[2:], LABELS[2:]).detach())
    assert result["triplet"] != triplet(embedding, LABELS)


def test_with_no_pure_target_the_embedding_has_a_loss_of_0() -> None:
    logits, embedding = batch()
    result = criterion(EVERY)(logits, torch.full((6, 3), 1 / 3), embedding)
    result["loss"].backward()
    assert embedding.grad is not None and not embedding.grad.any()
    assert [result[card.name].item() for card in losses.CARDS if card.needs == "embedding"] == [0] * 4
    assert result["loss"].isfinite()


def test_half_precision_is_widened() -> None:
    """Under autocast a cosine in bfloat16, times 64, would be off by a quarter."""
    logits, embedding = (x.detach().bfloat16() for x in batch())
    one = criterion(EVERY).eval()
    weight = one.parts["cosine_margin"].weight
    assert isinstance(weight, torch.Tensor)
    expected = cosine_margin(embedding.float(), LABELS, weight), cross_entropy(logits.float(), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        result = one(logits, LABELS, embedding)
    torch.testing.assert_close((result["cosine_margin"], result["cross_entropy"]), expected)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="embedding"):
        criterion("focal+triplet")(torch.zeros(6, 3), LABELS)
    for name in ("weight", "log_prior"):
        with pytest.raises(ValueError, match=rf"{name} \(4,\).*3 classes"):
            criterion("focal", **{name: torch.zeros(4)})
