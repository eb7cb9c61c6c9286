"""Two reports: regressions beyond noise are flagged, noise is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.reports import PSNR, SECONDS, make
from hasten.bench.compare import compare_reports
from hasten.cli.main import app
from hasten.errors import HastenError

NOISE = [0.01, -0.012, 0.005]


def scaled(factor: float, name: str = "taylorseer") -> dict[str, list[float]]:
    return SECONDS | {name: [factor * s * (1 + e) for s, e in zip(SECONDS[name], NOISE, strict=True)]}


def verdicts(**more: object) -> tuple[str, ...]:
    changes = compare_reports(make(), make(**more)).changes  # type: ignore[arg-type]
    return next(change.verdicts for change in changes if change.variant == "taylorseer")


def test_the_same_report_has_not_changed() -> None:
    comparison = compare_reports(make(), make())
    assert not any(change.verdicts for change in comparison.changes)
    assert comparison.notes == ()


def test_noise_is_no_regression_and_half_the_speed_is() -> None:
    assert verdicts(seconds=scaled(1.0)) == ()
    assert verdicts(seconds=scaled(2.0)) == ("slower",)
    assert verdicts(seconds=scaled(0.5)) == ("faster",)


def test_a_slower_machine_is_noted_and_not_blamed_on_a_plan() -> None:
    slow = {name: [3 * s for s in seconds] for name, seconds in SECONDS.items()}
    comparison = compare_reports(make(), make(seconds=slow))
    assert not comparison.regressions
    assert any("the reference itself took 3.00 times as long" in note for note in comparison.notes)


def test_worse_images_are_flagged_however_fast() -> None:
    worse = PSNR | {"taylorseer": [x - 2 for x in PSNR["taylorseer"]]}
    assert verdicts(psnr=worse) == ("worse",)
    assert verdicts(psnr=PSNR | {"taylorseer": [x - 0.05 for x in PSNR["taylorseer"]]}) == ()
    assert verdicts(psnr=PSNR | {"taylorseer": [32.0, 31.0, 30.0]}) == ()  # better and worse by turns


def test_a_variant_that_no_longer_runs_is_a_regression() -> None:
    new = make()
    failed = new.variants[1].model_copy(update={"error": "gone"})
    new = new.model_copy(update={"variants": (new.variants[0], failed, new.variants[2])})
    assert [change.variant for change in compare_reports(make(), new).regressions] == ["taylorseer"]
    assert compare_reports(new, make()).changes[1].verdicts == ("runs again",)


def test_what_stands_in_the_way_is_noted() -> None:
    new = make()
    new = new.model_copy(
        update={
            "machine": new.machine.model_copy(update={"threads": 8}),
            "versions": {"torch": "3", "diffusers": "1"},
            "variants": new.variants[:2],
            "complete": False,
        }
    )
    notes = compare_reports(make(), new).notes
    assert notes == (
        "threads: 1 before, 8 now",
        "torch: 2 before, 3 now",
        "the second report was interrupted",
        "in one report only: fewer-steps 5",
    )


def test_other_models_cannot_be_compared() -> None:
    other = make()
    other = other.model_copy(update={"settings": other.settings.model_copy(update={"model": "another"})})
    with pytest.raises(HastenError, match="different models: some/model and another"):
        compare_reports(make(), other)


def test_the_command_exits_with_three_after_a_regression(tmp_path: Path) -> None:
    for name, factor in (("old", 1.0), ("same", 1.0), ("slow", 2.0)):
        (tmp_path / name).mkdir()
        make(seconds=scaled(factor)).save(tmp_path / name)
    same = CliRunner().invoke(app, ["compare", str(tmp_path / "old"), str(tmp_path / "same" / "report.json")])
    assert (same.exit_code, "nothing regressed" in same.stdout) == (0, True)
    slow = CliRunner().invoke(app, ["compare", str(tmp_path / "old"), str(tmp_path / "slow")])
    assert slow.exit_code == 3
    assert "slower" in slow.stdout
    assert "1 variant(s) regressed beyond noise" in slow.stdout
    document = CliRunner().invoke(app, ["compare", str(tmp_path / "old"), str(tmp_path / "slow"), "--json"])
    assert json.loads(document.stdout)["regressions"] == ["taylorseer"]
    missing = CliRunner().invoke(app, ["compare", str(tmp_path / "none"), str(tmp_path / "slow")])
    assert (missing.exit_code, "no such file" in missing.stderr) == (2, True)
