"""A method is a name for parts and defaults."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hasten.caching.methods import METHODS, resolve
from hasten.errors import PlanError
from hasten.plan import Cache


def test_every_method_of_the_plan_exists_and_has_a_summary() -> None:
    for name in METHODS:
        assert Cache(method=name).method == name  # type: ignore[arg-type]
        assert METHODS[name].name == name
        assert METHODS[name].summary


def test_defaults_fill_what_the_plan_leaves_open() -> None:
    settings = resolve(Cache())
    assert (settings.interval, settings.order, settings.first_enhance, settings.cooldown) == (4, 2, 3, 1)
    assert (settings.site, settings.predictor, settings.coordinate) == ("residual", "poly", "sigma")
    assert (settings.snapshots, settings.damping) == (3, 0.75)
    assert not settings.site_given
    assert resolve({"method": "reuse"}).snapshots == 1


def test_what_is_given_stays() -> None:
    settings = resolve(Cache(interval=6, order=1, site="output", damping=0.75, snapshots=4, size=1.5))
    assert (settings.interval, settings.order, settings.site, settings.site_given) == (6, 1, "output", True)
    assert (settings.damping, settings.snapshots, settings.size) == (0.75, 4, 1.5)


def test_another_predictor_than_the_methods_own_brings_its_order() -> None:
    assert resolve({"method": "reuse", "predictor": "poly"}).order == 1
    assert resolve({"predictor": "reuse"}).order == 0
    taylor = resolve({"predictor": "taylor"})
    assert (taylor.order, taylor.coordinate, taylor.damping) == (1, "index", 1)
    assert resolve({"predictor": "taylor", "order": 0}).order == 0


def test_a_misspelt_key_is_refused() -> None:
    with pytest.raises(PlanError, match="interval"):
        resolve({"intervall": 4})


def test_weights_know_their_coordinate() -> None:
    where = ((8, 4), 10, (0.6, 0.8), 0.55)
    assert resolve({"coordinate": "index", "damping": 1}).weights(*where) == (1.5, -0.5)
    assert resolve({"coordinate": "sigma", "damping": 1}).weights(*where) == pytest.approx((1.25, -0.25))
    assert resolve({"coordinate": "sigma", "damping": 0.5}).weights(*where) == pytest.approx((1.125, -0.125))
    assert resolve({"method": "reuse"}).weights(*where) == (1.0,)


def test_the_published_recursion_forms_no_derivative_during_warm_up() -> None:
    settings = resolve({"predictor": "taylor", "order": 2, "first_enhance": 3})
    # At step 3 only the derivative of step 2 exists; from step 6 on there are two of them.
    assert settings.weights((2, 1, 0), 3, (0.9, 0.95, 1.0), 0.85) == (2.0, -1.0, 0.0)
    assert settings.weights((6, 2, 1), 7, (0.6, 0.9, 0.95), 0.5)[2] != 0


def test_methods_are_listed_without_torch() -> None:
    code = "import sys; from hasten.caching import METHODS, resolve; resolve({}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
