"""The training loop: a known minimum, one function of the steps, and no silent failure."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from pysamp import rng
from pysamp.train import NonFiniteError, StepDecay, fit

CENTRE = torch.tensor([1.0, -2.0, 0.5])


def quadratic(w, noise=0.0, seed=3):
    def loss(step):
        xi = noise * rng.normal((1, 3), seed=seed, stream="user", step=step)[0]
        fit_term = (w - CENTRE - xi).square().sum()
        return fit_term, {"fit": fit_term, "half": 0.5}

    return loss


def parameter():
    return torch.zeros(3, requires_grad=True)


def test_fit_finds_the_minimum_and_records_every_step():
    w = parameter()
    seen = []
    history = fit(
        quadratic(w), [w], steps=400, lr=0.1, callback=lambda step, row: seen.append((step, row))
    )
    assert (w - CENTRE).abs().max() < 1e-3
    assert history.steps == len(seen) == 400 and seen[-1][0] == 399
    assert history.loss[0] == pytest.approx(1 + 4 + 0.25)
    assert torch.equal(history.loss, history.terms["fit"])
    assert (history.terms["half"] == 0.5).all() and set(history.terms) == {"fit", "half"}
    # the gradient of |w − c|² at 0 is −2 c; the record is of before clipping
    assert history.grad_norm[0] == pytest.approx(2 * math.sqrt(5.25))
    rates = [row["lr"] for _, row in seen]
    assert rates[0] == 0.1 and rates[200] == pytest.approx(0.05) and 0 < rates[-1] < 1e-5
    assert w.grad is None


def test_first_step_of_adam_is_the_rate_whatever_the_gradient():
    for scale in (1.0, 1e3):
        w = parameter()
        fit(lambda step, w=w, s=scale: (s * (w - CENTRE)).square().sum(), [w], steps=1, lr=0.01)
        assert torch.allclose(w.detach(), 0.01 * CENTRE.sign(), rtol=1e-4)


def test_two_steps_are_those_of_adam_with_clipped_gradients():
    """m ← 0.9 m + 0.1 g, v ← 0.999 v + 0.001 g², both bias-corrected, by hand."""
    lr, clip, n = 0.05, 1.0, 5
    w = parameter()
    fit(quadratic(w), [w], steps=n, lr=lr, clip=clip)
    x, m, v = (torch.zeros(3, dtype=torch.float64) for _ in range(3))
    for k in range(n):
        g = 2 * (x - CENTRE.double())
        g = g * min(1.0, clip / float(g.norm()))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        rate = lr * (1 + math.cos(math.pi * k / n)) / 2
        x = x - rate * (m / (1 - 0.9 ** (k + 1))) / ((v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
    assert torch.allclose(w.detach().double(), x, rtol=1e-5)
    assert float(x.norm()) > 0.05


def test_average_is_what_the_parameters_hold_at_the_end():
    iterates = []
    w = parameter()
    fit(
        quadratic(w, 1.0), [w], steps=60, lr=0.05, lr_decay=None, ema=0.9,
        callback=lambda step, row: iterates.append(w.detach().clone()),
    )  # fmt: skip
    average = torch.zeros(3)
    for k, iterate in enumerate(iterates):
        decay = min(0.9, (1 + k) / (10 + k))
        average = decay * average + (1 - decay) * iterate
    assert torch.allclose(w.detach(), average, atol=1e-6)
    assert not torch.allclose(w.detach(), iterates[-1], atol=1e-3)


class StopHereError(Exception):
    pass


@pytest.mark.parametrize("ema", [None, 0.95])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, ema):
    how = {"steps": 50, "lr": 0.03, "ema": ema, "every": 7}

    def stop(step, row):
        if step == 30:
            raise StopHereError

    whole = parameter()
    expected = fit(quadratic(whole, 0.3), [whole], **how)
    broken = parameter()
    with pytest.raises(StopHereError):
        fit(quadratic(broken, 0.3), [broken], checkpoint=tmp_path / "c", callback=stop, **how)
    again, begun = parameter(), []
    found = fit(
        quadratic(again, 0.3), [again], checkpoint=tmp_path / "c",
        callback=lambda step, row: begun.append(step), **how,
    )  # fmt: skip
    assert begun[0] == 28
    assert torch.equal(again, whole) and not torch.equal(whole, torch.zeros(3))
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.grad_norm, expected.grad_norm)
    # a finished training is read, not repeated
    third, begun = parameter(), []
    fit(quadratic(third, 0.3), [third], checkpoint=tmp_path / "c",
        callback=lambda step, row: begun.append(step), **how)  # fmt: skip
    assert torch.equal(third, whole) and begun == []


def test_rate_falls_by_gamma_every_period():
    w, rates = parameter(), []
    fit(
        quadratic(w), [w], steps=25, lr=0.2, lr_decay=StepDecay(10, 0.5),
        callback=lambda step, row: rates.append(row["lr"]),
    )  # fmt: skip
    assert rates == [0.2] * 10 + [0.1] * 10 + [0.05] * 5


def test_weight_decay_is_the_l2_term_of_adam():
    """The gradient of |w − c|² + ½ λ |w|², whose minimum is 2c/(2 + λ)."""
    w, by_hand = parameter(), parameter()
    fit(quadratic(w), [w], steps=300, lr=0.1, clip=None, weight_decay=0.5)
    fit(
        lambda step: (by_hand - CENTRE).square().sum() + 0.25 * by_hand.square().sum(), [by_hand],
        steps=300, lr=0.1, clip=None,
    )  # fmt: skip
    assert torch.allclose(w, by_hand, atol=1e-6)
    assert torch.allclose(w.detach(), 2 * CENTRE / 2.5, atol=1e-3)


class Walk:
    """Points that drift along with the steps, and are fitted where they are."""

    def __init__(self):
        self.at = torch.zeros(3)

    def loss(self, w):
        def loss(step):
            noise = rng.normal((1, 3), seed=5, stream="user", step=step)[0]
            self.at = 0.9 * self.at + 0.1 * CENTRE + 0.1 * noise
            return (w - self.at).square().sum()

        return loss

    def tensors(self):
        return {"at": self.at}

    def restore(self, tensors):
        self.at = tensors["at"]


@pytest.mark.parametrize("stop_at", [24, 27, 34])
def test_what_is_carried_goes_on_where_it_was(tmp_path, stop_at):
    how = {"steps": 40, "lr": 0.05, "every": 7, "identity": {"target": "walk"}}

    def stop(step, row):
        if step == stop_at:
            raise StopHereError

    walk, whole = Walk(), parameter()
    expected = fit(walk.loss(whole), [whole], carry=walk, **how)
    file = tmp_path / "c"
    broken, w = Walk(), parameter()
    with pytest.raises(StopHereError):
        fit(broken.loss(w), [w], carry=broken, checkpoint=file, callback=stop, **how)
    other, again = Walk(), parameter()
    found = fit(other.loss(again), [again], carry=other, checkpoint=file, **how)
    assert torch.equal(again, whole) and torch.equal(other.at, walk.at)
    assert torch.equal(found.loss, expected.loss)
    assert float(walk.at.norm()) > 0.5
    how["identity"] = {"target": "another"}
    with pytest.raises(ValueError, match="target = walk there, another here"):
        fit(Walk().loss(again), [again], carry=Walk(), checkpoint=file, **how)


def test_a_training_that_is_stopped_is_over_for_good(tmp_path):
    file = tmp_path / "c"
    how = {"steps": 40, "lr": 0.05, "lr_decay": None, "every": 10}
    w = parameter()
    found = fit(quadratic(w), [w], checkpoint=file, stop=lambda step, row: step == 24, **how)
    assert found.stopped and found.steps == 25
    again, begun = parameter(), []
    read = fit(quadratic(again), [again], checkpoint=file,
               callback=lambda step, row: begun.append(step), **how)  # fmt: skip
    assert read.stopped and read.steps == 25 and begun == []
    assert torch.equal(again, w) and torch.equal(read.loss, found.loss)
    # one that ends at the last step anyway was not stopped; a progress bar may return anything
    last = fit(
        quadratic(w), [w], callback=lambda step, row: True, stop=lambda step, row: step == 39, **how
    )
    assert not last.stopped and last.steps == 40


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    w = parameter()
    fit(quadratic(w), [w], steps=5, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match=r"lr = 0.001 there, 0.1 here"):
        fit(quadratic(w), [w], steps=5, lr=0.1, checkpoint=tmp_path / "c")
    other = torch.zeros(4, requires_grad=True)
    with pytest.raises(ValueError, match=r"params\[0\] is \(3,\) there, \(4,\) here"):
        fit(lambda step: other.sum(), [other], steps=5, checkpoint=tmp_path / "c")
    save_file({"a": torch.zeros(1)}, tmp_path / "d")
    with pytest.raises(ValueError, match="written by fit"):
        fit(quadratic(w), [w], steps=5, checkpoint=tmp_path / "d")
    assert "param.params[0]" in load_file(tmp_path / "c")


def test_a_loss_that_is_not_finite_stops_with_step_and_term():
    w = parameter()

    def loss(step):
        good = (w - CENTRE).square().sum()
        bad = torch.where(torch.tensor(step == 3), math.nan, 1.0) * w.sum()
        return good + bad, {"good": good, "bad": bad}

    before = []
    with pytest.raises(NonFiniteError, match=r"step 3: bad = nan, loss = nan"):
        fit(loss, [w], steps=10, callback=lambda step, row: before.append(w.detach().clone()))
    assert torch.equal(w.detach(), before[-1]) and len(before) == 3


def test_a_gradient_that_is_not_finite_stops_and_names_the_parameter():
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.bias.zero_()
        model.weight.fill_(0.3)

    def loss(step):  # the square root has an infinite slope at 0
        return model.weight.square().sum() + model.bias.abs().sqrt().sum() * 1.0

    with pytest.raises(NonFiniteError, match=r"at step 0.*1 of 1 entries of the gradient of bias"):
        fit(loss, model, steps=3)
    assert (model.weight == 0.3).all()


def test_a_module_is_trained_and_frozen_parameters_are_left():
    model = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(0.0)
        model.bias.fill_(0.0)
    model.bias.requires_grad_(False)
    x = torch.linspace(-1, 1, 11)[:, None]
    fit(lambda step: (model(x) - 3 * x).square().mean(), model, steps=300, lr=0.1)
    assert float(model.weight.detach()) == pytest.approx(3, abs=1e-2)
    assert float(model.bias) == 0


def test_training_works_under_no_grad():
    w = parameter()
    with torch.no_grad():
        fit(quadratic(w), [w], steps=20, lr=0.1)
    assert float(w.detach().norm()) > 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be a positive int, got 0"),
        ({"every": 0}, "every must be a positive int, got 0"),
        ({"lr": -1.0}, "lr must be positive and finite, got -1.0"),
        ({"lr_decay": "linear"}, "got 'linear'"),
        ({"weight_decay": -0.1}, "weight_decay must be finite and not negative, got -0.1"),
        ({"clip": 0.0}, "clip must be positive or None, got 0.0"),
        ({"ema": 1.0}, r"ema must lie in \(0, 1\) or be None, got 1.0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    w = parameter()
    with pytest.raises(ValueError, match=message):
        fit(quadratic(w), [w], **({"steps": 2} | change))


def test_bad_decays_are_named():
    with pytest.raises(ValueError, match="period must be a positive int, got 0"):
        StepDecay(0, 0.5)
    with pytest.raises(ValueError, match=r"gamma must lie in \(0, 1\], got 1.5"):
        StepDecay(10, 1.5)


def test_a_checkpoint_of_another_network_says_so_in_a_line(tmp_path):
    def net(width):
        return torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(5)])

    def loss(model):
        return lambda step: sum(p.square().sum() for p in model.parameters())

    small, large = net(2), net(3)
    fit(loss(small), small, steps=2, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match=r"0.bias is \(2,\) there, \(3,\) here.*; and 6 more$"):
        fit(loss(large), large, steps=2, checkpoint=tmp_path / "c")


def test_bad_losses_and_parameters_are_named():
    w = parameter()
    with pytest.raises(ValueError, match="at least one tensor"):
        fit(quadratic(w), [], steps=2)
    with pytest.raises(TypeError, match=r"params\[0\] must be a Tensor, got float"):
        fit(quadratic(w), [1.0], steps=2)
    with pytest.raises(ValueError, match=r"params\[0\] must be a leaf"):
        fit(quadratic(w), [torch.zeros(3)], steps=2)
    with pytest.raises(ValueError, match=r"scalar Tensor, got \(3,\) at step 0"):
        fit(lambda step: w * 2, [w], steps=2)
    with pytest.raises(ValueError, match="scalar Tensor, got float"):
        fit(lambda step: 1.0, [w], steps=2)
    with pytest.raises(ValueError, match="does not depend on params at step 0"):
        fit(lambda step: torch.ones(()), [w], steps=2)
    with pytest.raises(ValueError, match="'lr'"):
        fit(lambda step: (w.sum(), {"lr": 1.0}), [w], steps=2)
    with pytest.raises(ValueError, match="same terms at every step"):
        fit(lambda step: (w.sum(), {"a": 1.0} if step else {}), [w], steps=2)
