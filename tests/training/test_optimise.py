import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from kirie.models.unet import UNet
from kirie.training.optimise import moving_average, optimiser, schedule, set_rate


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def theirs(make, steps):
    rule = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, factors = make(rule), []
    for _ in range(steps):
        factors.append(rule.param_groups[0]["lr"])
        rule.step()
        scheduler.step()
    return factors


def ours(name, steps, warmup=0.0):
    factor = schedule(name, steps=steps, warmup=warmup)
    return [factor(step) for step in range(steps)]


def test_cosine_is_that_of_torch():
    expected = theirs(lambda rule: lr_scheduler.CosineAnnealingLR(rule, T_max=40), 40)
    assert ours("cosine", 40) == pytest.approx(expected, abs=1e-12)


def test_poly_is_that_of_torch():
    expected = theirs(lambda rule: lr_scheduler.PolynomialLR(rule, total_iters=40, power=0.9), 40)
    assert ours("poly", 40) == pytest.approx(expected, abs=1e-12)


def test_the_warm_up_is_torchs_linear_one_and_then_the_schedule_begins():
    expected = theirs(lambda rule: lr_scheduler.LinearLR(rule, start_factor=1 / 11, total_iters=10), 10)
    for name in ("cosine", "poly", "constant"):
        factors = ours(name, 50, warmup=0.2)
        assert factors[:10] == pytest.approx(expected, abs=1e-12)
        assert factors[10:] == pytest.approx(ours(name, 40), abs=1e-12)


@pytest.mark.parametrize(("name", "end"), [("cosine", 0.0), ("poly", 0.0), ("constant", 1.0)])
def test_where_a_schedule_ends(name, end):
    factors = ours(name, 1000, warmup=0.05)
    assert max(factors) <= 1
    assert factors[-1] == pytest.approx(end, abs=3e-3)
    after = factors[50:]
    assert after == sorted(after, reverse=True)
    assert schedule(name, steps=1000, warmup=0.05)(1000) == pytest.approx(end)


@pytest.mark.parametrize("name", ["cosine", "poly", "constant"])
def test_a_training_of_one_step_learns(name):
    assert schedule(name, steps=1, warmup=0.5)(0) > 0


