"""Plain networks with another loss: by the common tests, and each loss against its formula written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from method_tests import CLASSES, TrainedTests, images

from fieldmark.losses.combine import build
from fieldmark.losses.contrastive import contrastive
from fieldmark.losses.cross_entropy import cross_entropy
from fieldmark.losses.triplet import triplet
from fieldmark.methods.api_net import interact, partners
from fieldmark.methods.hxe import HXE, log_nodes, soft_labels, weights
from fieldmark.methods.mc_loss import discriminality, diversity, kept
from fieldmark.methods.pairwise_confusion import confusion
from fieldmark.methods.task import Batch, Task
from fieldmark.nn.tree import Tree
from fieldmark.runtime.errors import FieldmarkError

LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 1, 3])


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step(method: Any, spec: str = "cross_entropy", targets: torch.Tensor = LABELS) -> dict[str, torch.Tensor]:
    """A training step on eight photos; the same chance each time."""
    torch.manual_seed(0)
    criterion = build(spec, classes=CLASSES, embedding=5)
    torch.manual_seed(1)
    return method.training_step(Batch(images(8, 64), targets), criterion)


class PlainForward(TrainedTests):
    """What is answered is the plain network's descriptor."""

    steps = 25

    def test_it_answers_as_plain_does(self):
        method, x = self.make("test_resnet", 64), images(2, 64)
        with torch.inference_mode():
            pooled = method.backbone(x).embedding
            torch.testing.assert_close(method.describe(x), pooled / pooled.norm(dim=1, keepdim=True))

    def test_mixed_targets(self):
        """Half of each photo's class, half of the next one's; the losses of the embedding see no pure photo."""
        one_hot = torch.nn.functional.one_hot(LABELS, CLASSES).float()
        result = step(self.make("test_resnet", 64), "focal+triplet", (one_hot + one_hot.roll(1, 1)) / 2)
        assert result["loss"].isfinite() and result["loss"].requires_grad


class TestPairwiseConfusion(PlainForward):
    name = "pairwise_confusion"

    def test_the_formula(self):
        logits, total = numbers(9, 4), 0.0
        labels = torch.cat([LABELS, LABELS[:1]])  # the ninth has no partner
        p = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in logits.tolist()]
        for i in range(4):
            if labels[i] != labels[i + 4]:
                total += math.dist(p[i], p[i + 4])
        assert 0 < sum(labels[:4] == labels[4:8]) < 4, "both kinds of pairs"
        assert confusion(logits, labels).item() == pytest.approx(total / 9, rel=1e-5)

    def test_its_weight_grows_with_the_classes(self):
        method = self.make("test_resnet", 64)
        result = step(method)
        with torch.no_grad():
            plain = cross_entropy(result["logits"], LABELS)
        torch.testing.assert_close(result["loss"].detach(), plain + 0.1 * CLASSES * result["confusion"])

    def test_equal_answers_have_a_finite_gradient(self):
        logits = torch.zeros(4, 3, requires_grad=True)
        confusion(logits, torch.arange(4) % 3).backward()
        assert logits.grad is not None and logits.grad.isfinite().all()
        assert confusion(logits[:1], LABELS[:1]) == 0


class TestMetric(PlainForward):
    name = "metric"

    @pytest.mark.parametrize(
        ("settings", "truth"),
        [
            ({}, lambda z: triplet(z, LABELS)),
            ({"margin": 0.7, "weight": 0.3}, lambda z: 0.3 * triplet(z, LABELS, 0.7)),
            ({"loss": "contrastive"}, lambda z: contrastive(z, LABELS)),
            ({"loss": "contrastive", "margin": 0.1}, lambda z: contrastive(z, LABELS, 0.1)),
        ],
    )
    def test_the_sum(self, settings, truth):
        self.settings = settings
        method = self.make("test_resnet", 64)
        result = step(method)
        with torch.no_grad():
            z = method.describe(images(8, 64))
            torch.testing.assert_close(
                result["loss"].detach(), cross_entropy(method.head(z), LABELS) + truth(z)
            )


