"""Recovery: what the unpruned model says is learned, and a run that was stopped goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from hasten.errors import HastenError
from hasten.models import bundled_folder
from hasten.prune.recovery import Recovery, distillation_loss, recipe_of, recover
from hasten.zoo.denoiser_data import Batch
from hasten.zoo.qwen import Qwen


def test_a_pipeline_with_the_parts_of_a_bundled_one_has_its_recipe(tmp_path: Path) -> None:
    assert recipe_of(bundled_folder() / "scenes-qwen") == "scenes-qwen"
    assert recipe_of(bundled_folder() / "scenes-sd") == "scenes-sd"
    folder = tmp_path / "other"
    folder.mkdir()
    shutil.copy(bundled_folder() / "scenes-qwen" / "model_index.json", folder)
    with pytest.raises(HastenError, match="cannot be recovered here"):
        recipe_of(folder)


def test_a_model_that_says_the_same_has_nothing_to_learn() -> None:
    family = Qwen()
    model = family.build_denoiser(64, 4)
    dressed = family.training_denoiser(model, torch.float32)
    batch = Batch(
        torch.randn(2, 16, 16), torch.randn(2, 8, 128), torch.ones(2, 8, dtype=torch.bool),
        torch.ones(2, dtype=torch.bool), torch.zeros(2, 16, dtype=torch.long),
    )  # fmt: skip
    loss, figures = distillation_loss(family, dressed, dressed, batch, 0.0)
    assert loss.item() == figures["apart"] == 0
    assert figures["loss"] > 0


def test_a_few_steps_bring_a_pruned_model_nearer_and_go_on_where_they_stopped(tmp_path: Path) -> None:
    original = bundled_folder() / "scenes-qwen"
    pruned = tmp_path / "pruned"
    shutil.copytree(original, pruned)
    config = pruned / "transformer" / "config.json"
    before = config.read_bytes()
    work = tmp_path / "work"
    recover(pruned, original, work, Recovery(steps=2, batch=2, every=1, quiet=True))
    recover(pruned, original, work, Recovery(steps=3, batch=2, every=1, quiet=True))
    rows = (work / "recovery.csv").read_text().splitlines()
    assert rows[0].startswith("step,")
    assert rows[-1].startswith("3,")
    assert json.loads(config.read_bytes())["num_layers"] == json.loads(before)["num_layers"]
