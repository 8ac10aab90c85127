"""Fitted confidences: what they learn is what the samples say, and few samples do no harm."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from offramp.core.ranking import auroc
from offramp.errors import InputError
from offramp.tasks import fitted_confidence
from offramp.tasks.confidence import get_confidence, get_fitted, is_fitted, register_fitted
from offramp.tasks.fitted_confidence import (
    FittedConfidence,
    Learned,
    Temperature,
    log_odds,
    logistic,
    shown,
)

KINDS = ("temperature", "learned")


def drawn(count, outputs=5, seed=0, scale=2.0):
    """Logits, and whether their largest is right, if labels follow the softmax of ``logits / scale``."""
    random = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(count, outputs, generator=random)
    labels = torch.multinomial((logits / scale).softmax(1), 1, generator=random).squeeze(1)
    return logits, (logits.argmax(1) == labels).float()


def fitted(name, logits, quality):
    calibrator = get_fitted(name)(logits.shape[1])
    calibrator.fit(logits, quality)
    return calibrator


def test_the_temperature_that_labels_were_drawn_at_is_found():
    for scale in (0.5, 2.0, 5.0):
        calibrator = fitted("temperature", *drawn(20_000, scale=scale))
        assert 1 / calibrator.scale.item() == pytest.approx(scale, rel=0.08)  # sampling error of 20,000


def test_the_temperature_is_the_best_of_a_fine_grid():
    logits, quality = drawn(500)
    calibrator = fitted("temperature", logits, quality)

    def loss(scale):
        sure = (logits.double() * scale).softmax(1).amax(1).clamp(1e-12, 1 - 1e-12)
        return F.binary_cross_entropy(sure, quality.double()).item()

    grid = [loss(2 ** (i / 200)) for i in range(-1200, 1201)]
    assert loss(calibrator.scale.item()) <= min(grid) + 1e-7


def test_a_logistic_regression_is_what_another_optimiser_finds():
    random = torch.Generator().manual_seed(1)
    x = torch.randn(300, 4, generator=random, dtype=torch.float64)
    target = (x[:, 0] + torch.randn(300, generator=random, dtype=torch.float64) > 0).double()
    free = torch.tensor([True, False, False, False])
    found = logistic(x, target, 7.0, free)
    weights = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )
    drawn_in = (target * 300 + 1) / 302

    def closure():
        optimiser.zero_grad()
        out = x @ weights[:4] + weights[4]
        loss = F.binary_cross_entropy_with_logits(out, drawn_in, reduction="sum")
        loss = loss + 7 / 2 * weights[1:4].square().sum() + 1e-4 / 2 * weights[[0, 4]].square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(found, weights.detach(), rtol=1e-5, atol=1e-6)


def test_learned_knows_which_class_is_often_wrong():
    """Class 0 is wrong half the time however sure: nothing but the class tells."""
    logits, quality = drawn(4000, scale=1.0)
    coin = torch.rand(4000, generator=torch.Generator().manual_seed(5)) < 0.5
    quality = torch.where((logits.argmax(1) == 0) & coin, 0.0, quality)
    calibrator = fitted("learned", logits[:2000], quality[:2000])
    rest, truth = logits[2000:], quality[2000:].numpy()
    learned, plain = (auroc(c(rest).numpy(), truth) for c in (calibrator, get_confidence("max-probability")))
    assert learned > plain + 0.07
    # it is calibrated, too: where it says 80 %, 80 % are right
    said = calibrator(rest)
    near = (said > 0.4) & (said < 0.6)
    assert quality[2000:][near].mean().item() == pytest.approx(said[near].mean().item(), abs=0.06)


def test_few_samples_leave_the_order_of_the_temperature():
    logits, quality = drawn(20)
    rest, truth = drawn(4000, seed=9)
    learned, tempered = (
        auroc(fitted(name, logits, quality)(rest).numpy(), truth.numpy()) for name in reversed(KINDS)
    )
    assert learned == pytest.approx(tempered, abs=0.03)


def test_unfitted_they_order_as_the_largest_probability_does():
    logits, _ = drawn(200)
    wanted = get_confidence("max-probability")(logits)
    torch.testing.assert_close(Temperature(5)(logits), wanted)
    assert torch.equal(Learned(5)(logits).argsort(), wanted.argsort())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quality", [0.0, 1.0, 0.25])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_samples_that_are_all_alike_are_no_trouble(kind, quality, count):
    logits, _ = drawn(count)
    found = fitted(kind, logits, torch.full((count,), quality))(drawn(100, seed=3)[0])
    assert found.isfinite().all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_fractions_count_as_shares_of_a_sample():
    logits, quality = drawn(400)
    both = torch.cat([quality, 1 - quality])
    twice = fitted("learned", torch.cat([logits, logits]), both)
    mean = fitted("learned", torch.cat([logits, logits]), torch.full((800,), 0.5))
    torch.testing.assert_close(twice(logits), mean(logits), rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outputs", [1, 2, 3, 10, 300])
def test_in_zero_to_one_as_float32(kind, dtype, outputs):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(500, outputs, generator=random) * torch.logspace(-4, 3, 500)[:, None]
    calibrator = fitted(kind, logits, torch.rand(500, generator=random))
    found = calibrator(logits.to(dtype))
    assert (found.shape, found.dtype) == ((500,), torch.float32)
    assert found.min() >= 0
    assert found.max() <= 1
    assert calibrator(torch.empty(0, outputs)).shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(kind, bad):
    calibrator = fitted(kind, *drawn(200, outputs=3))
    found = calibrator(torch.tensor([[bad, 0.0, 1.0], [1.0, 0.0, 0.0], [1.0, -math.inf, 0.0]]))
    assert found.isfinite().tolist() == [False, True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_samples_give_the_same_bytes_and_states_load(kind):
    logits, quality = drawn(300)
    one, two = (fitted(kind, logits, quality).state_dict() for _ in range(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = get_fitted(kind)(5)
    other.load_state_dict(one)
    assert torch.equal(other(logits), fitted(kind, logits, quality)(logits))
    assert not list(other.parameters())  # nothing that an optimiser would move


def test_of_very_many_samples_evenly_spaced_ones_are_taken(monkeypatch):
    logits, quality = drawn(199)
    every_second = fitted("learned", logits[::2], quality[::2])(logits)
    assert not torch.equal(fitted("learned", logits, quality)(logits), every_second)
    monkeypatch.setattr(fitted_confidence, "_ENOUGH", 100)
    assert torch.equal(fitted("learned", logits, quality)(logits), every_second)


def test_log_odds_and_features_by_hand():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    p = logits.softmax(1)[0]
    assert log_odds(logits).item() == pytest.approx(math.log(p[1] / (1 - p[1])), abs=1e-6)
    logs = p.log()
    near = [math.log(1 / (1 + math.exp(-abs(z)))) for z in (1.0, 3.0, 2.0)]
    wanted = [
        *sorted(logs.tolist(), reverse=True), p[1] - p[2], (p * logs).sum(), 3.0,
        logits.logsumexp(1).item(), sum(near) / 3, min(near), 0, 1, 0,
    ]  # fmt: skip
    assert shown(logits)[0].tolist() == pytest.approx([float(v) for v in wanted], abs=1e-6)


@pytest.mark.parametrize(
    ("outputs", "quality", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(3), r"expected outputs \(n, 5\) .* got \(3, 4\) and \(3,\)"),
        (torch.zeros(3, 5), torch.zeros(2), r"got \(3, 5\) and \(2,\)"),
        (torch.zeros(0, 5), torch.zeros(0), r"expected at least one sample .* got none"),
    ],
)
def test_samples_that_do_not_fit_are_refused(outputs, quality, message):
    with pytest.raises(InputError, match=message):
        Learned(5).fit(outputs, quality)


def test_kinds_have_names():
    assert [is_fitted(name) for name in (*KINDS, "margin", "nothing")] == [True, True, False, False]
    with pytest.raises(InputError, match="unknown fitted confidence 'learnt'; did you mean 'learned'"):
        get_fitted("learnt")
    with pytest.raises(InputError, match="'learned' is already registered"):
        register_fitted("learned")(Temperature)
    with pytest.raises(NotImplementedError):
        FittedConfidence(2).fit(torch.zeros(1, 2), torch.zeros(1))
