"""Rounds, their order, and the arithmetic on times."""

import time

import pytest

from bnnfx.bench.timing import LEAST_ROUNDS, UNTIMED_RUNS, WARM_UP_ROUNDS, Effort, Spread, alternate, ratios


def test_contenders_alternate_and_the_warm_up_is_not_counted():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = alternate(runs, Effort(100.0, rounds=4), lambda part: None)
    turns = [name for name in "abc" for _ in range(UNTIMED_RUNS + 1)]
    assert order == list("abc") * WARM_UP_ROUNDS + turns * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_only_the_last_run_of_a_turn_is_timed():
    lengths = iter([0.0] * WARM_UP_ROUNDS + [*[0.02] * UNTIMED_RUNS, 0.0] * 3)
    (seconds,) = alternate({"a": lambda: time.sleep(next(lengths))}, Effort(1.0, rounds=3), lambda part: None).values()
    assert max(seconds) < 0.01


def test_each_run_is_charged_to_its_contender():
    runs = {"slow": lambda: time.sleep(0.01), "nothing": lambda: None}
    seconds = alternate(runs, Effort(1.0, rounds=3), lambda part: None)
    assert min(seconds["slow"]) >= 0.01
    assert min(seconds["nothing"]) < 0.005


def test_time_budget_ends_the_rounds():
    parts = []
    seconds = alternate({"a": lambda: time.sleep(0.001)}, Effort(0.05), parts.append)["a"]
    assert LEAST_ROUNDS < len(seconds) <= 50
    assert parts == sorted(parts)
    assert parts[-1] == 1.0


def test_slow_contenders_get_the_least_rounds():
    assert len(alternate({"a": lambda: time.sleep(0.005)}, Effort(0.001), lambda part: None)["a"]) == LEAST_ROUNDS


def test_ratio_is_taken_round_by_round():
    # the second round is twice as slow for both: the ratio does not notice
    assert ratios([3.0, 6.0, 3.0], [1.0, 2.0, 1.0]) == Spread(3.0, 3.0, 3.0)
    # the quotient of the medians would be 2
    assert ratios([2.0, 8.0, 4.0], [1.0, 2.0, 4.0]).median == 2.0
    assert ratios([1.0, 8.0, 9.0], [1.0, 2.0, 3.0]).median == 3.0


def test_lists_of_different_lengths_are_no_rounds():
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])


def test_spread_does_not_care_about_the_order():
    spread = Spread.of([float(x) for x in (5, 10, 0, 3, 7, 1, 9, 2, 8, 4, 6)])
    assert (spread.p10, spread.median, spread.p90) == (1.0, 5.0, 9.0)


def test_tables_share_the_time_but_not_the_rounds():
    assert Effort(10.0, 7).shared(4) == Effort(2.5, 7)
