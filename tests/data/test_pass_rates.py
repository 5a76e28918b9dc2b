"""Questions that are kept by their pass rates, and those that rest."""

import pytest

from jvlmm.data.example import Example
from jvlmm.data.pass_rates import PassRateOptions, PassRates
from jvlmm.errors import ConfigError, DataError


def row(name, **meta):
    return Example(name, "What?", "A", "text", meta=meta)


def test_rows_with_a_known_rate_outside_are_refused():
    rates = PassRates(PassRateOptions(above=0.0, below=1.0))
    for kept in (row("a", pass_rate=0.5), row("b"), row("c", pass_rate=0.01)):
        rates.check(kept)
    for rate in (0, 1, 1.0):
        with pytest.raises(DataError, match=rf"'d': its pass_rate of {rate} is not above 0.0 and below 1.0"):
            rates.check(row("d", pass_rate=rate))
    with pytest.raises(DataError, match="'e': pass_rate is 'often', not a number"):
        rates.check(row("e", pass_rate="often"))


def test_one_bound_and_another_field():
    rates = PassRates(PassRateOptions(field="solved", below=0.9))
    rates.check(row("a", solved=0.0, pass_rate=1.0))
    with pytest.raises(DataError, match="solved of 0.95"):
        rates.check(row("a", solved=0.95))


def test_without_bounds_every_row_is_kept():
    PassRates(PassRateOptions()).check(row("a", pass_rate=1))


def test_easy_questions_come_first_and_unknown_ones_last():
    rows = [
        row("a", pass_rate=0.1),
        row("b"),
        row("c", pass_rate=0.9),
        row("d", pass_rate=0.1),
        row("e", pass_rate="no"),
    ]
    ordered = PassRates(PassRateOptions(easy_first=True)).ordered(rows)
    assert [example.id for example in ordered] == ["c", "a", "d", "b", "e"] and len(ordered) == 5
    assert PassRates(PassRateOptions()).ordered(rows) is rows
    with pytest.raises(DataError, match="easy_first: no row has a 'pass_rate'"):
        PassRates(PassRateOptions(easy_first=True)).ordered([row("a"), row("b")])


def test_a_question_rests_after_rewards_that_were_all_equal():
    rates = PassRates(PassRateOptions(rest=2))
    rates.observe([("a", False), ("b", True)])
    assert [rates.skips(row("a")) for _ in range(4)] == [True, True, False, False]
    assert not rates.skips(row("b"))


def test_what_rests_goes_on_after_a_restart():
    first, second = (PassRates(PassRateOptions(rest=3)) for _ in range(2))
    first.observe([("a", False)])
    first.skips(row("a"))
    second.set_state(first.get_state())
    assert [second.skips(row("a")) for _ in range(3)] == [True, True, False]


def test_without_rest_nothing_is_remembered():
    rates = PassRates(PassRateOptions())
    rates.observe([("a", False)])
    assert not rates.skips(row("a")) and rates.get_state() == {}


@pytest.mark.parametrize(
    ("options", "told"),
    [({"above": 0.5, "below": 0.5}, "leave no row"), ({"rest": -1}, "pass_rates.rest=-1 must be at least 0")],
)
def test_options_without_sense_are_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        PassRateOptions(**options)
