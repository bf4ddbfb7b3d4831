"""What every method must do, whatever its idea. A method's tests inherit this and add what is its own.

class TestMine(TrainedTests):
    name = "mine"

`FrozenTests` are for methods of which instant mode only fits the head (`Card.instant`), `TrainedTests` for all others.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from fieldmark import methods
from fieldmark.losses import DEFAULT_LOSS
from fieldmark.losses.combine import build
from fieldmark.methods.base import MOST_ENTRIES, Method
from fieldmark.methods.task import Batch, Task
from fieldmark.nn.backbone import Backbone
from fieldmark.nn.graph import export
from fieldmark.nn.weights import Source
from fieldmark.runtime.engine import ENGINES, compile_graph
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train.network import Network

#: Backbones of each kind, with a side in pixels that is not round, and one that is.
BACKBONES = {"test_efficientnet": (75, 64), "test_resnet": (51, 64), "test_vit": (80, 64)}
CLASSES = 4


def backbone_of(name: str, size: int) -> Backbone:
    return Backbone(Source(name, None, "random", {}), size)


shared = cache(backbone_of)


def images(batch: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


#: Two genera of two species each.
TASK = Task(CLASSES, (("genus", (0, 0, 1, 1)),))


class CommonTests:
    """name: the method's; change: the largest difference between engines, relative to the largest answer;
    backbones: that it takes, settings: that it is tested with; near: how far a photo's answer may lie from the one
    it gets among others, relative and absolute; steps: in which it learns 16 photos by heart; descends: does a small
    step against the gradient lower the loss? (Not where the gradient is an estimate.) frozen: backbones that stay as
    they are, by design."""

    name: str
    change = 1e-3
    backbones: ClassVar[tuple[str, ...]] = tuple(BACKBONES)
    settings: ClassVar[dict[str, Any]] = {}
    near = (1e-3, 1e-4)
    steps = 60
    descends = True
    frozen: ClassVar[tuple[str, ...]] = ()

    def make(
        self,
        backbone: str,
        size: int,
        scales: tuple[int, ...] = (),
        *,
        fresh: bool = False,
        task: Task = TASK,
        **head: Any,
    ) -> Method:
        """fresh: with a backbone of its own."""
        torch.manual_seed(0)
        made = (backbone_of if fresh else shared)(backbone, size)
        method = methods.get(self.name)(made, scales, task, self.settings)
        method.add_head(task.classes, 5, **head)
        return method.eval()

    @pytest.fixture(params=BACKBONES)
    def backbone(self, request):
        if request.param not in self.backbones:
            pytest.skip(f"{self.name} does not take {request.param}")
        return request.param

    def test_logits_and_embedding(self, backbone):
        for size in BACKBONES[backbone]:
            method = self.make(backbone, size)
            with torch.inference_mode():
                x = images(3, size)
                logits, features = method(x), method.features(x)
                torch.testing.assert_close(logits, method.head(features["descriptor"]))
            assert logits.shape == (3, CLASSES) and logits.isfinite().all()
            assert features["descriptor"].shape == (3, sum(method.widths))
            assert features["embedding"].shape == (3, 5)
            torch.testing.assert_close(features["embedding"].norm(dim=1), torch.ones(3))

    def test_a_photo_alone_or_among_others(self, backbone):
        size = BACKBONES[backbone][0]
        method, x = self.make(backbone, size), images(4, size)
        rtol, atol = self.near
        with torch.inference_mode():
            whole = method(x)
            for row in range(4):
                torch.testing.assert_close(method(x[row : row + 1])[0], whole[row], rtol=rtol, atol=atol)
            torch.testing.assert_close(method(x.flip(0)), whole.flip(0), rtol=rtol, atol=atol)
            assert (whole[0] - whole[1]).abs().max() > 1e-4, "photos are told apart"

    def test_the_same_each_time(self, backbone):
        size = BACKBONES[backbone][0]
        one, two = (self.make(backbone, size, fresh=True) for _ in range(2))
        with torch.inference_mode():
            assert torch.equal(one(images(2, size)), two(images(2, size)))

    def test_blank_photos(self, backbone):
        method = self.make(backbone, 64)
        x = torch.tensor([0.0, 1.0, -2.0])[:, None, None, None].expand(3, 3, 64, 64).clone().requires_grad_()
        logits = method(x)
        assert logits.isfinite().all()
        logits.sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()

    def test_engines_say_the_same(self, backbone, tmp_path: Path):
        self.exports(self.make(backbone, 64), tmp_path)

    def exports(self, method: Method, tmp_path: Path) -> None:
        """All engines say what PyTorch says."""
        count = 5 if method.selects else 2
        made = export(method, images(count, 64), tmp_path / "graph.onnx", "logits", method.selects)
        assert made.error < self.change
        x = images(5, 64, seed=1)
        with torch.inference_mode():
            expected = method(x).numpy()
        for engine in ENGINES:
            (logits,) = compile_graph(tmp_path / "graph.onnx", outputs=["logits"], engine=engine).run(
                x.numpy(), ["logits"]
            )
            errors = np.abs(logits - expected).max(1) / np.abs(expected).max()
            assert (np.median(errors) if method.selects else errors.max()) < self.change, engine

    def test_a_class_that_came_later(self):
        """`fieldmark add-class` gives the head a row more, `remove-class` one fewer; all else stays as it is."""
        for classes in (CLASSES + 1, CLASSES - 1):
            method = self.make(self.backbones[0], 64)
            method.add_head(classes, 5)
            assert method(images(2, 64)).shape == (2, classes)
            assert method.attention(images(2, 64)).isfinite().all()

    def test_where_it_looks(self, backbone):
        method = self.make(backbone, 64)
        seen = method.attention(images(3, 64))
        assert seen.shape[0] == 3 and seen.ndim == 3 and seen.isfinite().all() and seen.min() >= 0
        assert not seen.requires_grad

    # -- learning

    def network(self, backbone: str, classes: int = CLASSES) -> Network:
        method = self.make(backbone, 64, fresh=True, task=TASK if classes == CLASSES else _task(classes))
        torch.manual_seed(0)
        criterion = build(DEFAULT_LOSS, classes=classes, embedding=5)
        network = Network(method, criterion, pixels="pixels" in methods.card(self.name).needs)
        network.module.train()
        network.freeze_statistics()
        return network

    def batch(self, photos: int, classes: int = CLASSES) -> tuple[torch.Tensor, torch.Tensor]:
        """Photos of all classes in turn, in as many views as the method wants, and their labels."""
        views = methods.get(self.name).views
        kinds = images(classes, 64, seed=3)
        labels = torch.arange(photos) // 2 % classes
        x = torch.cat([kinds[labels] + 0.5 * images(photos, 64, seed=view) for view in range(views)])
        return x, labels

    def total(self, network: Network, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The loss over all turns, by the same chance each time."""
        losses = []
        for turn in range(network.method.turns):
            torch.manual_seed(7)
            losses.append(network.module(x, y, turn=turn, progress=0.5)["loss"])
        return torch.stack(losses).sum()

    @pytest.mark.parametrize("classes", [2, 7])
    def test_any_number_of_classes(self, backbone, classes):
        network = self.network(backbone, classes)
        x, y = self.batch(6, classes)
        assert self.total(network, x, y).isfinite()
        network.method.eval()
        with torch.inference_mode():
            assert network.method(x[:1]).shape == (1, classes)

    def test_every_weight_of_its_own_learns(self, backbone):
        """In some phase a gradient reaches it, and the backbone too."""
        network = self.network(backbone)
        x, y = self.batch(8)
        known = {n: p for n, p in network.method.named_parameters() if p.requires_grad}
        reached: set[str] = set()
        for phase in range(len(network.method.phases)):
            network.method.begin(phase)
            self.total(network, x, y).backward()
            reached |= {n for n, p in known.items() if p.grad is not None and p.grad.abs().max() > 0}
        assert {n for n in known if not n.startswith("backbone.")} <= reached
        assert any(n.startswith("backbone.") for n in reached) == (backbone not in self.frozen)

    def test_a_photo_alone_teaches(self):
        """A batch may hold one photo: --batch 1, or what is left of one that did not fit into memory."""
        network = self.network(self.backbones[0])
        x, y = self.batch(1)
        for phase in range(len(network.method.phases)):
            network.method.begin(phase)
            loss = self.total(network, x, y)
            loss.backward()
            grads = [p.grad for p in network.method.parameters() if p.grad is not None]
            assert grads and all(value.isfinite().all() for value in (loss, *grads))

    def test_a_step_lowers_the_loss(self, backbone):
        if not self.descends:
            pytest.skip("its gradient is an estimate")
        network = self.network(backbone)
        x, y = self.batch(8)
        before = self.total(network, x, y)
        before.backward()
        network.method.begin(0)
        with torch.no_grad():
            moved = [p for p in network.method.parameters() if p.grad is not None and p.requires_grad]
            size = sum(float(p.grad.square().sum()) for p in moved)
            for p in moved:
                p -= p.grad * min(1e-3, 1e-2 * float(before.detach()) / size)
            assert self.total(network, x, y) < before

    def test_it_learns_16_photos_by_heart(self):
        network = self.network(self.backbones[0])
        x, y = self.batch(16)
        method = network.method
        method.prepare(0, lambda: iter([(x[:16], y)]))
        network.module.train()
        network.freeze_statistics()
        optimizer = torch.optim.AdamW(network.module.parameters(), 3e-3, weight_decay=0.0)
        for step in range(self.steps):
            for turn in range(method.turns):
                torch.manual_seed(step)
                network.module(x, y, turn=turn, progress=step / self.steps)["loss"].backward()
                optimizer.step()
                method.stepped()
                optimizer.zero_grad()
        method.eval()
        with torch.inference_mode():
            right = (method(x[:16]).argmax(1) == y).sum()
        assert right >= 15

    def test_saved_and_read(self, backbone):
        one = self.make(backbone, 64)
        with torch.no_grad():
            for p in one.parameters():
                p += 0.01
        two = self.make(backbone, 64, fresh=True)
        two.load_state_dict(one.state_dict())
        x = images(2, 64)
        with torch.inference_mode():
            torch.testing.assert_close(two(x), one(x))
        one.load_state_dict(self.make(backbone, 64, fresh=True).state_dict())  # others share its backbone


