"""Methods that look, or decide, step by step: by the common tests, and each one's own parts."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from method_tests import CLASSES, TASK, TrainedTests, images

from fieldmark.losses import DEFAULT_LOSS
from fieldmark.losses.combine import build
from fieldmark.methods.task import Batch, Task
from fieldmark.runtime.errors import FieldmarkError, UsageError

CRITERION = build(DEFAULT_LOSS, classes=CLASSES, embedding=5)
#: Seven species, six genera (the last unknown), families of which some are unknown.
UNEVEN = Task(7, (("genus", (0, 0, 1, 2, 2, 3, -1)), ("family", (1, 1, 1, 0, -1, -1, 0))))


class TestTreeRNN(TrainedTests):
    name = "tree_rnn"
    settings: ClassVar[dict[str, Any]] = {"hidden": 32, "word": 8}

    def uneven(self) -> Any:
        return self.make("test_resnet", 64, task=UNEVEN)

    def walked(self, method: Any, embedding: torch.Tensor, leaf: int) -> list[torch.Tensor]:
        """log p of each step on the way to a leaf, for one photo [F], the LSTM stepped by hand."""
        tree, h, c = method.tree, method.start(embedding).tanh(), torch.zeros(32)
        parent, word, steps = 0, method.words[0][0], []
        for level, node in enumerate(tree.ancestors[leaf].tolist()):
            h, c = (one[0] for one in method.cell(word[None], (h[None], c[None])))
            inner = method.out.weight @ h + method.photo(embedding)
            siblings = (tree.parent_of(level) == parent).nonzero()[:, 0].tolist()
            layer = method.nodes[level]
            scores = torch.stack([layer.weight[s] @ inner + layer.bias[s] for s in siblings])
            steps.append(scores.log_softmax(0)[siblings.index(node)])
            parent = node
            word = method.words[level + 1][node] if level + 1 < tree.depth else word
        return steps

    def test_labels_of_any_rank(self):
        """A photo of a group teaches the way down to it: the loss is minus the log-probability of that way."""
        method, x = self.uneven(), images(3, 64)
        classes, levels = method.tree.sizes[-1], method.tree.sizes
        node = 1 if levels[-2] > 1 else 0
        labels = torch.tensor([2, classes + node, 0])  # a class, a group above the classes, a class
        criterion = build(DEFAULT_LOSS, classes=classes, embedding=5)
        losses = method.training_step(Batch(x, labels, coarse=True), criterion)
        with torch.inference_mode():
            embedding = method.backbone(x).embedding
            whole = [sum(self.walked(method, embedding[row], int(labels[row]))) for row in (0, 2)]
            leaf = int((method.tree.ancestors[:, -2] == node).nonzero()[0])
            part = sum(self.walked(method, embedding[1], leaf)[:-1])
        torch.testing.assert_close(losses["loss"].detach(), -(whole[0] + whole[1] + part) / 3)

    def test_every_way_by_hand(self):
        method = self.uneven()
        with torch.inference_mode():
            features = method.backbone(images(2, 64))
            (joint,) = method.parts(features)
            for photo in range(2):
                ways = [
                    torch.stack(self.walked(method, features.embedding[photo], c)).sum() for c in range(7)
                ]
                torch.testing.assert_close(joint[photo], torch.stack(ways))
        torch.testing.assert_close(joint.exp().sum(1), torch.ones(2))

    def test_its_loss_is_that_of_teacher_forcing(self):
        method, labels = self.uneven(), torch.tensor([4, 6])
        x = images(2, 64)
        loss = method.training_step(Batch(x, labels), build(DEFAULT_LOSS, classes=7, embedding=5))["loss"]
        embedding = method.backbone(x).embedding
        forced = [torch.stack(self.walked(method, embedding[i], int(labels[i]))).sum() for i in range(2)]
        torch.testing.assert_close(loss, -torch.stack(forced).mean())

    def test_a_wide_beam_finds_the_best(self):
        method = self.uneven()
        x = images(4, 64)
        with torch.inference_mode():
            truth = method(x).sort(1, descending=True)
        for width in (7, 50):
            classes, log_p = method.beam(x, width)
            assert torch.equal(classes, truth.indices)
            torch.testing.assert_close(log_p, truth.values)

    def test_a_narrow_beam_takes_the_best_child_each_time(self):
        method, x = self.uneven(), images(4, 64)
        classes, log_p = method.beam(x, 1)
        with torch.inference_mode():
            levels = [*method.levels(method.backbone(x).embedding)]
            for photo in range(4):
                parent = 0
                for level, chances in enumerate(levels):
                    mine = method.tree.parent_of(level) == parent
                    parent = int(torch.where(mine, chances[photo], -torch.inf).argmax())
                assert classes[photo, 0] == parent
                assert float(log_p[photo, 0]) == pytest.approx(float(method(x)[photo, parent]), abs=1e-5)

    def test_its_head_is_the_identity_for_good(self):
        method = self.make("test_resnet", 64, fresh=True)
        method.requires_grad_(True)
        assert [*method.head.parameters()] == []
        assert {"head.weight", "head.bias"} <= set(method.state_dict())
        z = torch.randn(3, CLASSES)
        assert torch.equal(method.head(z), z)
        method.add_head(CLASSES + 1, 5)  # a class that was added later
        assert method.head(z).shape == (3, CLASSES + 1)

    def test_no_tree(self):
        with pytest.raises(UsageError, match="tree_rnn needs a tree"):
            self.make("test_resnet", 64, task=Task(4))


class TestLSTMParts(TrainedTests):
    name = "lstm_parts"
    settings: ClassVar[dict[str, Any]] = {"parts": 3, "width": 32, "hidden": 16, "look": 8}

    def test_its_steps_by_hand(self):
        method: Any = self.make("test_resnet", 64)
        with torch.inference_mode():
            last = torch.rand(2, method.backbone.width, 3, 4)
            states, looks = method.read(last)
            for photo in range(2):
                x = last[photo].flatten(1).T  # [P, C]
                tokens = (x @ method.reduce.weight.flatten(1).T + method.reduce.bias).relu()
                h, c = method.start(tokens.mean(0)).tanh().chunk(2)
                for step in range(3):
                    own = (x @ method.part_maps.weight[step, :, 0, 0]).softmax(0)
                    share = torch.stack(
                        [method.score((method.of_map(t) + method.of_state(h)).tanh()) for t in tokens]
                    )
                    share = share[:, 0].softmax(0)
                    read = torch.cat([own @ tokens, share @ tokens])
                    h, c = (one[0] for one in method.cell(read[None], (h[None], c[None])))
                    torch.testing.assert_close(states[photo, step], h)
                    torch.testing.assert_close(looks[photo, step].flatten(), (own + share) / 2)

    def test_every_step_is_judged(self):
        method: Any = self.make("test_resnet", 64)
        x, labels = images(3, 64), torch.tensor([1, 0, 3])
        mixed = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0.25, 0, 0, 0.75]])
        states = method.read(method.backbone(x).last)[0]
        for targets in (labels, mixed):
            losses = method.training_step(Batch(x, targets), CRITERION)
            by_step = [
                torch.nn.functional.cross_entropy(method.head(states[:, m]), targets) for m in range(3)
            ]
            torch.testing.assert_close(losses["loss"], torch.stack(by_step).mean())
            torch.testing.assert_close(losses["logits"], method(x))
            mean = torch.stack([method.head(states[:, m]) for m in range(3)]).mean(0)
            torch.testing.assert_close(losses["logits"], mean)

    def test_its_maps(self):
        method, x = self.make("test_resnet", 64), images(2, 64)
        with torch.inference_mode():
            maps = method.features(x)["attention"]
        assert maps.shape[:2] == (2, 3)
        torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 3))
        torch.testing.assert_close(method.attention(x), maps.mean(1))


class TestRAM(TrainedTests):
    name = "ram"
    frozen = ("test_vit",)  # which does not take glimpses
    descends = False
    steps = 100
    settings: ClassVar[dict[str, Any]] = {
        "glimpses": 2,
        "windows": 2,
        "side": 32,
        "hidden": 64,
        "spread": 0.1,
    }

    def other(self, backbone: str = "test_resnet", **settings: Any) -> Any:
        from fieldmark import methods
        from fieldmark.nn.backbone import Backbone
        from fieldmark.nn.weights import Source

        torch.manual_seed(0)
        made = Backbone(Source(backbone, None, "random", {}), 64)
        method = methods.get("ram")(made, (), TASK, {**self.settings, **settings})
        method.add_head(CLASSES, 5)
        return method.eval()

    def test_places_are_drawn_in_training_only(self):
        method, x = self.other(spread=0.5, glimpses=4), images(3, 64)
        with torch.inference_mode():
            one, two = method.look(x), method.look(x)
            assert torch.equal(one.places, two.places) and torch.equal(one.states[:, -1], method.describe(x))
            a, b = method.look(x, draw=True), method.look(x, draw=True)
        assert not torch.equal(a.places, b.places)
        assert a.places.shape == (3, 4, 2) and a.places.abs().max() <= 1
        assert (a.places.abs() == 1).any(), "half a photo astray, some lie at the edge"
        assert a.log_probability.shape == a.expected.shape == (3, 4)

    def test_probability_of_the_first_place(self):
        from math import log, pi

        method, x = self.other(spread=0.2), images(3, 64)
        with torch.inference_mode():
            mean, look = method.look(x).places[:, 0], method.look(x, draw=True)
        away = (look.places[:, 0] - mean).square().sum(1)
        expected = -away / (2 * 0.2**2) - 2 * log(0.2) - log(2 * pi)
        torch.testing.assert_close(look.log_probability[:, 0], expected, rtol=1e-3, atol=1e-3)

    def test_what_chooses_does_not_change_what_sees(self):
        """The policy's gradient goes into the two choosers, the baseline's into what expects, and no further."""
        method, x = self.other(), images(4, 64)
        look = method.look(x, draw=True)
        for value, names in (
            (look.log_probability.sum(), {"first", "next"}),
            (look.expected.sum(), {"first_expected", "expected"}),
        ):
            method.zero_grad()
            value.backward(retain_graph=True)
            reached = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None}
            assert reached == names

    def test_a_glimpse_earns_what_it_added(self):
        """By default every glimpse has an answer, and is judged by how much surer of the right class it made it."""
        method, x, labels = self.other(), images(6, 64), torch.tensor([0, 1, 2, 3, 0, 1])
        torch.manual_seed(3)
        losses = method.training_step(Batch(x, labels), CRITERION)
        torch.manual_seed(3)
        look = method.look(x, draw=True)
        logits = method.head(look.states)
        sure = logits.softmax(2)[torch.arange(6), :, labels].detach()
        gain = torch.cat([sure[:, :1], sure[:, 1:] - sure[:, :-1]], 1) - look.expected
        policy = -(look.log_probability * gain).sum() / 6
        each = [torch.nn.functional.cross_entropy(one, labels) for one in logits.unbind(1)]
        torch.testing.assert_close(
            losses["loss"], sum(each) / len(each) + 0.01 * policy + gain.square().mean()
        )
        torch.testing.assert_close(losses["logits"], logits[:, -1])

    def test_its_loss_by_hand(self):
        method, x, labels = self.other(reward="end"), images(6, 64), torch.tensor([0, 1, 2, 3, 0, 1])
        torch.manual_seed(3)
        losses = method.training_step(Batch(x, labels), CRITERION)
        torch.manual_seed(3)
        look = method.look(x, draw=True)
        logits = method.head(look.states[:, -1])
        reward = logits.softmax(1)[torch.arange(6), labels].detach()
        gain = reward[:, None] - look.expected
        policy = -(look.log_probability * gain).sum() / 6
        expected = torch.nn.functional.cross_entropy(logits, labels) + 0.01 * policy + gain.square().mean()
        torch.testing.assert_close(losses["loss"], expected)
        assert float(losses["reward"]) == pytest.approx(float(reward.mean()))

    def test_mixed_photos_are_rewarded_by_their_share(self):
        method, x = self.other(), images(2, 64)
        losses = method.training_step(Batch(x, torch.full((2, CLASSES), 0.25)), CRITERION)
        assert float(losses["reward"]) == pytest.approx(0.25) and losses["loss"].isfinite()

    @pytest.mark.parametrize("encoder, context", [("small", False), ("backbone", False), ("small", True)])
    def test_what_learns(self, encoder, context):
        """All that still learns gets a gradient."""
        method = self.other(encoder=encoder, context=context)
        method.begin(0)
        learns = {n for n, p in method.backbone.named_parameters() if p.requires_grad}
        everything = {n for n, _ in method.backbone.named_parameters()}
        assert learns == everything if context else learns < everything
        assert bool(learns) == (context or encoder == "backbone")
        method.training_step(Batch(images(4, 64), torch.arange(4)), CRITERION)["loss"].backward()
        assert {n for n, p in method.backbone.named_parameters() if p.grad is not None} == learns
        method.begin(1)
        assert {n for n, p in method.backbone.named_parameters() if p.requires_grad} == learns

    def test_the_context_counts(self):
        method, x = self.other(context=True), images(2, 64)
        with torch.inference_mode():
            before = method(x)
            method.begun.weight.mul_(-1)
            assert not torch.allclose(method(x), before)

    def test_backbones_that_do_not_take_glimpses(self):
        assert self.other("test_vit").stage is None and self.other().stage is not None
        with pytest.raises(
            FieldmarkError, match=r"test_vit cannot look at glimpses of 32 px.*encoder=small"
        ) as caught:
            self.other("test_vit", encoder="backbone")
        assert "\n" not in str(caught.value)
        with pytest.raises(FieldmarkError, match="give it one scale"):
            self.make("test_resnet", 64, (64, 48))

    def test_where_it_looked_lies_on_the_map(self):
        method, x = self.other(), images(2, 64)
        with torch.inference_mode():
            places = method.look(x).places
            maps = method.features(x)["attention"]
        peaks = maps.flatten(2).argmax(2)
        column, row = peaks % maps.shape[3], peaks // maps.shape[3]
        cells = torch.stack([column, row], 2) / 32 * 2 - 1
        assert (places - cells - 1 / 32).abs().max() < 0.04
