"""Networks taken apart: the chain that an image passes, cuts of it, and batch norms folded away and put back."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fieldmark.nn.chain import Cut, chain, fold, replace, unfold, watch

KINDS = ("test_byobnet", "test_efficientnet", "test_resnet", "test_coatnet", "test_convnext", "test_vit")
SIZE = 64


def network(name: str, **options: object) -> nn.Module:
    """Random weights, and batch norms with statistics of their own."""
    torch.manual_seed(0)
    return shaken(timm.create_model(name, num_classes=0, **options).eval())


def shaken(model: nn.Module) -> nn.Module:
    chance = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.track_running_stats:
                module.running_mean.normal_(0, 0.5, generator=chance)
                module.running_var.uniform_(0.5, 2, generator=chance)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=chance)
                module.bias.data.normal_(0, 0.3, generator=chance)
    return model.eval()


def images(count: int = 2, size: int = SIZE) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max())


class Plain(nn.Module):
    """Convolution (with a bias), norm, activation, a sum of two branches, a last convolution."""

    def __init__(self, **norm: object) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, **norm)
        self.act = nn.ReLU()
        self.two = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.three = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.one(x)))
        return self.three(x + self.two(x))


class Side(nn.Module):
    """The convolution's output goes past the norm, too: by a sum, or through a module."""

    def __init__(self, beside: nn.Module | None) -> None:
        super().__init__()
        self.one, self.norm, self.beside = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), beside

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.norm(x) + (x if self.beside is None else self.beside(x))


# -- watching


def test_watch_tells_order_and_tensors_and_leaves_no_hooks() -> None:
    model = Plain().eval()
    x = images()
    calls = watch(model, lambda: model(x))
    assert [call.name for call in calls] == ["one", "norm", "act", "two", "three"]
    assert calls[0].input is x and calls[1].input is calls[0].output and calls[3].input is calls[2].output
    assert all(call.begun < call.ended for call in calls)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_watch_leaves_no_hooks_where_the_network_fails() -> None:
    model = Plain()
    with pytest.raises(RuntimeError):
        watch(model, lambda: model(torch.zeros(1, 5, 8, 8)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_who_has_its_input_for_itself() -> None:
    model = Plain().eval()
    alone = {call.name: call.alone for call in watch(model, lambda: model(images()))}
    assert alone == {"one": False, "norm": True, "act": True, "two": False, "three": False}


def test_the_chain_has_the_outermost_modules_until_branches_meet() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), Plain().eval())
    assert [link.name for link in chain(model, images(), model)] == ["0", "1"]
    inner = model[1]
    assert [link.name for link in chain(inner, images(), inner)] == ["one", "norm", "act", "two"]


@pytest.mark.parametrize("name", KINDS)
def test_the_chain_ends_in_what_the_network_gives(name: str) -> None:
    model = network(name)
    x = images(size=model.pretrained_cfg["input_size"][-1])
    links = chain(model, x, model.forward_features)
    assert links and links[0].input is x
    for before, after in zip(links, links[1:], strict=False):
        assert after.input is before.output and after.begun > before.ended
    assert not any(a.name.startswith(f"{b.name}.") for a in links for b in links), "none lies in another"


def test_a_vision_transformer_has_no_chain_beyond_its_patches() -> None:
    model = network("test_vit")
    x = images(size=model.pretrained_cfg["input_size"][-1])
    assert [link.name for link in chain(model, x, model.forward_features)] == ["patch_embed"]


# -- cutting


@pytest.mark.parametrize("name", KINDS[:-1])
def test_two_parts_give_what_the_whole_gives(name: str) -> None:
    model = network(name)
    x = images(size=model.pretrained_cfg["input_size"][-1])
    whole = model(x)
    links = chain(model, x, model.forward_features)
    assert links
    for number in range(len(links)):
        cut = Cut(model, links[: number + 1])
        tensor = cut.lower(x)
        cut.open()
        assert torch.equal(model(tensor), whole), links[number].name
        cut.close()
        assert torch.equal(model(x), whole)
    assert model.get_submodule(links[-1].name) is links[-1].module


def test_replace_finds_inner_places() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU(), nn.ReLU()))
    replace(model, "0.1", nn.Tanh())
    assert isinstance(model[0][1], nn.Tanh) and isinstance(model[0][0], nn.ReLU)


