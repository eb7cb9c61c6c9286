"""A method is a name for parts and defaults."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import hasten.caching
from hasten.caching import fits, predictors
from hasten.caching.methods import METHODS
from hasten.caching.prediction import KINDS, Moment
from hasten.caching.resolving import resolve
from hasten.errors import PlanError
from hasten.plan import Cache


def test_every_method_of_the_plan_exists_and_has_a_summary() -> None:
    assert get_args(Cache.model_fields["method"].annotation) == tuple(METHODS)
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
    where = Moment((8, 4), 10, (0.6, 0.8), 0.55)
    assert resolve({"coordinate": "index", "damping": 1}).weights(where) == (1.5, -0.5)
    assert resolve({"coordinate": "sigma", "damping": 1}).weights(where) == pytest.approx((1.25, -0.25))
    assert resolve({"coordinate": "sigma", "damping": 0.5}).weights(where) == pytest.approx((1.125, -0.125))
    assert resolve({"method": "reuse"}).weights(where) == (1.0,)


def test_the_published_recursion_forms_no_derivative_during_warm_up() -> None:
    settings = resolve({"predictor": "taylor", "order": 2, "first_enhance": 3})
    # At step 3 only the derivative of step 2 exists; from step 6 on there are two of them.
    assert settings.weights(Moment((2, 1, 0), 3, (0.9, 0.95, 1.0), 0.85)) == (2.0, -1.0, 0.0)
    assert settings.weights(Moment((6, 2, 1), 7, (0.6, 0.9, 0.95), 0.5))[2] != 0


def test_methods_are_listed_without_torch() -> None:
    code = "import sys; from hasten.caching import METHODS, resolve; resolve({}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("hicache", {"predictor": "hermite", "order": 2, "sigma_scale": 0.5, "interval": 7, "snapshots": 3}),
        ("foca", {"predictor": "foca", "coordinate": "index", "interval": 6, "snapshots": 3}),
        ("ab-cache", {"predictor": "ab2", "coordinate": "index", "snapshots": 3}),
        ("dmd", {"predictor": "dmd", "snapshots": 6}),
        ("spectrum", {"predictor": "chebyshev", "order": 4, "ridge": 0.1, "first_enhance": 5, "snapshots": 8}),
        ("freqca", {"predictor": "hermite", "order": 2, "low_order": 0, "cut": 0.1, "interval": 6, "snapshots": 3}),
        ("taylorcache", {"predictor": "taylor", "order": 2, "low_order": 1, "cut": 0.1, "snapshots": 3}),
    ],
)
def test_the_published_defaults(method: str, parts: dict[str, object]) -> None:
    settings = resolve({"method": method})
    assert {name: getattr(settings, name) for name in parts} == parts
    assert settings.damping == 1
    assert METHODS[method].paper


def test_the_methods_predict_what_their_formulas_say() -> None:
    moment = Moment((20, 14, 8), 22, (0.4, 0.6, 0.8), 0.35, total=50)
    steps = (moment.indices, moment.index)
    expected = {
        "hicache": predictors.hermite(*steps, 2, 0.5),
        "foca": predictors.foca(*steps),
        "ab-cache": predictors.ab2(*steps),
        "spectrum": fits.chebyshev(*steps, 50),
        "taylorcache": predictors.taylor(*steps, 2),
    }
    assert {name: resolve({"method": name}).weights(moment) for name in expected} == expected
    assert resolve({"method": "freqca"}).weights(moment) == expected["hicache"]
    assert resolve({"method": "freqca"}).low_weights(moment) == (1.0,)
    assert resolve({"method": "taylorcache"}).low_weights(moment) == predictors.taylor(*steps, 1)
    assert resolve({"method": "taylorcache", "low_order": 2}).low_weights(moment) is None
    assert resolve({"predictor": "foca"}).weights(moment) == predictors.foca(moment.places, moment.place)


def test_data_is_looked_at_only_by_those_that_need_it() -> None:
    asked = []

    def gram() -> list[list[float]]:
        asked.append(1)
        return [[float(i == j) for j in range(4)] for i in range(4)]

    moment = Moment((8, 6, 4, 2), 9, (0.4, 0.6, 0.7, 0.8), 0.35, gram=gram)
    for predictor in set(KINDS) - {"least_squares"}:  # its weights were found before the run
        probed = {"policy": "accumulate", "signal": "state", "threshold": 1} if predictor == "dcta" else {}
        resolve({"predictor": predictor, **probed}).weights(moment)
    assert len(asked) == 1
    resolve({"predictor": "poly", "trust": 0.25}).weights(moment)
    assert len(asked) == 2


def test_every_predictor_says_in_words_what_it_does() -> None:
    assert resolve({"method": "freqca"}).predictor_text == (
        "hermite of order 2 in index, low frequencies (up to 0.1) reused"
    )
    assert resolve({"predictor": "dmd", "trust": 0.25}).predictor_text == "dmd in index, trust 0.25"
    assert resolve({}).predictor_text == "poly of order 2 in sigma, damping 0.75"


# --- how much code it takes ---

HERE = Path(hasten.caching.__file__).parent
CORE = ("clock", "policies", "predictors", "prediction", "snapshots", "wiring", "passage", "sites", "spans")
ROOMS = ("methods", "predictors", "fits", "policies", "masks", "adaptive")
ENGINE = ("denoiser", "timetable", "serving", "fallback", "cache", "stack")


def code_lines(text: str) -> int:
    """Lines that are more than comment, docstring or nothing."""
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines, fresh = set[int](), True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in layout:
            fresh = fresh or token.type == tokenize.NEWLINE
        elif not (fresh and token.type == tokenize.STRING):
            lines |= set(range(token.start[0], token.end[0] + 1))
            fresh = False
    return len(lines)


def definitions(room: str) -> Iterator[tuple[str, int]]:
    """Names of functions and classes, and of entries in the table, with their lines of code."""
    text = (HERE / f"{room}.py").read_text("utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name.lower(), code_lines(ast.get_source_segment(text, node) or "")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Method":
            entry = ast.get_source_segment(text, node) or ""
            yield f"method {ast.literal_eval(node.keywords[0].value)}", code_lines(entry)


@pytest.fixture(scope="module")
def lines() -> dict[str, int]:
    return {name: count for room in ROOMS for name, count in definitions(room)}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_less_than_forty_lines_of_code(name: str, lines: dict[str, int]) -> None:
    method = METHODS[name]
    own = {method.predictor, method.policy} - {"interval"}  # which is in all of them
    assert lines[f"method {name}"] + sum(lines.get(part, 0) for part in own) < 40


def test_the_core_is_about_as_large_as_the_documentation_says() -> None:
    assert 1800 < sum(code_lines((HERE / f"{room}.py").read_text("utf-8")) for room in CORE + ENGINE) < 2200
