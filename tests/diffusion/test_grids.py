"""Grids of times against their formulas, and what is said of wrong ones."""

import math

import numpy as np
import pytest

from jaxnets.diffusion import schedules

FLOW, EDM, TABLE = schedules.flow(), schedules.edm(), schedules.linear(1000)


def test_uniform_and_quadratic_are_powers():
    np.testing.assert_allclose(schedules.uniform(4)(FLOW), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(schedules.quadratic(4)(EDM), 80 * np.array([1, 0.75, 0.5, 0.25, 0]) ** 2)
    assert schedules.uniform(3)(FLOW).dtype == np.float64


def test_karras_is_linear_in_the_root():
    """Karras et al. (2022), eq. 5, with its own numbers; of any schedule the ratios are the same."""
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(schedules.karras(18)(EDM)[:-1], expected, rtol=1e-12)
    for schedule in (FLOW, schedules.cosine(), schedules.linear()):
        np.testing.assert_allclose(schedule.ratio(schedules.karras(18)(schedule))[:-1], expected, rtol=1e-9)
    other = schedules.karras(5, rho=3.0, smallest=0.1, largest=10.0)(EDM)
    np.testing.assert_allclose(np.diff(other[:-1] ** (1 / 3)), np.diff(other[:-1] ** (1 / 3))[0])
    np.testing.assert_allclose(other[[0, -2, -1]], [10, 0.1, 0])


def test_exponential_and_log_snr_are_even_in_the_logarithm():
    times = schedules.exponential(5, smallest=0.01, largest=100.0)(schedules.cosine())
    np.testing.assert_allclose(schedules.cosine().ratio(times)[:-1], [100, 10, 1, 0.1, 0.01], rtol=1e-9)
    times = schedules.log_snr(5, lowest=-8.0, highest=8.0)(FLOW)
    np.testing.assert_allclose(FLOW(times).log_snr[:-1], [-8, -4, 0, 4, 8], rtol=1e-9, atol=1e-12)
    by_name = schedules.log_snr(6)(EDM)
    np.testing.assert_allclose(by_name, schedules.exponential(6, smallest=math.exp(-6.2), largest=math.exp(4.4))(EDM))


def test_a_bound_beyond_the_schedule_is_its_own():
    for grid in (schedules.karras(7), schedules.exponential(7), schedules.log_snr(7)):
        narrow = schedules.edm(10.0)
        assert grid(narrow)[0] == 10
        assert schedules.linear(100).end == pytest.approx(schedules.karras(7, largest=1e6)(schedules.linear(100))[0])


def test_of_a_table_grids_by_the_ratio_keep_to_its_steps_that_leave_data():
    """A network that was trained on indices knows no step before the first."""
    empty = schedules.zero_terminal(schedules.cosine(50))  # nothing is left after step 50
    for grid in (schedules.karras(7, largest=1e9), schedules.exponential(7, largest=1e9), schedules.log_snr(7, lowest=-40)):
        for schedule, last in ((TABLE, 1000), (empty, 49), (schedules.shifted(empty, 2.0), 49)):
            np.testing.assert_allclose(grid(schedule)[[0, -2]], [last, 1], rtol=1e-9)


def test_trailing_and_leading_are_whole_steps_of_a_table():
    """Lin et al. (2024), table 2, for 1,000 steps and 10 of them, as numbers of steps (their indices plus 1)."""
    np.testing.assert_array_equal(schedules.trailing(10)(TABLE), np.arange(1000, -1, -100))
    np.testing.assert_array_equal(schedules.leading(10)(TABLE)[:-1], np.arange(901, 0, -100))
    odd = schedules.trailing(7)(TABLE)
    np.testing.assert_array_equal(odd, np.round(odd))
    assert odd[0] == 1000
    np.testing.assert_array_equal(schedules.trailing(10)(schedules.shifted(TABLE, 2.0)), np.arange(1000, -1, -100))
    np.testing.assert_array_equal(schedules.leading(1000)(TABLE), np.arange(1000, -1, -1))


def test_explicit_times_may_leave_out_the_zero():
    np.testing.assert_array_equal(schedules.explicit([0.9, 0.4])(FLOW), [0.9, 0.4, 0])
    np.testing.assert_array_equal(schedules.explicit(np.array([0.9, 0.4, 0.0]))(FLOW), [0.9, 0.4, 0])
    assert schedules.explicit([0.9, 0.4]) == schedules.explicit([0.9, 0.4, 0.0])


def test_grids_compare_by_value_and_keep_their_last_steps():
    assert schedules.karras(5) == schedules.karras(5) != schedules.karras(5, rho=6.0)
    whole = schedules.karras(5)
    part = schedules.Grid(whole.rule, whole.steps, whole.options, last=2)
    np.testing.assert_array_equal(part(EDM), whole(EDM)[-3:])


def test_one_step_is_from_noise_to_data():
    for grid in (schedules.uniform(1), schedules.karras(1), schedules.trailing(1)):
        times = grid(TABLE)
        assert len(times) == 2
        assert times[1] == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: schedules.uniform(0), "steps must be a whole number of at least 1, got 0"),
        (lambda: schedules.uniform(2.5), "steps must be a whole number of at least 1, got 2.5"),
        (lambda: schedules.explicit([]), "steps must be a whole number of at least 1, got 0"),
        (lambda: schedules.explicit([0.3, 0.5])(FLOW), "times must decrease to 0, got"),
        (lambda: schedules.explicit([0.5, 0.5])(FLOW), "times must decrease to 0, got"),
        (lambda: schedules.explicit([0.5, -0.1])(FLOW), "times must decrease to 0, got"),
        (lambda: schedules.explicit([float("nan")])(FLOW), "times must decrease to 0, got"),
        (lambda: schedules.explicit([1.5, 0.5])(FLOW), r"must lie in 0..1, those of the schedule, got 1.5"),
        (lambda: schedules.karras(5, rho=0.0), "karras: rho must be positive"),
        (lambda: schedules.karras(5, smallest=1.0, largest=0.5), "karras: expected 0 < smallest < largest, got 1.0 and 0.5"),
        (lambda: schedules.exponential(5, smallest=0.0), "exponential: expected 0 < smallest < largest"),
        (lambda: schedules.log_snr(5, lowest=1.0, highest=0.0), "log_snr: lowest must be below highest"),
        (
            lambda: schedules.karras(5, smallest=30.0)(schedules.edm(10.0)),
            "no ratio of the schedule, 0 to 10, is between 30 and 80",
        ),
        (lambda: schedules.trailing(5)(FLOW), "trailing: needs the schedule of a table with at least 5 steps, got one of None"),
        (
            lambda: schedules.leading(5)(schedules.cosine(3)),
            "leading: needs the schedule of a table with at least 5 steps, got one of 3",
        ),
        (lambda: schedules.Grid(schedules.uniform(3).rule, 3, (1.0,), last=4), r"last must be in 1..3, the steps, got 4"),
    ],
)
def test_what_is_wrong_is_said(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call()