# -- folding


@pytest.mark.parametrize("name", [*KINDS, "resnet18", "efficientnet_lite0"])
def test_folding_changes_nothing_and_unfolding_gives_the_parts_back(name: str) -> None:
    model = network(name)
    x = images(size=max(SIZE, model.pretrained_cfg["input_size"][-1] if "test" in name else SIZE))
    with torch.no_grad():
        whole = model(x)
        names = {key: value.shape for key, value in model.state_dict().items()}
        folds = fold(model, lambda: model(x))
        assert close(model(x), whole)
        unfold(model, folds)
        assert close(model(x), whole)
    assert {key: value.shape for key, value in model.state_dict().items()} == names


@pytest.mark.parametrize(("name", "most"), [("resnet18", 0), ("efficientnet_lite0", 0), ("test_byobnet", 0)])
def test_all_norms_behind_convolutions_are_folded(name: str, most: int) -> None:
    model = network(name)
    count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    folds = fold(model, lambda: model(images()))
    assert len(folds) == count > 0
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == most


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_byobnet"])
def test_what_was_learned_while_folded_stays_when_unfolded(name: str) -> None:
    model = network(name)
    x = images()
    folds = fold(model, lambda: model(x))
    before = model(x)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    before.square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        learned = model(x)
        assert not close(learned, before.detach())
        unfold(model, folds)
        assert close(model(x), learned)
        fresh = timm.create_model(name, num_classes=0).eval()
        fresh.load_state_dict(model.state_dict())  # a network of the same kind takes all of it
        assert close(fresh(x), learned)


def test_a_bias_of_the_convolution_is_taken_in_and_its_place_is_kept() -> None:
    model = shaken(Plain())
    x = images()
    with torch.no_grad():
        whole = model(x)
        names = list(model.state_dict())
        folds = fold(model, lambda: model(x))
        assert [one.convolution for one in folds] == ["one"] and isinstance(model.norm, nn.Identity)
        assert close(model(x), whole)
        model.one.bias += 1
        moved = model(x)
        unfold(model, folds)
        assert close(model(x), moved) and not close(moved, whole)
    assert list(model.state_dict()) == names, "the same tensors, so that another network takes them"


def test_the_folded_weights_by_the_formula() -> None:
    model = shaken(Plain())
    old = copy.deepcopy(model)
    fold(model, lambda: model(images()))
    g = old.norm.weight / (old.norm.running_var + old.norm.eps).sqrt()
    expected = old.one.weight * g[:, None, None, None]
    torch.testing.assert_close(model.one.weight, expected)
    torch.testing.assert_close(model.one.bias, old.norm.bias + (old.one.bias - old.norm.running_mean) * g)
    assert model.one.weight.requires_grad and model.one.weight.is_leaf


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}])
def test_norms_that_cannot_be_put_back_are_left_alone(options: dict[str, bool]) -> None:
    model = shaken(Plain(**options))
    with torch.no_grad():
        whole = model(images())
        folds = fold(model, lambda: model(images()))
        assert folds == [] and torch.equal(model(images()), whole)


@pytest.mark.parametrize("beside", [nn.Conv2d(4, 4, 1), nn.ReLU(), None])
def test_a_convolution_whose_output_goes_elsewhere_too_is_left_alone(beside: nn.Module | None) -> None:
    model = shaken(Side(beside))
    with torch.no_grad():
        whole = model(images())
        assert fold(model, lambda: model(images())) == []
        assert torch.equal(model(images()), whole)


def test_parts_that_are_called_twice_are_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.a, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.one(self.a(self.one(x))))

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.two(F.relu(self.norm(self.one(x)))))

    for model in (shaken(Twice()), shaken(Shared())):
        with torch.no_grad():
            whole = model(images())
            assert fold(model, lambda model=model: model(images())) == []
            assert torch.equal(model(images()), whole)


def test_the_activation_of_timms_norms_stays() -> None:
    model = network("test_efficientnet")
    name = next(n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and hasattr(m, "act"))
    act = model.get_submodule(name).act
    fold(model, lambda: model(images()))
    assert model.get_submodule(name) is act