class FrozenTests(CommonTests):
    """A method of which instant mode fits the head alone, at one or several scales."""

    @pytest.mark.parametrize(
        "backbone, scales, head", [("test_efficientnet", (64, 48), {}), ("test_resnet", (), {"rank": 3})]
    )
    def test_engines_say_the_same_of_heads(self, backbone, scales, head, tmp_path: Path):
        self.exports(self.make(backbone, 64, scales, **head), tmp_path)

    @pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet"])
    def test_several_scales(self, backbone):
        """Each scale's parts, largest first, are those of a method that looks at this scale alone."""
        method = self.make(backbone, 64, (48, 64, 33))
        assert method.scales == [64, 48, 33] and len(method.widths) % 3 == 0
        x, start, parts = images(2, 64), 0, len(method.widths) // 3
        with torch.inference_mode():
            descriptor = method.describe(x)
            for number, scale in enumerate(method.scales):
                width = sum(method.widths[number * parts : (number + 1) * parts])
                alone = self.make(backbone, 64, (scale,))
                torch.testing.assert_close(
                    descriptor[:, start : start + width], alone.describe(x), rtol=1e-3, atol=1e-4
                )
                start += width
        assert start == descriptor.shape[1]

    @pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet"])
    def test_the_map_of_several_scales_is_the_sum_of_theirs(self, backbone):
        method = self.make(backbone, 64, (48, 64, 33))
        x, weight = images(8, 64), method.head.weight.data
        method.head.bias.data[0] += 100  # one class is answered, whichever columns speak
        seen, last, columns = method.attention(x), method.backbone(x).maps[-1], weight.clone()
        assert seen.shape == (8, *last.shape[2:]) and seen.isfinite().all() and seen.min() >= 0
        parts, maps, start = len(method.widths) // 3, [], 0
        for number in range(3):
            width = sum(method.widths[number * parts : (number + 1) * parts])
            weight.zero_()[:, start : start + width] = columns[:, start : start + width]
            maps.append(method.attention(x))
            start += width
        assert all(one.max() > 0 for one in maps)
        torch.testing.assert_close(seen, sum(maps), rtol=1e-3, atol=1e-6)

    def test_scales_that_cannot_be(self):
        for scales in ((65,), (0,), (64, -3)):
            with pytest.raises(FieldmarkError, match="scales") as caught:
                self.make("test_resnet", 64, scales)
            assert "\n" not in str(caught.value)
        with pytest.raises(FieldmarkError, match="test_vit3 cannot look at 48 px") as caught:
            self.make("test_vit3", 64, (64, 48))  # its size is fixed
        assert "\n" not in str(caught.value)
        assert self.make("test_resnet", 64, (48, 48)).scales == [48], "twice is once"

    def test_parts_have_unit_length_and_fit_the_cache(self, backbone):
        method = self.make(backbone, 64)
        with torch.inference_mode():
            parts = method.parts(method.backbone(images(2, 64)))
        assert [part.shape[1] for part in parts] == method.widths
        for part in parts:
            torch.testing.assert_close(part.norm(dim=1), torch.ones(2), rtol=1e-3, atol=1e-3)
        assert sum(method.widths) <= MOST_ENTRIES

    def test_every_weight_has_a_part(self, backbone):
        """A gradient reaches all of the backbone (what it has after pooling aside) and the head."""
        method = self.make(backbone, 64, fresh=True)
        method(images(2, 64)).square().sum().backward()
        lost = [n for n, p in method.named_parameters() if p.grad is None and not n.startswith("projection")]
        assert lost == []