def test_norms_and_biases_are_not_decayed():
    model = network()
    rule = optimiser(model, "adamw", learning_rate=0.1, weight_decay=0.3, momentum=0.9)
    assert isinstance(rule, torch.optim.AdamW)
    decayed = {id(p) for group in rule.param_groups if group["weight_decay"] == 0.3 for p in group["params"]}
    others = {id(p) for group in rule.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    assert decayed == {id(model[0].weight), id(model[3].weight)}
    assert others == {id(model[0].bias), id(model[1].weight), id(model[1].bias), id(model[3].bias)}


def test_decay_shrinks_weights_alone():
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rule = optimiser(model, "sgd", learning_rate=0.1, weight_decay=0.5, momentum=0.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    rule.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (1 - 0.1 * 0.5) if p.ndim > 1 else before[name])


def test_frozen_weights_stay_out():
    model = network()
    model[0].requires_grad_(False)
    rule = optimiser(model, "sgd", learning_rate=0.1, weight_decay=0.1, momentum=0.9)
    assert {id(p) for group in rule.param_groups for p in group["params"]} == {
        id(p) for module in (model[1], model[3]) for p in module.parameters()
    }


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs_with_nesterov_momentum(momentum):
    one, other = network(), network()
    rules = [
        optimiser(one, "sgd", learning_rate=0.1, weight_decay=0.0, momentum=momentum),
        torch.optim.SGD(other.parameters(), lr=0.1, momentum=momentum, nesterov=momentum > 0),
    ]
    images = torch.rand(2, 3, 8, 8)
    for _ in range(3):
        for model, rule in zip((one, other), rules, strict=True):
            rule.zero_grad()
            model(images).square().mean().backward()
            rule.step()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_the_moving_average_follows_by_hand():
    model = nn.Linear(1, 1, bias=False)
    average, expected = moving_average(model, 0.9), 0.0
    for step, value in enumerate([5.0, 1.0, 3.0, -2.0, 8.0, 4.0]):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update_parameters(model)
        kept = 0.0 if step == 0 else min(0.9, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-6)


def test_in_the_long_run_the_moving_average_keeps_its_share():
    model = nn.Linear(1, 1, bias=False)
    average = moving_average(model, 0.9)
    average.n_averaged.fill_(10**6)
    with torch.no_grad():
        average.module.weight.fill_(1.0)
        model.weight.fill_(2.0)
    average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(1.1)


def test_the_moving_average_takes_batch_norms_statistics_along():
    model = network()
    average = moving_average(model, 0.5)
    for _ in range(20):
        model(torch.rand(4, 3, 8, 8))
        average.update_parameters(model)
    torch.testing.assert_close(average.module[1].running_mean, model[1].running_mean, rtol=0.1, atol=0.02)
    assert average.module[1].num_batches_tracked == 20
    assert average.module[1].running_mean is not model[1].running_mean


# ---- layer-wise learning rates


class Levelled(nn.Module):
    """Three levels, of which the last has besides its own module a parameter that is in none."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 1, bias=False)
        self.loose = nn.Parameter(torch.ones(3))

    def levels(self):
        return [[self.first], [self.second], [self.head]]

    def forward(self, x):
        return self.head(self.second(self.first(x)) * self.loose)


def levelled(decay, **options):
    model = Levelled()
    options = {"learning_rate": 0.4, "weight_decay": 0.1, "momentum": 0.0, **options}
    return model, optimiser(model, "sgd", layer_decay=decay, levels=model.levels(), **options)


def test_each_level_learns_at_its_share_of_the_level_above():
    model, rule = levelled(0.5)
    rates = {id(p): group["lr"] for group in rule.param_groups for p in group["params"]}
    expected = {"first": 0.1, "second": 0.2, "head": 0.4, "loose": 0.4}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(expected[name.split(".")[0]], rel=1e-12), name
    assert len(rates) == len(list(model.parameters()))
    decayed = {id(p) for group in rule.param_groups if group["weight_decay"] == 0.1 for p in group["params"]}
    assert decayed == {id(m.weight) for m in (model.first, model.second, model.head)}


def test_the_schedule_scales_all_levels():
    model, rule = levelled(0.5)
    factor = schedule("constant", steps=10, warmup=0.3)  # 1/4, 2/4, 3/4, 1
    for step, share in enumerate((0.25, 0.5, 0.75, 1.0)):
        set_rate(rule, 0.4 * factor(step))
        rates = sorted({round(group["lr"], 12) for group in rule.param_groups})
        assert rates == pytest.approx([0.1 * share, 0.2 * share, 0.4 * share])
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    set_rate(rule, 0.08)
    for group in rule.param_groups:
        group["weight_decay"] = 0.0
    rule.step()
    moved = {n: (b - p.detach()).mean().item() for (n, p), b in zip(model.named_parameters(), before, strict=True)}
    expected = {"first": 0.02, "second": 0.04, "head": 0.08, "loose": 0.08}
    assert moved == pytest.approx({name: expected[name.split(".")[0]] for name in moved}, rel=1e-4)


def test_without_decay_the_groups_are_those_of_one_level():
    model, rule = levelled(1.0)
    plain = optimiser(model, "sgd", learning_rate=0.4, weight_decay=0.1, momentum=0.0)
    assert [[id(p) for p in g["params"]] for g in rule.param_groups] == [
        [id(p) for p in g["params"]] for g in plain.param_groups
    ]
    assert [g["lr"] for g in rule.param_groups] == [0.4, 0.4]


def test_a_frozen_level_still_counts():
    model = Levelled()
    model.second.requires_grad_(False)
    options = {"learning_rate": 1.0, "weight_decay": 0.0, "momentum": 0.0}
    rule = optimiser(model, "adamw", layer_decay=0.1, levels=model.levels(), **options)
    rates = {id(p): group["lr"] for group in rule.param_groups for p in group["params"]}
    assert id(model.second.weight) not in rates
    assert rates[id(model.first.weight)] == pytest.approx(0.01)


def test_a_parameter_of_several_levels_counts_to_the_last():
    model = Levelled()
    levels = [[model], [model.second], []]
    rule = optimiser(model, "sgd", learning_rate=1.0, weight_decay=0.0, momentum=0.0, layer_decay=0.5, levels=levels)
    rates = {id(p): group["lr"] for group in rule.param_groups for p in group["params"]}
    assert rates[id(model.first.weight)] == 0.25
    assert rates[id(model.second.weight)] == 0.5


def test_groups_of_former_runs_have_the_whole_rate():
    rule = torch.optim.SGD(network().parameters(), lr=1.0)
    set_rate(rule, 0.3)
    assert rule.param_groups[0]["lr"] == 0.3


def test_the_levels_of_models():
    plain = UNet(3, 2, width=4, depth=1)
    assert [list(level) for level in plain.levels()] == [[plain]]
    model = UNet(3, 2, width=4, depth=3, encoder="resnet18")
    rule = optimiser(
        model, "sgd", learning_rate=1.0, weight_decay=0.0, momentum=0.0, layer_decay=0.5, levels=model.levels()
    )
    rates = {id(p): group["lr"] for group in rule.param_groups for p in group["params"]}
    body = dict(model.encoder.body.named_parameters())
    assert rates[id(body["conv1.weight"])] == 0.125
    assert rates[id(body["layer1.0.conv1.weight"])] == 0.25
    assert rates[id(body["layer2.1.bn2.bias"])] == 0.5
    assert rates[id(model.head.weight)] == rates[id(model.up[0].conv[0].weight)] == 1.0


# As Detectron2 has it


def test_the_step_schedule_is_that_of_torch():
    stones = (60, 80)
    expected = theirs(lambda rule: torch.optim.lr_scheduler.MultiStepLR(rule, list(stones), 0.1), 100)
    found = schedule("step", steps=100, warmup=0.0, milestones=(0.6, 0.8), gamma=0.1)
    assert [found(step) for step in range(100)] == pytest.approx(expected)
    warmed = schedule("step", steps=100, warmup=0.1, milestones=(0.6, 0.8), gamma=0.1)
    assert [warmed(step) for step in range(10, 100)] == pytest.approx(expected[10:]), "milestones count from the start"
    assert warmed(0) == pytest.approx(1 / 11)


def test_sgd_without_looking_ahead_and_with_decayed_biases_is_torchs_plain_one():
    one, other = network(), network()
    norms = [p for p in other[1].parameters()]
    rest = [p for module in (other[0], other[3]) for p in module.parameters()]
    rules = [
        optimiser(one, "sgd", learning_rate=0.1, weight_decay=0.5, momentum=0.9, nesterov=False, decay_biases=True),
        torch.optim.SGD([{"params": rest, "weight_decay": 0.5}, {"params": norms}], lr=0.1, momentum=0.9),
    ]
    images = torch.rand(2, 3, 8, 8)
    for _ in range(3):
        for model, rule in zip((one, other), rules, strict=True):
            rule.zero_grad()
            model(images).square().mean().backward()
            rule.step()
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)
