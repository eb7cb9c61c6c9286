"""Watching a run from outside changes nothing and adds up."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

import tiny
from hasten import stages
from hasten.stages import StageWatch

CPU = torch.device("cpu")


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(stages, "time", fake)
    return fake


class Scheduler:
    """Ten steps that do nothing."""

    timesteps: list[int]

    def set_timesteps(self, count: int, sigmas: object = None) -> None:
        self.timesteps = list(range(count))

    def step(self, output: torch.Tensor, timestep: int, sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (sample + output,)


class Pipe:
    """A pipeline whose stages take known times."""

    def __init__(self, sleep: Callable[[float], None] = lambda seconds: None) -> None:
        self.scheduler = Scheduler()
        self.vae = SimpleNamespace(decode=lambda latents: sleep(4))
        self.sleep = sleep

    def encode_prompt(self) -> None:
        self.sleep(2)

    def __call__(self, steps: int = 10, text_late: bool = False) -> None:
        if not text_late:
            self.encode_prompt()
        self.scheduler.set_timesteps(steps)
        if text_late:
            self.encode_prompt()
        sample = torch.zeros(1)
        for timestep in self.scheduler.timesteps:
            self.sleep(1)
            sample = self.scheduler.step(torch.ones(1), timestep, sample)[0]
        self.vae.decode(sample)


@pytest.mark.parametrize("text_late", [False, True])
def test_stages_are_timed_apart_whatever_their_order(clock: FakeTime, text_late: bool) -> None:
    pipe = Pipe(clock.sleep)
    with StageWatch(pipe, CPU) as watch:
        clock.sleep(0.5)
        pipe(text_late=text_late)
    times = watch.timings()
    assert (times.text, times.denoise, times.decode, times.other, times.total) == (2, 10, 4, 0.5, 16.5)
    assert times.per_step == 1


def test_steps_are_told_as_they_happen() -> None:
    pipe, told = Pipe(), []
    watch = StageWatch(pipe, CPU, lambda: told.append((watch.steps_done, watch.steps_total)))
    with watch:
        pipe(steps=3)
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert watch.latents == torch.full((1,), 3.0)


def test_a_pipeline_without_known_stages_is_still_timed(clock: FakeTime) -> None:
    with StageWatch(SimpleNamespace(), CPU) as watch:
        clock.sleep(3)
    times = watch.timings()
    assert times.total == times.other == 3
    assert times.text == times.denoise == times.decode == 0


def test_signatures_stay_visible_while_watching() -> None:
    pipe = Pipe()
    with StageWatch(pipe, CPU):
        assert "sigmas" in inspect.signature(pipe.scheduler.set_timesteps).parameters


def test_everything_is_put_back_also_after_an_error() -> None:
    pipe = tiny.qwen()
    before = [dict(vars(part)) for part in (pipe, pipe.scheduler, pipe.vae)]
    watch = StageWatch(pipe, CPU)
    with pytest.raises(ValueError, match="same length"), watch:
        pipe.scheduler.set_timesteps(3, sigmas=[1.0])
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    after = [dict(vars(part)) for part in (pipe, pipe.scheduler, pipe.vae)]
    assert [list(part) for part in after] == [list(part) for part in before]


def test_a_method_that_was_replaced_before_is_put_back_as_it_was() -> None:
    pipe = Pipe()
    own = pipe.vae.decode
    with StageWatch(pipe, CPU):
        assert pipe.vae.decode is not own
    assert pipe.vae.decode is own


def test_watching_changes_no_image() -> None:
    pipe = tiny.qwen()
    plain = pipe(**tiny.qwen_call(steps=4)).images
    with StageWatch(pipe, CPU) as watch:
        watched = pipe(**tiny.qwen_call(steps=4)).images
    assert torch.equal(watched, plain)
    assert torch.equal(watch.latents, plain)
    assert (watch.steps_done, watch.steps_total) == (4, 4)