class TrainedTests(CommonTests):
    """A method with layers of its own."""

    def test_its_card_says_what_it_needs(self):
        card = methods.card(self.name)
        assert not card.instant and set(card.needs) <= set(methods.NEEDS) and card.when
        assert sum(methods.get(self.name).phases) == pytest.approx(1)

    def test_losses_of_the_embedding_count_once(self):
        """However many logits a step judges: else centres would move, and triplets weigh, several times as much."""
        method = self.network(self.backbones[0]).method
        criterion, calls = build("cross_entropy+center", classes=CLASSES, embedding=5), []
        criterion.parts["center"].register_forward_hook(lambda *_: calls.append(turn))
        x, y = self.batch(4)
        for turn in range(method.turns):
            method.training_step(Batch(x, y, method.views, turn, 0.5), criterion)
        assert 0 in calls and len(set(calls)) == len(calls)

    def test_behind_a_cut(self, backbone):
        """It learns the same from maps as from photos, where it can; else the lower part can be left as it is."""
        network = self.network(backbone)
        x, y = self.batch(4)
        whole = self.total(network, x, y)
        names = network.usable()
        if not names and not network.links:
            return
        if not names:
            network.freeze(network.links[-1].name)
            assert float(self.total(network, x, y).detach()) == pytest.approx(float(whole.detach()), rel=1e-4)
            network.close()
            return
        lower = network.open(names[0])
        with torch.no_grad():
            maps = lower(x)
        assert float(self.total(network, maps, y).detach()) == pytest.approx(float(whole.detach()), rel=1e-3)
        network.close()

    def test_twice_looked_at(self, backbone, tmp_path: Path):
        """With test-time augmentation the graph still says what the method says."""
        method = self.make(backbone, 64)
        method.tta = True
        self.exports(method, tmp_path)


def _task(classes: int) -> Task:
    return Task(classes, (("genus", tuple(number // 2 for number in range(classes))),))