class TestAPINet(PlainForward):
    name = "api_net"

    def test_partners(self):
        """Against a search one by one; photo 2 is alone in its class, photo 7 a copy of photo 3, which has no other."""
        z = torch.nn.functional.normalize(numbers(8, 3), dim=1)
        z[7] = z[3]
        near, far = partners(z, LABELS)
        for i in range(8):
            d = {j: math.dist(z[i].tolist(), z[j].tolist()) for j in range(8) if j != i}
            own = [j for j in d if LABELS[j] == LABELS[i] and d[j] > 1e-4]
            other = [j for j in d if LABELS[j] != LABELS[i]]
            assert near[i] == (min(own, key=d.__getitem__) if own else i)
            assert far[i] == min(other, key=d.__getitem__)
        assert near[2] == 2 and near[3] == 3 and near[7] == 7
        near, far = partners(z, torch.zeros(8))
        assert far.tolist() == list(range(8)), "one class only"

    def test_interaction(self):
        """Self and other features of a pair, entry by entry."""
        x1, x2, mix = numbers(3, 4), numbers(3, 4, seed=1), numbers(8, 4, seed=2)
        by_self, by_other = interact(x1, x2, lambda x: x @ mix)
        for pair in range(3):
            both = x1[pair].tolist() + x2[pair].tolist()
            for k in range(4):
                common = sum(a * b for a, b in zip(both, mix[:, k].tolist(), strict=True))
                a, b = float(x1[pair, k]), float(x2[pair, k])
                gate1, gate2 = (1 / (1 + math.exp(-common * v)) for v in (a, b))
                assert by_self[pair, k].item() == pytest.approx(a + a * gate1)
                assert by_self[3 + pair, k].item() == pytest.approx(b + b * gate2)
                assert by_other[pair, k].item() == pytest.approx(a + a * gate2)
                assert by_other[3 + pair, k].item() == pytest.approx(b + b * gate1)

    def test_the_sum(self):
        """Photo alone, all four seen, and the ranking, pair by pair."""
        self.settings = {"dropout": 0.0, "hidden": 8, "weight": 2.0, "margin": 0.1}
        method = self.make("test_resnet", 64)
        result = step(method)
        with torch.no_grad():
            z = method.describe(images(8, 64))
            scale = z.shape[1] ** 0.5
            entropies, ranks = [], []
            for i in range(8):
                for j in (partner[i] for partner in partners(z, LABELS)):
                    common = method.mutual(torch.cat([z[i], z[j]]) * scale)
                    for own, other in ((i, j), (j, i)):
                        gates = [torch.sigmoid(common * z[k] * scale) for k in (own, other)]
                        p = [method.head(z[own] * (1 + g)).log_softmax(0)[LABELS[own]] for g in gates]
                        entropies += [-one for one in p]
                        ranks.append((p[1].exp() - p[0].exp() + 0.1).clamp_min(0))
            pairs, rank = torch.stack(entropies).mean(), torch.stack(ranks).mean()
            alone = cross_entropy(method.head(z), LABELS)
        torch.testing.assert_close((result["pairs"], result["rank"]), (pairs, rank))
        torch.testing.assert_close(result["loss"].detach(), alone + pairs + 2 * rank)


