"""A benchmark of a tiny pipeline: what is measured, what is kept, and that somebody else would measure the same."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.metrics.networks import save_clip

import hasten
import prompted
from hasten.bench import Bench, BenchReport, benchmark
from hasten.bench.batches import more_bytes
from hasten.bench.machine import GpuWatch
from hasten.bench.run import Update
from hasten.bench.schema import read_report
from hasten.bench.summary import pairs
from hasten.bench.tables import overview
from hasten.errors import HastenError
from hasten.generation import Result, Session
from hasten.metrics.clip import Clip

PROMPTS = ["a red circle", "two squares"]
BASE = {"generation": {"num_inference_steps": 10, "width": 32, "height": 32}}
TWICE = {"cache": {"method": "taylorseer"}, "generation": {"height": 48}}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return prompted.qwen()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def report(pipe: Any, folder: Path) -> BenchReport:
    plain = folder / "output.yaml"  # reuse of the whole output: an arithmetic that anybody can write down
    plain.write_text("cache: {method: reuse, site: output}\n")
    plans = ["taylorseer", plain, TWICE]
    return benchmark(plans, PROMPTS, 2, 1, seeds=[4], base=BASE, pipe=pipe, out=folder)


def small(pipe: Any, out: Path | None = None, **settings: Any) -> Bench:
    return Bench(BASE, ["taylorseer"], PROMPTS, **{"rounds": 1, "pipe": pipe, "out": out} | settings)


def test_every_variant_makes_every_image_in_every_round(report: BenchReport) -> None:
    names = [variant.name for variant in report.variants]
    assert names[:4] == ["reference", "taylorseer", "output", "taylorseer (2)"]
    assert report.complete
    for name in names:
        made = [(sample.round, sample.prompt, sample.seed) for sample in report.of(name)]
        assert sorted(made) == [(0, 0, 4), (0, 1, 4), (1, 0, 4), (1, 1, 4)]


def test_the_plain_pipeline_at_as_many_steps_stands_beside_every_plan(report: BenchReport) -> None:
    computed = {s.computed for s in report.summary if report.variant(s.variant).kind == "plan"}
    plain = {v.name: v.plan.generation.num_inference_steps for v in report.variants if v.kind == "fewer-steps"}
    assert plain == {f"fewer-steps {count}": count for count in computed}
    for summary in report.summary:
        if summary.variant in plain:
            assert (summary.computed, summary.skipped) == (plain[summary.variant], 0)
            assert summary.psnr is not None
            assert report.variant(summary.variant).comparable


def test_another_size_is_shown_without_quality_and_not_comparable(report: BenchReport) -> None:
    variant = report.variant("taylorseer (2)")
    assert variant.differs == ("height 48 instead of 32",)
    assert all(sample.quality is None for sample in report.of(variant.name))


def test_a_clip_model_scores_what_was_made_by_its_own_forward(pipe: Any, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    found = small(pipe, tmp_path / "out", clip=tmp_path / "clip").run()
    own = Clip(tmp_path / "clip")
    for sample in found.samples:
        assert sample.image is not None
        image = Image.open(tmp_path / "out" / sample.image)
        assert sample.clip == pytest.approx(own.score(image, PROMPTS[sample.prompt]), abs=0.5)  # PNGs are bytes
    table = overview(found)
    assert table.head[-2] == "CLIP score"
    assert {len(row) for row in table.rows} == {len(table.head)}
    means = {one.variant: one.clip for one in found.summary}
    assert means["reference"] == pytest.approx(np.mean([one.clip for one in found.of("reference")]))


def test_figures_are_those_of_the_samples(report: BenchReport) -> None:
    slow, fast = pairs(report, "taylorseer")
    summary = next(summary for summary in report.summary if summary.variant == "taylorseer")
    assert summary.speedup == pytest.approx(float(np.exp(np.median(np.log(slow) - np.log(fast)))))
    assert summary.speedup_low is not None
    assert summary.speedup_high is not None
    assert summary.speedup_low <= summary.speedup <= summary.speedup_high
    assert list(summary.latencies) == fast
    assert summary.median == pytest.approx(float(np.median(fast)))
    assert summary.p90 == pytest.approx(float(np.quantile(fast, 0.9)))
    assert summary.images == 4


def test_the_timeline_says_which_steps_were_computed(report: BenchReport) -> None:
    steps = report.variant("taylorseer").steps
    assert len(steps) == 10
    assert sum(step.computed for step in steps) == report.variant("taylorseer").computed
    assert all(step.seconds >= 0 for step in steps)
    assert all(step.computed for step in report.variant("reference").steps)


def test_the_report_is_read_as_it_was_written(report: BenchReport, folder: Path) -> None:
    assert read_report(folder) == read_report(folder / "report.json") == report
    assert {s.image is not None for s in report.samples if s.round == 0} == {True}
    for sample in report.samples:
        if sample.image is not None:
            with Image.open(folder / sample.image) as image:
                assert image.width == 32


def test_an_independent_script_finds_the_same_numbers(report: BenchReport) -> None:
    """Diffusers alone, a cache written out in a line, and PSNR by its formula: nothing of hasten's."""
    pipe = prompted.qwen()
    transformer = pipe.transformer
    forward = transformer.forward
    plan = report.variant("output").plan
    steps = plan.generation.num_inference_steps

    def call(prompt: str) -> np.ndarray:
        generator = torch.Generator().manual_seed(4)
        more = {"negative_prompt": " ", "output_type": "np", "generator": generator}
        return pipe(prompt, num_inference_steps=steps, width=32, height=32, **more).images[0].astype(np.float64)

    def skipping(prompt: str, computed: set[int]) -> tuple[np.ndarray, int]:
        kept: dict[str, Any] = {}
        counts = {"calls": 0, "computed": 0}

        def reusing(hidden_states: torch.Tensor, **more: Any) -> Any:
            step, branch = counts["calls"] // 2, str(counts["calls"] % 2)
            counts["calls"] += 1
            if step in computed:
                counts["computed"] += 1
                kept[branch] = forward(hidden_states=hidden_states, **more)
            return kept[branch]

        transformer.forward = reusing
        try:
            return call(prompt), counts["computed"] // 2
        finally:
            transformer.forward = forward

    done = {0, 1, 2, *range(6, 10, 4), 9}  # first_enhance 3, interval 4, cooldown 1
    for number, prompt in enumerate(PROMPTS):
        image, computed = skipping(prompt, done)
        error = float(np.mean((image - call(prompt)) ** 2))
        sample = next(s for s in report.of("output") if s.prompt == number)
        assert sample.computed == computed
        assert sample.quality is not None
        assert sample.quality.psnr == pytest.approx(-10 * math.log10(error), abs=0.01)


