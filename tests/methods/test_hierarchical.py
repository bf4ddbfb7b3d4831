"""Methods that know coarser ranks: by the common tests, and each one's own parts."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from method_tests import CLASSES, TrainedTests, images
from torch.nn import functional as F

from fieldmark.losses import DEFAULT_LOSS
from fieldmark.losses.combine import build
from fieldmark.methods.task import Batch, Task
from fieldmark.runtime.errors import UsageError

#: Five species; the family of genus 2 and the genus of the last species are not known.
PARTLY = Task(5, (("genus", (0, 0, 1, 2, -1)), ("family", (0, 0, 1, -1, 1))))
CRITERION = build(DEFAULT_LOSS, classes=5, embedding=5)


class TestFGN(TrainedTests):
    name = "fgn"
    settings: ClassVar[dict[str, Any]] = {"width": 48}

    def test_its_loss_by_hand(self):
        method: Any = self.make("test_resnet", 64, task=PARTLY)
        x, labels = images(4, 64), torch.tensor([1, 2, 3, 4])
        losses = method.training_step(Batch(x, labels), CRITERION)
        embedding = method.backbone(x).embedding
        family, genus, species = (layer(embedding) for layer in method.split)
        assert species.shape == (4, 16)
        whole = torch.cat([family, genus, species], 1)
        # Families of the labels: 0, 1, unknown, 1; genera: 0, 1, 2, unknown.
        by_family = F.cross_entropy(method.heads[0](whole)[[0, 1, 3]], torch.tensor([0, 1, 1])) * 3 / 4
        by_genus = F.cross_entropy(method.heads[1](whole[:3, 16:]), torch.tensor([0, 1, 2])) * 3 / 4
        by_species = F.cross_entropy(method.head(species), labels)
        torch.testing.assert_close(losses["loss"], by_species + by_family + by_genus)
        torch.testing.assert_close(losses["loss_of_family"], by_family.detach())
        torch.testing.assert_close(losses["logits"], method(x))

    def test_a_slice_is_never_one_number(self):
        """Normalised, it would be the same for all photos."""
        self.settings = {"width": 2}  # type: ignore[misc]
        method: Any = self.make("test_resnet", 64, task=PARTLY, fresh=True)
        with torch.inference_mode():
            (finest,) = method.parts(method.backbone(images(2, 64)))
        assert finest.shape == (2, 2)

    def test_coarse_ranks_cannot_change_fine_slices(self):
        method: Any = self.make("test_resnet", 64, task=PARTLY)
        slices = [
            one.detach().requires_grad_() for one in method.slices(torch.rand(3, method.backbone.embedding))
        ]
        family, genus = method.rank_logits(slices)
        family.square().sum().backward(retain_graph=True)
        assert [one.grad is not None for one in slices] == [True, False, False]
        genus.square().sum().backward()
        assert [one.grad is not None for one in slices] == [True, True, False]
        with torch.inference_mode():  # and yet they read them
            slices[2] += 1
            assert not torch.allclose(method.rank_logits(slices)[0], family)

    def test_labels_of_any_rank(self):
        """A genus teaches the heads of genus and family, a family that of the family; the last slice learns of none."""
        method: Any = self.make("test_resnet", 64, task=PARTLY)
        x, labels = images(3, 64), torch.tensor([1, 6, 10])  # a species, genus 1, family 1
        losses = method.training_step(Batch(x, labels, coarse=True), CRITERION)
        family, genus, species = (layer(method.backbone(x).embedding) for layer in method.split)
        whole = torch.cat([family, genus, species], 1)
        expected = (
            F.cross_entropy(method.heads[0](whole), torch.tensor([0, 1, 1])) * 3
            + F.cross_entropy(method.heads[1](whole[:2, 16:]), torch.tensor([0, 1])) * 2
            + F.cross_entropy(method.head(species[:1]), labels[:1])
        )
        torch.testing.assert_close(losses["loss"], expected / 3)
        slope = torch.autograd.grad(
            method.training_step(Batch(x[1:], labels[1:], coarse=True), CRITERION)["loss"],
            [method.split[2][0].weight, method.split[0][0].weight],
        )
        assert slope[0].abs().max() == 0 and slope[1].abs().max() > 0

    def test_photos_mixed(self):
        method = self.make("test_resnet", 64, task=PARTLY)
        losses = method.training_step(Batch(images(2, 64), torch.full((2, 5), 0.2)), CRITERION)
        assert losses["loss"].isfinite()

    def test_no_tree(self):
        with pytest.raises(UsageError, match="fgn needs a tree"):
            self.make("test_resnet", 64, task=Task(4))


class TestHRN(TrainedTests):
    name = "hrn"
    settings: ClassVar[dict[str, Any]] = {"width": 32}

    def partly(self) -> Any:
        return self.make("test_resnet", 64, task=PARTLY)

    def test_ranks_hand_down_what_they_saw(self):
        method = self.partly()
        with torch.inference_mode():
            last = method.backbone(images(2, 64)).last
            seen = [block.out(block.local(last).relu().flatten(2).max(2).values) for block in method.blocks]
            for level, rank in enumerate(method.ranks(last)):
                torch.testing.assert_close(rank, torch.stack(seen[: level + 1]).sum(0).relu())
                torch.testing.assert_close(rank, method.ranks(last)[level])

    def test_its_loss_by_hand(self):
        """A sigmoid for every node, each legal state's probability their product, over that of all legal states."""
        method, labels = self.partly(), torch.tensor([0, 2, 4])
        x = images(3, 64)
        losses = method.training_step(Batch(x, labels), CRITERION)
        ranks, tree = method.ranks(method.backbone(x).last), method.tree
        sigmoids = [layer(rank).sigmoid() for layer, rank in zip(method.nodes, ranks, strict=True)]
        states = [
            [int(node) for node in row[: level + 1]]
            for level in range(3)
            for row in torch.unique(tree.ancestors[:, : level + 1], dim=0)
        ]
        assert len(states) == sum(tree.sizes)
        states.append([])  # nothing is switched on
        nll = []
        for photo in range(3):
            chances = {}
            for state in states:
                p = torch.ones(())
                for level, values in enumerate(sigmoids):
                    for node in range(tree.sizes[level]):
                        on = level < len(state) and state[level] == node
                        p = p * (values[photo, node] if on else 1 - values[photo, node])
                chances[tuple(state)] = p
            way = tuple(tree.ancestors[labels[photo]].tolist())
            nll.append(-(chances[way] / torch.stack([*chances.values()]).sum()).log())
        tree_loss = torch.stack(nll).mean()
        torch.testing.assert_close(losses["tree"], tree_loss.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            losses["loss"], tree_loss + F.cross_entropy(method(x), labels), rtol=1e-4, atol=1e-4
        )

    def test_labels_of_any_rank(self):
        method, x = self.partly(), images(4, 64)
        labels = torch.tensor([0, 6, 8, 4])  # a species, genus 1, the genus that stands in, a species
        assert method.tree.sizes == [3, 4, 5]
        losses = method.training_step(Batch(x, labels, coarse=True), CRITERION)
        log_p = method.log_marginals(method.ranks(method.backbone(x).last))
        of_tree = -(log_p[2][0, 0] + log_p[1][1, 1] + log_p[1][2, 3] + log_p[2][3, 4]) / 4
        of_classes = F.cross_entropy(method(x)[[0, 3]], labels[[0, 3]]) * 2 / 4
        torch.testing.assert_close(losses["loss"], of_tree + of_classes)
        torch.testing.assert_close(losses["logits"], method(x))

    @pytest.mark.parametrize("loss", [DEFAULT_LOSS, "cross_entropy+0.1*center"])
    def test_parts_of_a_batch_add_up(self, loss):
        """Gradients of two halves, one of which knows no class, are those of the whole."""
        method, x = self.partly(), images(4, 64)
        criterion = build(loss, classes=5, embedding=5).eval()
        labels, weights = (
            torch.tensor([3, 4, 6, 9]),
            [p for n, p in method.named_parameters() if "nodes" in n],
        )
        weights += [method.head.weight]

        def slopes(part: slice) -> list[torch.Tensor]:
            step = method.training_step(Batch(x[part], labels[part], coarse=True), criterion)
            return list(torch.autograd.grad(step["loss"], weights))

        whole, halves = slopes(slice(None)), [slopes(slice(0, 2)), slopes(slice(2, 4))]
        for all_, one, two in zip(whole, *halves, strict=True):
            torch.testing.assert_close(all_, (one + two) / 2, rtol=1e-4, atol=1e-6)
        assert halves[1][-1].abs().max() == 0, "the head is the classes'"

    def test_photos_mixed_with_coarser_ones(self):
        """Half a species, half a genus: half of each one's likelihood; the classes' loss sees pure classes only."""
        method, x = self.partly(), images(2, 64)
        shares = torch.zeros(2, 7)
        shares[0, [1, 6]], shares[1, [2, 3]] = 0.5, 0.5
        losses = method.training_step(Batch(x, shares, coarse=True), CRITERION)
        log_p = method.log_marginals(method.ranks(method.backbone(x).last))
        of_tree = -(log_p[2][0, 1] + log_p[1][0, 1] + log_p[2][1, 2] + log_p[2][1, 3]) / 4
        of_classes = F.cross_entropy(method(x)[1:], shares[1:, :5]) / 2
        torch.testing.assert_close(losses["loss"], of_tree + of_classes)

    def test_coarse_labels_alone_teach(self):
        """Trained on genera only, it tells genera, and does not say which species."""
        method: Any = self.make("test_resnet", 64, fresh=True)
        labels = torch.arange(8) % CLASSES
        x = images(CLASSES, 64, seed=3)[labels] + 0.3 * images(8, 64)
        genera = method.tree.ancestors[labels, 0]
        optimizer = torch.optim.AdamW(
            [p for n, p in method.named_parameters() if not n.startswith("backbone")], 1e-2, weight_decay=0.0
        )
        criterion, losses = build(DEFAULT_LOSS, classes=CLASSES, embedding=5), []
        with torch.no_grad():
            last = method.backbone(x).last
        head = method.head.weight.detach().clone()
        method.backbone = _Given(last)  # type: ignore[assignment]
        for _ in range(60):
            step = method.training_step(Batch(x, CLASSES + genera, coarse=True), criterion)
            optimizer.zero_grad()
            step["loss"].backward()
            optimizer.step()
            losses.append(float(step["loss"].detach()))
        assert losses[-1] < 0.3 * losses[0]
        with torch.inference_mode():
            genus = method.log_marginals(method.ranks(last))[0]
        assert torch.equal(genus.argmax(1), genera)
        assert torch.equal(method.head.weight.detach(), head)

    def test_no_tree(self):
        with pytest.raises(UsageError, match="hrn needs a tree"):
            self.make("test_resnet", 64, task=Task(4))


class _Given(torch.nn.Module):
    """A backbone that always saw the same photos."""

    def __init__(self, last: torch.Tensor):
        super().__init__()
        self.last = last

    def forward(self, _: torch.Tensor) -> _Given:
        return self
