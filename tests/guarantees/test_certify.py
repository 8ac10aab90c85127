"""Certificates: the sequence of tests, what they say, what they refuse, and that they hold."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import binomtest

import offramp
import populations
import small
from offramp import Certificate, ExitChoice, ExitConfig, ExitRecords, Frontier, Guarantee, Risk
from offramp.core.costs import CostTable
from offramp.core.evaluate import expected
from offramp.errors import ArtifactError, InputError
from offramp.guarantees.certify import (
    BETTING,
    BINOMIAL,
    DIFFERING,
    TRINOMIAL,
    answers_under,
    samples_needed,
)
from offramp.guarantees.p_values import binomial_p_value
from offramp.guarantees.trinomial import trinomial_p_value

COSTS = CostTable(np.array([0.0, 0.0, 1.0]), np.zeros((2, 1)), "macs")
SHARES = (0.1, 0.3, 0.5, 0.7)


def ladder(quality, final, meta=None):
    """Records of one exit that sample n of N leaves where 1 - n / N is above the threshold."""
    samples = len(final)
    return ExitRecords(
        confidence=np.stack([np.zeros((1, samples)), 1 - np.arange(samples)[None] / samples]),
        quality=np.stack([np.zeros((1, samples)), np.asarray(quality, float)[None]]),
        final_quality=final,
        exists=[[False], [True]],
        positions=("input", "a"),
        heads=("linear",),
        meta=meta,
    )


def frontier_of(shares=SHARES, samples=1000):
    """Under configuration i that share leaves early; quality as searched falls with it."""
    quality = np.ones(samples)
    quality[1 :: max(samples // 20, 2)] = 0
    seen = ladder(quality, np.ones(samples))
    configs = [ExitConfig((ExitChoice("a", "linear", 1 - share),)) for share in shares]
    return Frontier.of([replace(c, expected=expected(seen, COSTS, c)) for c in (ExitConfig(), *configs)])


@pytest.fixture
def frontier():
    found = frontier_of()
    assert [len(c.choices) for c in found] == [1, 1, 1, 1, 0]
    return found


def with_losses(samples, lost, gained=(), meta=None):
    """Exits lose the samples ``lost`` and win ``gained``; the full model is right on all others."""
    quality, final = np.ones(samples), np.ones(samples)
    quality[list(lost)] = 0
    final[list(gained)] = 0
    return ladder(quality, final, meta)


def share_of(config):
    return None if config is None else round(1 - config.choices[0].threshold, 3)


# ------------------------------------------------------------------------------------- which one it is


def test_the_cheapest_that_passes_in_order(frontier):
    assert share_of(offramp.certify(frontier, with_losses(1000, []), COSTS, max_drop=0.01)) == 0.7
    late = with_losses(1000, range(550, 600))  # only the cheapest one sends these away
    assert share_of(offramp.certify(frontier, late, COSTS, max_drop=0.01)) == 0.5
    early = with_losses(1000, range(50))
    assert offramp.certify(frontier, early, COSTS, max_drop=0.01) is None


def test_the_sequence_stops_at_the_first_failure(frontier):
    """The cheapest wins late what it loses early, and would pass by itself; its forerunner fails."""
    records = with_losses(1000, range(150, 200), gained=range(550, 600))
    by_itself = Frontier([frontier[0]])
    assert share_of(offramp.certify(by_itself, records, COSTS, max_drop=0.03)) == 0.7
    assert share_of(offramp.certify(frontier, records, COSTS, max_drop=0.03)) == 0.1


def test_the_full_model_is_never_the_answer(frontier):
    assert offramp.certify(Frontier([frontier[-1]]), with_losses(1000, []), COSTS, max_drop=0.01) is None


def test_too_few_samples_give_none(frontier):
    """Without one loss it takes log(0.05) / log(0.99) = 299 samples, as the binomial test says."""
    for meta in ({"quality": "agreement"}, None):
        for samples, wanted in ((298, None), (299, 0.7)):
            records = with_losses(samples, [], meta=meta)
            assert share_of(offramp.certify(frontier, records, COSTS, max_drop=0.01)) == wanted


def test_the_answer_is_the_frontiers_own(frontier):
    config = offramp.certify(frontier, with_losses(1000, []), COSTS, max_drop=0.01)
    assert replace(config, certificate=None) == frontier[0]
    assert frontier[0].certificate is None


def test_early_leavers_start_further_down():
    """Of 300 samples 3 leave under the dearest configuration: too few to test, and no reason to give up."""
    frontier = frontier_of((0.01, 0.2, 0.5, 0.9), samples=3000)
    records = with_losses(300, [])
    config = offramp.certify(frontier, records, COSTS, risks=[offramp.early_leaver_error(0.05)])
    assert share_of(config) == 0.9
    (shown,) = config.certificate.guarantees
    assert (shown.samples, shown.test) == (270, BINOMIAL)
    assert shown.p_value == pytest.approx(0.95**270, rel=1e-6)


@pytest.mark.parametrize(
    ("passing", "found"), [({900}, 0.9), ({500}, 0.5), ({500, 900}, 0.9), ({100, 900}, 0.9)]
)
def test_delta_is_shared_by_four_starts(passing, found):
    """With p-value 0.98^200 = 0.0176 a configuration passes by itself if delta is four times that."""
    frontier = frontier_of((0.1, 0.2, 0.5, 0.9))
    risk = Risk(
        "loss", 0.02, lambda answers: np.zeros(200 if answers.early.sum() in passing else 10), sparse=True
    )
    enough = 4 * 0.98**200
    records = with_losses(1000, [])
    assert offramp.certify(frontier, records, COSTS, risks=[risk], delta=0.999 * enough) is None
    assert share_of(offramp.certify(frontier, records, COSTS, risks=[risk], delta=1.001 * enough)) == found


def test_levels_add_up_along_a_row_that_passes():
    """The first passes at a quarter of delta, the second only at the half that the two have together."""
    frontier = frontier_of((0.1, 0.2, 0.5, 0.9))
    sizes = {100: 300, 200: 200}
    risk = Risk("loss", 0.02, lambda answers: np.zeros(sizes.get(int(answers.early.sum()), 10)), sparse=True)
    for delta, found in ((1.999 * 0.98**200, 0.1), (2.001 * 0.98**200, 0.2)):
        records = with_losses(1000, [])
        assert share_of(offramp.certify(frontier, records, COSTS, risks=[risk], delta=delta)) == found


def test_one_configuration_has_all_of_delta():
    frontier = Frontier([frontier_of()[0]])
    risk = Risk("loss", 0.02, lambda _: np.zeros(200), sparse=True)
    records = with_losses(1000, [])
    assert offramp.certify(frontier, records, COSTS, risks=[risk], delta=0.999 * 0.98**200) is None
    assert offramp.certify(frontier, records, COSTS, risks=[risk], delta=1.001 * 0.98**200) is not None


def test_no_leavers_say_nothing():
    frontier = Frontier([frontier_of()[0]])
    records = replace(with_losses(500, []), confidence=np.zeros((2, 1, 500)))
    assert offramp.certify(frontier, records, COSTS, max_drop=0.1) is not None
    risks = [offramp.early_leaver_error(0.9)]
    assert offramp.certify(frontier, records, COSTS, max_drop=0.1, risks=risks) is None


def test_all_bounds_hold_together(frontier):
    mask = np.arange(1000) < 400
    records = with_losses(1000, range(0, 300, 30))  # 10 of the 400 are missed
    risks = [offramp.missed_detection(mask, 0.06, of="defects"), offramp.early_leaver_error(0.2)]
    config = offramp.certify(frontier, records, COSTS, max_drop=0.05, risks=risks)
    drop, missed, early = config.certificate.guarantees
    assert (drop.test, drop.samples, drop.p_value) == (TRINOMIAL, 1000, trinomial_p_value(10, 0, 1000, 0.05))
    assert (missed.test, missed.samples, missed.observed) == (BINOMIAL, 400, 10 / 400)
    assert missed.risk == "rate of wrong answers on defects"
    assert missed.p_value == binomial_p_value(10, 400, 0.06)
    assert early.samples == 700
    assert config.certificate.p_value == max(each.p_value for each in config.certificate.guarantees)
    for bound in (0.01, 0.02):
        strict = [offramp.missed_detection(mask, bound), risks[1]]
        assert offramp.certify(frontier, records, COSTS, max_drop=0.05, risks=strict) is None


# ---------------------------------------------------------------------------------------- which test it is


def test_the_test_follows_the_kind_of_quality(frontier):
    labels = offramp.certify(frontier, with_losses(1000, [5]), COSTS, max_drop=0.02).certificate
    assert (labels.quality, labels.guarantees[0].test) == ("unknown", TRINOMIAL)
    agreed = with_losses(1000, [5], meta={"quality": "agreement"})
    agreement = offramp.certify(frontier, agreed, COSTS, max_drop=0.02).certificate
    assert (agreement.quality, agreement.guarantees[0].test) == ("agreement", BINOMIAL)
    assert agreement.guarantees[0].risk == DIFFERING
    quality = np.full(1000, 0.75)
    partly = ladder(quality, np.full(1000, 0.75), {"quality": "labels"})
    fractions = offramp.certify(frontier, partly, COSTS, max_drop=0.02).certificate
    assert (fractions.quality, fractions.guarantees[0].test) == ("labels", BETTING)


def test_a_risk_of_ones_own(frontier):
    weighted = Risk("weighted loss", 0.1, lambda answers: (1 - answers.quality) / 3, fractional=True)
    config = offramp.certify(frontier, with_losses(1000, [5]), COSTS, risks=[weighted])
    assert config.certificate.guarantees[0].test == BETTING
    plain = Risk("weighted loss", 0.1, weighted.losses)
    with pytest.raises(InputError, match=r"weighted loss: expected whole numbers .* pass fractional=True"):
        offramp.certify(frontier, with_losses(1000, [5]), COSTS, risks=[plain])


def test_answers_under_a_configuration():
    records = with_losses(10, [0, 9], gained=[1])
    answers = answers_under(records, ExitConfig((ExitChoice("a", "linear", 0.5),)))
    assert answers.early.tolist() == [True] * 5 + [False] * 5
    assert answers.quality.tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert answers.full_quality.tolist() == [1, 0, 1, 1, 1, 1, 1, 1, 1, 1]


# ------------------------------------------------------------------------------------------ without labels


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_accuracy_drops_by_no_more_than_the_share_of_answers_that_differ(seed, how_often):
    """Why agreement is enough: it holds sample by sample, for whatever labels."""
    rng = np.random.default_rng(seed)
    labels, full, other = rng.integers(3, size=(3, 50))
    answers = np.where(rng.random(50) < how_often, other, full)
    assert (full == labels).mean() - (answers == labels).mean() <= (answers != full).mean() + 1e-12


def test_from_unlabelled_data_to_a_certificate():
    net = small.network()
    seen, fresh = (
        offramp.record_outputs(net, small.loader(count=96, seed=seed, labelled=False), quality="agreement")
        for seed in (5, 6)
    )
    costs = offramp.measure_cost(net)
    frontier = offramp.search(seen, costs, tradeoffs=[0.5, 0.9], regularise=None)
    config = offramp.certify(frontier, fresh, costs, max_drop=0.9)
    assert config.certificate.quality == "agreement"
    assert config.certificate.guarantees[0].risk == DIFFERING
    assert "differs from the full model's by no more than" in str(config.certificate)


# --------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"expected a bound, got none; give max_drop=0.01 or risks"),
        ({"max_drop": 1.0}, r"max_drop: expected a fraction in \[0, 1\), got 1.0; 0.005 is half a point"),
        ({"max_drop": -0.1}, "max_drop: expected a fraction"),
        ({"max_drop": math.nan}, "max_drop: expected a fraction"),
        ({"max_drop": "0.1"}, "max_drop: expected a fraction"),
        ({"max_drop": True}, "max_drop: expected a fraction"),
        ({"max_drop": 0.1, "delta": 0}, r"delta=0\): expected a number between 0 and 1, such as 0.05"),
        ({"max_drop": 0.1, "delta": 1}, "expected a number between 0 and 1"),
        ({"max_drop": 0.1, "delta": math.nan}, "expected a number between 0 and 1"),
        ({"max_drop": 0.1, "delta": "small"}, "expected a number between 0 and 1"),
        ({"risks": [0.1]}, r"expected a list of risks, got \[0.1\]"),
        ({"risks": offramp.early_leaver_error(0.1)}, "expected a list of risks"),
    ],
)
def test_arguments_that_are_refused(frontier, arguments, message):
    with pytest.raises(InputError, match=message):
        offramp.certify(frontier, with_losses(100, []), COSTS, **arguments)


def test_parts_that_do_not_belong_together(frontier):
    records = with_losses(100, [])
    with pytest.raises(InputError, match="expected a Frontier, got a ExitConfig; search for one"):
        offramp.certify(frontier[0], records, COSTS, max_drop=0.1)
    with pytest.raises(InputError, match="unknown position 'a'"):
        offramp.certify(frontier, replace(records, positions=("input", "b")), COSTS, max_drop=0.1)
    with pytest.raises(InputError, match="at least one sample"):
        offramp.certify(frontier, records.subset([]), COSTS, max_drop=0.1)
    odd = with_losses(100, [], gained=[3], meta={"quality": "agreement"})
    with pytest.raises(InputError, match=r"full model to agree with itself .* a mean of 0.99; record again"):
        offramp.certify(frontier, odd, COSTS, max_drop=0.1)


def test_risks_check_what_they_are_given(frontier):
    with pytest.raises(InputError, match=r"Risk.name: expected words, got ''"):
        Risk("", 0.1, lambda answers: answers.quality)
    with pytest.raises(InputError, match=r"bound of the loss: expected a fraction in \[0, 1\), got 2"):
        Risk("loss", 2, lambda answers: answers.quality)
    with pytest.raises(InputError, match=r"expected \(N,\) truth values, got int64 of shape \(3,\)"):
        offramp.missed_detection(np.array([0, 1, 1]), 0.1)
    with pytest.raises(InputError, match="max_rate: expected a fraction"):
        offramp.early_leaver_error(1.5)
    records = with_losses(100, [])
    with pytest.raises(InputError, match="one value for each of 100 samples, got 3; make it from the labels"):
        offramp.certify(frontier, records, COSTS, risks=[offramp.missed_detection([True, False, True], 0.1)])


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([[0.0]], r"expected \(K,\) values in \[0, 1\], got 0 to 0 of shape \(1, 1\)"),
        ([-1.0, 0.0], "got -1 to 0 of shape .* pass signed=True"),
        ([2.0], "got 2 to 2"),
        ([math.nan], "got nan to nan"),
    ],
)
def test_losses_that_are_refused(frontier, losses, message):
    with pytest.raises(InputError, match=message):
        offramp.certify(frontier, with_losses(50, []), COSTS, risks=[Risk("loss", 0.1, lambda _: losses)])


# ------------------------------------------------------------------------------------- how many it takes


def test_how_many_samples_it_takes(frontier):
    """The rough figure is where the dearest configuration begins to pass, within a third."""
    for lost, meta in (((), None), ((5,), None), ((5,), {"quality": "agreement"})):
        few = with_losses(200, lost, meta=meta)
        assert offramp.certify(frontier, few, COSTS, max_drop=0.01) is None
        needed = samples_needed(frontier, few, COSTS, max_drop=0.01)
        for factor, answer in ((0.66, False), (1.5, True)):
            samples = round(needed * factor)
            many = with_losses(samples, range(round(len(lost) * samples / 200)), meta=meta)
            assert (offramp.certify(frontier, many, COSTS, max_drop=0.01) is not None) == answer


def test_no_number_of_samples_helps(frontier):
    assert samples_needed(frontier, with_losses(200, range(10)), COSTS, max_drop=0.01) is None
    assert samples_needed(frontier, with_losses(200, []), COSTS, max_drop=0.0) is None
    assert samples_needed(Frontier([frontier[-1]]), with_losses(200, []), COSTS, max_drop=0.1) is None


# -------------------------------------------------------------------------------------- what it carries


def guarantee(**changes):
    fields = {
        "risk": "rate",
        "bound": 0.01,
        "samples": 90,
        "observed": 0.0,
        "test": "a test",
        "p_value": 0.04,
    }
    return Guarantee(**{**fields, **changes})


def certificate(**changes):
    fields = {"delta": 0.05, "samples": 100, "quality": "labels", "guarantees": (guarantee(),)}
    return Certificate(**{**fields, **changes})


def test_a_certificate_in_words():
    assert str(certificate()) == (
        "With probability at least 95% over the draw of the 100 samples, on new samples of the same "
        "distribution: the rate is at most 0.01 (0 on 90 samples here; a test, p = 0.04)."
    )
    both = str(certificate(quality="agreement", guarantees=[guarantee(), guarantee(risk="other rate")]))
    assert "(all of it jointly): the rate is at most 0.01" in both
    assert "; the other rate is at most 0.01" in both
    assert "accuracy differs from the full model's by no more than the share of answers that do" in both


def test_certificates_round_trip(frontier):
    config = offramp.certify(frontier, with_losses(1000, [3]), COSTS, max_drop=0.02)
    assert ExitConfig.from_json(config.to_json()) == config
    marked = frontier.with_certificate(config)
    assert [c.certificate is not None for c in marked] == [True, False, False, False, False]
    assert Frontier.from_json(marked.to_json()) == marked
    assert marked != frontier
    assert marked[0] == config


def test_frontiers_of_before_are_still_read(frontier):
    assert "certificate" not in frontier.to_json()
    item = {**json.loads(frontier[0].to_json()), "certificate": None}
    assert ExitConfig.from_json(json.dumps(item)) == frontier[0]


def test_every_copy_of_a_configuration_is_marked(frontier):
    copies = Frontier(list(frontier), {0.5: replace(frontier[0], tradeoff=0.5), 0.9: frontier[1]})
    config = offramp.certify(copies, with_losses(1000, []), COSTS, max_drop=0.01)
    marked = copies.with_certificate(config)
    assert marked.by_tradeoff[0.5].certificate == marked[0].certificate == config.certificate
    assert marked.by_tradeoff[0.9].certificate is None
    with pytest.raises(InputError, match="expected a configuration of this frontier, got other choices"):
        frontier.with_certificate(ExitConfig((ExitChoice("a", "linear", 0.123),)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"risk": ""}, r"Guarantee.risk: expected words, got ''"),
        ({"test": 3}, r"Guarantee.test: expected words, got 3"),
        ({"samples": 0}, r"Guarantee.samples: expected a whole number of at least 1, got 0"),
        ({"samples": True}, r"Guarantee.samples"),
        ({"samples": 2.5}, r"Guarantee.samples"),
        ({"bound": math.inf}, "expected finite numbers and a p-value"),
        ({"observed": math.nan}, "expected finite numbers and a p-value"),
        ({"p_value": 1.5}, r"a p-value in \[0, 1\], got bound 0.01, observed 0.0 and p-value 1.5"),
    ],
)
def test_guarantees_that_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        guarantee(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": 0.0}, r"Certificate.delta: expected a number between 0 and 1, got 0.0"),
        ({"delta": math.nan}, r"Certificate.delta"),
        ({"samples": -1}, r"Certificate.samples: expected a whole number"),
        ({"quality": ""}, r"Certificate.quality: expected words"),
        ({"guarantees": ()}, r"Certificate.guarantees: expected at least one Guarantee, got \(\)"),
        ({"guarantees": ("all is well",)}, r"Certificate.guarantees"),
    ],
)
def test_certificates_that_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        certificate(**changes)
    with pytest.raises(InputError, match=r"ExitConfig.certificate: expected a Certificate, got 'yes'"):
        ExitConfig(certificate="yes")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), 3),
        ((), []),
        ((), {}),
        (("delta",), "0.05"),
        (("delta",), 7),
        (("delta",), True),
        (("samples",), 2.5),
        (("samples",), "many"),
        (("quality",), 1),
        (("guarantees",), []),
        (("guarantees",), None),
        (("guarantees", 0), "text"),
        (("guarantees", 0, "bound"), None),
        (("guarantees", 0, "bound"), 10**400),
        (("guarantees", 0, "observed"), "0"),
        (("guarantees", 0, "p_value"), -1),
        (("guarantees", 0, "p_value"), math.nan),
        (("guarantees", 0, "risk"), ["x"]),
        (("guarantees", 0, "samples"), True),
    ],
)
def test_damaged_certificates_are_refused(path, value):
    item = json.loads(ExitConfig(certificate=certificate()).to_json())
    place, last = item, "certificate"
    for key in path:
        place, last = place[last], key
    place[last] = value
    with pytest.raises(ArtifactError, match=r"configuration: damaged, .*; write it again"):
        ExitConfig.from_json(json.dumps(item))


# ------------------------------------------------------------------------------------------- do they hold


def test_certificates_hold():
    """The short version of tests/long/test_certify_long.py."""
    table = populations.costs()
    frontier = offramp.search(
        populations.draw(2000, seed=2), table, tradeoffs=np.linspace(0.6, 1, 20), regularise=1e-3
    )
    population = populations.draw(50_000, seed=1)
    cells = ((0.01, 0.1), (0.02, 0.05))
    found = populations.trial(population, frontier, table, 500, cells, resamples=200)
    for (_, delta), (violations, ratio) in found.items():
        assert binomtest(violations, 200, delta, alternative="greater").pvalue >= 0.01
        assert ratio < 1.3


def test_answers_in_one_line():
    some = offramp.Answers(np.array([1.0, 0.0]), np.array([1.0, 1.0]), np.array([True, False]))
    assert repr(some) == "Answers(2 samples, quality 0.5000, full model 1.0000, 50.0% leave early)"
    none = offramp.Answers(np.zeros(0), np.zeros(0), np.zeros(0, bool))
    assert repr(none) == "Answers(0 samples)"
