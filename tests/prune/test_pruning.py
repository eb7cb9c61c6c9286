"""A pruned model is an ordinary one: smaller, saved and loaded by diffusers; what is left computes as before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import prompted
import tiny
from denoisers import CASES
from hasten.errors import HastenError
from hasten.generation import Session
from hasten.prune import Goal, Pruned, prune, pruning
from hasten.prune.blocks import leave_out, without
from hasten.prune.calls import Call, call_again, effect, record
from hasten.prune.diff_pruning import gather_gradients
from hasten.prune.pruning import save
from hasten.prune.siblings import depths_of, part_of, shapes_of
from hasten.prune.widths import narrow, narrowed

PLAN = {"generation": {"width": 32, "height": 32, "num_inference_steps": 4, "true_cfg_scale": 3.0}}


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.open(PLAN, ["a", "b"], pipe=prompted.qwen(blocks=6))


@pytest.fixture(scope="module")
def pruned(session: Session) -> Pruned:
    return prune(session, Goal(0.3, steps=3))


def test_a_run_is_kept_call_by_call(session: Session) -> None:
    calls = record(session, session.pipe.transformer, 0, 3)
    assert [call.step for call in calls] == [0, 0, 1, 1, 2, 2] * 2
    assert effect(session.pipe.transformer, calls) == 0


def test_blocks_go_until_the_goal_is_reached(session: Session, pruned: Pruned) -> None:
    assert pruned.left["macs"] <= 0.7
    assert pruned.changed["num_layers"][1] == 6 - len(pruned.gone["transformer_blocks"])
    assert session.pipe.transformer.config.num_layers == 6
    assert len(session.pipe.transformer.transformer_blocks) == 6


def test_what_is_left_computes_what_it_computed_without_them(session: Session, pruned: Pruned) -> None:
    model = session.pipe.transformer
    call = record(session, model, 0, 1)[0]
    gone = {path: frozenset(members) for path, members in pruned.gone.items()}
    with without(model, gone), torch.no_grad():
        expected = call_again(model, call)
    assert torch.equal(call_again(pruned.model, call), expected)


def test_the_block_without_which_least_is_lost_goes_first(session: Session) -> None:
    model = session.pipe.transformer
    calls = record(session, model, 0, 2)[:2]
    errors = {}
    for index in range(6):
        with without(model, {"transformer_blocks": frozenset({index})}):
            errors[index] = effect(model, calls)
    depths = depths_of(part_of("transformer", model))
    choice = leave_out(model, depths, calls, lambda gone: 1 - len(gone["transformer_blocks"]) / 6, 0.9)
    assert choice.gone == {"transformer_blocks": frozenset({min(errors, key=errors.__getitem__)})}


def test_the_folder_is_an_ordinary_one(session: Session, pruned: Pruned, tmp_path: Path) -> None:
    folder = save(session, pruned, tmp_path / "pruned")
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    state = pruned.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in pipe.transformer.state_dict().items())
    with pytest.raises(HastenError, match="is there already"):
        save(session, pruned, folder)


def test_parameters_can_be_the_goal(session: Session) -> None:
    assert prune(session, Goal(0.1, cost="parameters", steps=1)).left["parameters"] <= 0.9


def test_time_can_be_the_goal(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]  # the clock of this test: a block takes a second, and all else no time

    def tick(*_: Any) -> None:
        calls[0] += 1

    hooks = [block.register_forward_hook(tick) for block in session.pipe.transformer.transformer_blocks]
    monkeypatch.setattr(pruning, "time", SimpleNamespace(perf_counter=lambda: float(calls[0])))
    told: list[str] = []
    try:
        found = prune(session, Goal(0.3, cost="time", steps=1), told=told.append)
    finally:
        for hook in hooks:
            hook.remove()
    assert [len(members) for members in found.gone.values()] == [2]
    assert "83.3% of time left" in told[0]
    assert "66.7% of time left" in told[1]


def test_what_cannot_be_asked_for_is_said(session: Session) -> None:
    with pytest.raises(HastenError, match="between 0 and 1"):
        Goal(1.5)
    with pytest.raises(HastenError, match="is for widths"):
        Goal(importance="taylor")
    with pytest.raises(HastenError, match="no further block can be left out"):
        prune(session, Goal(0.99, steps=1))
    with pytest.raises(HastenError, match="has the denoisers transformer"):
        prune(session, Goal(), "unet")


def test_gradients_come_from_timesteps_whose_loss_says_something(session: Session) -> None:
    model = session.pipe.transformer
    calls = record(session, model, 0, 4)
    try:
        few = gather_gradients(model, session.pipe.scheduler, calls, 0.9, 0)
        assert 0 < few < len(calls)
        assert gather_gradients(model, session.pipe.scheduler, calls, 0.0, 0) == len(calls)
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    finally:
        model.requires_grad_(False).zero_grad(set_to_none=True)


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_a_unet_becomes_narrower(importance: str) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    session = Session.open(PLAN | {"generation": {"width": 64, "height": 64}}, "a", pipe=prompted.stable_diffusion())
    found = prune(session, Goal(0.2, what="widths", importance=importance, steps=2))  # type: ignore[arg-type]
    assert found.left["macs"] <= 0.8
    assert "block_out_channels" in found.changed
    assert type(found.model).from_config(found.model.config).load_state_dict(found.model.state_dict())
    assert tiny.stable_diffusion().unet.config.block_out_channels != found.model.config.block_out_channels


def test_a_feed_forward_becomes_narrower_alone() -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    case = CASES["WanTransformer3DModel"]
    model, arguments = case.build("WanTransformer3DModel"), case.arguments(0, 4)
    with torch.no_grad():
        call = Call((), arguments, model(**arguments).sample, 0, torch.tensor(0))
    part = part_of("transformer", model)
    less = narrowed(part, lambda trial: shapes_of(trial)["blocks.0.ffn.net.2.weight"][1] / 32, 0.8, only=["ffn_dim"])
    made = narrow(model, less, [call], gradients=False)
    assert made.config.ffn_dim == less.config["ffn_dim"] < 32
    assert 0 < effect(made, [call]) < 1
    with pytest.raises(HastenError, match=r"num_layers is no width of its configuration; widths: .*ffn_dim"):
        narrowed(part, lambda trial: 0.5, 0.8, only=["num_layers"])