def test_orders_change_so_that_no_variant_is_always_first(pipe: Any) -> None:
    told: list[Update] = []
    bench = small(pipe, rounds=2, progress=told.append)
    bench.run()
    labels = [update.label for update in told if not update.label.startswith("warm-up")]
    size = len(bench.report.variants)
    orders = {tuple(labels[at : at + size]) for at in range(0, len(labels), size)}
    assert len(orders) > 1
    assert {order[0] for order in orders} != {"reference"}
    assert [update.done for update in told][-1] == len(bench.report.samples) - 1


def test_three_timings_are_the_default(pipe: Any) -> None:
    assert small(pipe, rounds=None).settings.rounds == 2
    assert small(pipe, rounds=None, seeds=[0, 1]).settings.rounds == 1


def test_an_interrupt_keeps_what_is_measured_and_resume_measures_the_rest(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Session.run
    runs = {"left": 2 + 4}  # the warm-ups of two, three variants for the first prompt, one for the second

    def interrupted(self: Session, *arguments: Any, **more: Any) -> Result:
        if not runs["left"]:
            raise KeyboardInterrupt
        runs["left"] -= 1
        return original(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "run", interrupted)
        bench = small(pipe, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            bench.run()
    kept = read_report(tmp_path)
    assert (kept.complete, len(kept.samples)) == (False, 4)
    assert len(kept.summary) == 3

    with monkeypatch.context() as patch:  # again, and during the warm-up: nothing may be lost
        patch.setattr(Session, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small(pipe, tmp_path, previous=kept).run()
    assert read_report(tmp_path).samples == kept.samples

    whole = small(pipe, tmp_path, previous=kept).run()
    assert (whole.complete, len(whole.samples), whole.sessions) == (True, 6, 2)
    first = [sample for sample in kept.samples if sample.prompt == 0]
    assert [sample for sample in whole.samples if sample.prompt == 0] == first


def test_resume_refuses_another_benchmark(pipe: Any, report: BenchReport) -> None:
    with pytest.raises(HastenError, match="same benchmark only") as caught:
        small(pipe, previous=report)
    for word in ("seeds", "rounds", "variants that differ: output, taylorseer (2)"):
        assert word in str(caught.value)


def test_a_variant_that_fails_is_listed_with_its_error(pipe: Any) -> None:
    bench = small(pipe)
    bench._candidates = [
        *bench._candidates,
        *Bench(BASE, [{"cache": "reuse", "precision": "bf16"}], PROMPTS, pipe=pipe)._candidates[1:],
    ]
    found = bench.run()
    assert "keeps its dtype" in (found.variant("reuse").error or "")
    assert not found.of("reuse")
    assert found.of("taylorseer")


def test_a_pipeline_that_was_given_is_left_as_it_was(pipe: Any) -> None:
    assert not pipe.vae.use_slicing
    sliced = {"memory": {"vae_slicing": True}}
    found = benchmark(sliced, PROMPTS[0], 1, 0, base=BASE, pipe=pipe)
    assert found.variants[1].error is None
    assert not pipe.vae.use_slicing


def test_a_plan_that_skips_nothing_equals_the_reference(pipe: Any) -> None:
    found = benchmark({"cache": {"method": "reuse", "interval": 1}}, PROMPTS[0], 1, 0, base=BASE, pipe=pipe)
    summary = found.summary[1]
    assert (summary.psnr, summary.identical, summary.skipped) == (None, 1, 0)
    assert [variant.kind for variant in found.variants] == ["reference", "plan"]
    assert any("fewer than 3 timings" in note for note in found.notes)


def test_batches_are_measured_until_memory_ends(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Session.run

    def small_memory(self: Session, *arguments: Any, batch: int = 1, **more: Any) -> Result:
        if batch >= 3 and self.plan.cache is not None:
            raise HastenError("cpu ran out of memory") from torch.OutOfMemoryError()
        return original(self, *arguments, batch=batch, **more)

    monkeypatch.setattr(Session, "run", small_memory)
    found = small(pipe, batch_sizes=[4, 1, 3]).run().batches
    assert [(one.variant, one.size, len(one.seconds), one.error) for one in found] == [
        ("reference", 1, 3, None),
        ("taylorseer", 1, 3, None),
        ("reference", 3, 3, None),
        ("taylorseer", 3, 0, "out of memory"),
        ("reference", 4, 3, None),
        ("taylorseer", 4, 0, "a smaller batch failed already"),
    ]


def test_images_of_a_batch_are_those_that_are_made_alone(pipe: Any) -> None:
    plan = hasten.load_plan(BASE)
    session = Session.open(plan, PROMPTS, pipe=pipe)
    alone, together = session.run(PROMPTS[0], 7), session.run(PROMPTS[0], 7, batch=2)
    assert torch.allclose(alone.pixels, together.pixels, atol=1e-4)


def test_memory_of_a_larger_batch_is_foreseen_by_a_line() -> None:
    assert more_bytes([(1, 100)], 4) == 0
    assert more_bytes([(1, 100), (2, 130), (4, 190)], 8) == 120
    assert more_bytes([(1, 100), (2, 90)], 8) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "one round"),
        ({"warmup": -1}, "negative"),
        ({"seeds": []}, "seed"),
        ({"batch_sizes": [0]}, "batch"),
    ],
)
def test_what_cannot_be_is_refused(pipe: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(HastenError, match=message):
        small(pipe, **settings)


def test_a_drivers_answers_are_read_and_its_refusals_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.ModuleType("pynvml")
    energies = iter([1000.0, 3500.0])

    def refuse(gpu: Any) -> float:
        raise RuntimeError("not supported")

    library.__dict__.update(
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "570.1",
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetPowerUsage=lambda gpu: 250_000,
        nvmlDeviceGetUtilizationRates=refuse,
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: next(energies),
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    properties = types.SimpleNamespace(uuid="1-2-3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    watch = GpuWatch(torch.device("cuda", 0))
    with watch:
        pass
    assert watch.driver == "570.1"
    assert watch.reading is not None
    assert (watch.reading.power, watch.reading.utilisation, watch.reading.energy) == (250.0, None, 2.5)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install 'hasten[bench]'" in (GpuWatch(torch.device("cuda", 0)).note or "")
    with GpuWatch(torch.device("cpu")) as nothing:
        pass
    assert nothing.reading is None