class TestMCLoss(PlainForward):
    name = "mc_loss"

    def test_discriminality(self):
        maps, keep = numbers(2, 6, 3, 3).abs(), torch.tensor([True, True, False, False, True, True])
        scores = discriminality(maps, 3, keep)
        for photo in range(2):
            for c, channels in enumerate(([0, 1], [4, 5])):
                largest = [
                    max(float(maps[photo, k, i, j]) for k in channels) for i in range(3) for j in range(3)
                ]
                assert scores[photo, c].item() == pytest.approx(sum(largest) / 9)

    def test_diversity(self):
        maps, total = numbers(2, 6, 3, 3), 0.0
        for photo in range(2):
            for c in range(2):
                shares = []
                for k in range(3 * c, 3 * c + 3):
                    e = [math.exp(v) for v in maps[photo, k].flatten().tolist()]
                    shares.append([v / sum(e) for v in e])
                total += sum(map(max, zip(*shares, strict=True))) / 3
        assert diversity(maps, 3).item() == pytest.approx(total / 4)

    def test_its_ends(self):
        """Channels that look alike share the least; one place each, as many as there are: the most."""
        assert diversity(numbers(1, 1, 3, 3).expand(1, 4, 3, 3), 4).item() == pytest.approx(1 / 4)
        apart = 100 * torch.eye(4).reshape(1, 4, 2, 2)
        assert diversity(apart, 4).item() == pytest.approx(1)

    @pytest.mark.parametrize(("channels", "left"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
    def test_half_of_the_channels_are_left_out(self, channels, left):
        torch.manual_seed(0)
        keep = kept(50, channels, torch.device("cpu")).reshape(50, channels)
        assert keep.sum(1).tolist() == [left] * 50
        assert left == channels or len({tuple(row) for row in keep.tolist()}) > 1

    def test_the_sum(self):
        self.settings = {"discriminality": 1.5, "diversity": 20.0}
        method: Any = self.make("test_resnet", 64)
        result = step(method)
        with torch.no_grad():
            maps = method.widen(method.backbone(images(8, 64)).last)
            torch.testing.assert_close(result["alike"], 1 - diversity(maps, 3))
            torch.testing.assert_close(result["logits"], method(images(8, 64)))
            plain = cross_entropy(result["logits"], LABELS)
        total = plain + 1.5 * result["discriminality"] + 20 * result["alike"]
        torch.testing.assert_close(result["loss"].detach(), total)

    def test_many_classes(self):
        """Fewer channels a class; none left: a line that says what takes more."""
        for classes, channels in ((1365, 3), (1366, 2), (4096, 1)):
            method: Any = self.make("test_resnet", 32, task=Task(classes))
            assert method.channels == channels
        with pytest.raises(
            FieldmarkError, match="4096 classes at most, not 4097; pairwise_confusion"
        ) as caught:
            self.make("test_resnet", 32, task=Task(4097))
        assert "\n" not in str(caught.value)


#: Seven classes in three genera of two families, as ranks; genus 2 is all of its family.
GENUS, FAMILY = (0, 0, 1, 1, 1, 2, 2), (0, 0, 0, 0, 0, 1, 1)


class TestHXE(PlainForward):
    name = "hxe"

    @pytest.mark.parametrize("alpha", [0.0, 0.1, 1.5])
    @pytest.mark.parametrize("soft", [False, True])
    def test_is_the_sum_of_conditional_log_probabilities(self, alpha, soft):
        """The paper's equation, edge by edge, against what a step gives."""
        self.settings = {"alpha": alpha}
        task = Task(7, (("genus", GENUS), ("family", FAMILY)))
        method: Any = self.make("test_resnet", 64, task=task)
        logits = numbers(3, 7)
        q = (
            numbers(3, 7, seed=1).softmax(1)
            if soft
            else torch.nn.functional.one_hot(torch.tensor([0, 4, 6]), 7)
        )
        lambdas = [
            math.exp(-alpha * distance) for distance in (3, 2, 1)
        ]  # of a class, genus, family from the root
        total = 0.0
        for photo in range(3):
            p = logits[photo].softmax(0).tolist()
            for c in range(7):
                paths = [
                    [a for a in range(7) if a == c],
                    [a for a in range(7) if GENUS[a] == GENUS[c]],
                    [a for a in range(7) if FAMILY[a] == FAMILY[c]],
                    list(range(7)),
                ]
                masses = [sum(p[a] for a in path) for path in paths]
                for level in range(3):
                    edge = math.log(masses[level] / masses[level + 1])
                    total -= float(q[photo, c]) * 3 * lambdas[level] / sum(lambdas) * edge
        targets = q if soft else q.argmax(1)
        value = weights(3, alpha)[-1] * cross_entropy(logits, targets) + method.coarse(logits, targets)
        assert value.item() == pytest.approx(total / 3)
        if alpha == 0:
            torch.testing.assert_close(value, cross_entropy(logits, targets))

    @pytest.mark.parametrize("alpha", [0.0, 0.7])
    def test_labels_of_any_rank(self, alpha):
        """A photo of which only the genus or the family is known: the same sum of edges, from there up."""
        self.settings = {"alpha": alpha}
        task = Task(7, (("genus", GENUS), ("family", FAMILY)))
        method: Any = self.make("test_resnet", 64, task=task)
        x, labels = images(3, 64), torch.tensor([4, 7 + 1, 7 + 3])  # a species, genus 1, family 0
        losses = method.training_step(
            Batch(x, labels, coarse=True), build("cross_entropy", classes=7, embedding=5)
        )
        lambdas = [math.exp(-alpha * distance) for distance in (3, 2, 1)]
        lambdas = [3 * one / sum(lambdas) for one in lambdas]
        total = 0.0
        for photo, first in ((0, 0), (1, 1), (2, 2)):  # the finest level that is known
            p = method(x)[photo].softmax(0)
            masses = [p[4], p[2:5].sum(), p[:5].sum(), p.sum()]
            for level in range(first, 3):
                total = total - lambdas[level] * (masses[level] / masses[level + 1]).log()
        torch.testing.assert_close(losses["loss"], total / 3)

    def test_soft_labels_of_a_genus(self):
        tree = Tree(7, [GENUS, FAMILY])
        (soft,) = soft_labels(tree, torch.tensor([7 + 1]), 4.0)
        assert soft[2:5].unique().numel() == 1 and soft[2] > soft[0] > soft[6]
        torch.testing.assert_close(soft.sum(), torch.tensor(1.0))
        self.settings = {"form": "soft_labels"}
        method: Any = self.make("test_resnet", 64, task=Task(7, (("genus", GENUS), ("family", FAMILY))))
        criterion = build("cross_entropy+0.5*triplet", classes=7, embedding=5)
        losses = method.training_step(
            Batch(images(4, 64), torch.tensor([0, 8, 0, 1]), coarse=True), criterion
        )
        assert losses["loss"].isfinite() and losses["logits"].shape == (4, 7)

    def test_probabilities_of_the_nodes(self):
        tree = Tree(7, [GENUS, FAMILY])
        p = numbers(3, 7).softmax(1)
        family, genus, own = (one.exp() for one in log_nodes(tree, p.log()))
        torch.testing.assert_close(own, p)
        torch.testing.assert_close(
            genus, torch.stack([p[:, :2].sum(1), p[:, 2:5].sum(1), p[:, 5:].sum(1)], 1)
        )
        torch.testing.assert_close(family, torch.stack([p[:, :5].sum(1), p[:, 5:].sum(1)], 1))

    def test_hopeless_photos_still_have_a_gradient(self):
        method: Any = self.make("test_resnet", 64)
        logits = torch.tensor([[-1e4, 0.0, 0.0, 1e4]], requires_grad=True)
        value = method.coarse(logits, torch.tensor([0]))
        value.backward()
        assert value.isfinite() and logits.grad is not None and logits.grad.abs().max() > 0

    @pytest.mark.parametrize("beta", [4.0, 30.0])
    def test_soft_labels(self, beta):
        soft = soft_labels(Tree(7, [GENUS, FAMILY]), torch.tensor([0, 4]), beta)
        for row, label in zip(soft.tolist(), (0, 4), strict=True):
            height = [
                0 if c == label else 1 if GENUS[c] == GENUS[label] else 2 if FAMILY[c] == FAMILY[label] else 3
                for c in range(7)
            ]
            raw = [math.exp(-beta * h / 3) for h in height]
            assert row == pytest.approx([v / sum(raw) for v in raw])

    @pytest.mark.parametrize("mixed", [False, True])
    def test_a_step_with_soft_labels(self, mixed):
        """The loss of the logits has soft targets, that of the embedding the classes."""
        self.settings = {"form": "soft_labels", "beta": 5.0}
        method: Any = self.make("test_resnet", 64)
        one_hot = torch.nn.functional.one_hot(LABELS, CLASSES).float()
        targets = 0.7 * one_hot + 0.3 * one_hot.roll(1, 1) if mixed else LABELS
        result = step(method, "focal+0.5*triplet", targets)
        table = soft_labels(method.tree, torch.arange(CLASSES), 5.0)
        criterion = build("focal", classes=CLASSES, embedding=5)
        with torch.no_grad():
            z = method.describe(images(8, 64))
            of_logits = criterion(method.head(z), (targets if mixed else one_hot) @ table)["loss"]
            of_embedding = 0.0 if mixed else triplet(method.projection(z), LABELS)
        torch.testing.assert_close(result["soft_labels"], of_logits)
        torch.testing.assert_close(result["loss"].detach(), of_logits + 0.5 * of_embedding)

    def test_it_needs_a_tree(self):
        with pytest.raises(FieldmarkError, match="hxe needs a tree") as caught:
            self.make("test_resnet", 64, task=Task(4))
        assert "\n" not in str(caught.value)
        assert HXE.Options().form == "hxe"
