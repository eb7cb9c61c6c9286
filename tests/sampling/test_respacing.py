"""The number of steps for a score, and where the remaining ones lie."""

from __future__ import annotations

import itertools
from math import log, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.sampling.respacing import places, read, respaced, steps_for

SIGMAS = [sqrt((1 - bar) / bar) for bar in (0.999 - 0.998 * (t / 999) ** 1.5 for t in range(1000))]


@given(
    score=st.floats(allow_nan=True),
    low=st.floats(0, 10),
    gap=st.floats(1e-3, 10),
    fewest=st.integers(1, 100),
    more=st.integers(0, 100),
)
def test_steps_lie_between_the_fewest_and_the_most(
    score: float, low: float, gap: float, fewest: int, more: int
) -> None:
    steps = steps_for(score, low=low, high=low + gap, fewest=fewest, most=fewest + more)
    assert fewest <= steps <= fewest + more


@given(st.lists(st.floats(0, 5), min_size=2))
def test_a_higher_score_never_makes_fewer_steps(scores: list[float]) -> None:
    counts = [steps_for(score, low=1, high=3, fewest=10, most=50) for score in sorted(scores)]
    assert counts == sorted(counts)


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, int, int]:
    total = draw(st.integers(2, 200))
    done = draw(st.integers(1, total - 1))
    return total, done, draw(st.integers(1, total - done))


@given(runs())
def test_places_begin_where_the_run_is_and_none_is_closer_to_the_end_than_the_last_was(
    run: tuple[int, int, int],
) -> None:
    total, done, steps = run
    found = places(done, total, steps)
    assert len(found) == steps
    assert found[0] == done
    assert all(b - a >= 1 - 1e-9 for a, b in itertools.pairwise(found))
    assert found[-1] <= total - 1 + 1e-9


@given(runs(), st.booleans(), st.sampled_from(["flow", "noise"]))
def test_a_re_spaced_schedule_falls_keeps_its_beginning_and_stays_on_the_curve(
    run: tuple[int, int, int], whole: bool, family: str
) -> None:
    total, done, steps = run
    if family == "flow":
        timesteps = [1000 * (1 - k / total) for k in range(total)]
        sigmas, training = [t / 1000 for t in timesteps], []
    else:
        timesteps = [float(round(999 * (1 - k / total))) for k in range(total)]
        sigmas, training = [SIGMAS[int(t)] for t in timesteps], SIGMAS
    new_timesteps, new_sigmas = respaced(timesteps, sigmas, done, steps, whole=whole, training=training)
    assert len(new_timesteps) == len(new_sigmas) == done + steps
    assert new_sigmas[: done + 1] == sigmas[: done + 1]  # the run stays at its noise level
    if not (whole and family == "flow"):
        assert new_timesteps[: done + 1] == timesteps[: done + 1]
    assert all(a > b for a, b in itertools.pairwise(new_timesteps[done:]))
    assert all(a > b for a, b in itertools.pairwise(new_sigmas[done:]))
    if family == "noise":
        on_curve = [read(SIGMAS, t) for t in new_timesteps]
        assert all(abs(log(a / b)) < 0.02 for a, b in zip(new_sigmas, on_curve, strict=True) if b > 0.05)


@given(runs())
def test_as_many_steps_as_there_were_are_the_old_schedule(run: tuple[int, int, int]) -> None:
    total, done, _ = run
    timesteps = [1000 * (1 - k / total) for k in range(total)]
    sigmas = [t / 1000 for t in timesteps]
    new_timesteps, new_sigmas = respaced(timesteps, sigmas, done, total - done, whole=False)
    assert new_timesteps == pytest.approx(timesteps)
    assert new_sigmas == pytest.approx(sigmas)
