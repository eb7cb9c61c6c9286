"""Recover a pruned bundled model: it learns from the unpruned one, on scenes drawn anew.

The recipe is that of the bundled models (optimizer, bfloat16 working copy, running mean); what is learned is what the
unpruned denoiser says of the same noisy latents (knowledge distillation: Hinton et al. 2015, arXiv 1503.02531; for
pruned denoisers Kim et al. 2023, arXiv 2305.15798).
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hasten.errors import HastenError
from hasten.metrics.scenes import read, score
from hasten.models import bundled_folder, bundled_models
from hasten.zoo.denoiser_data import Batch, Data
from hasten.zoo.evaluation import held_out_prompts, summary
from hasten.zoo.family import NATIVE_SIZE, Family, TrainingDenoiser
from hasten.zoo.recipe import FAMILIES, RECIPES
from hasten.zoo.scenes import VOCABULARIES
from hasten.zoo.train_denoiser import Trainer, sample
from hasten.zoo.training import LossCurve, Run, flat_then_linear


@dataclass(frozen=True)
class Recovery:
    """How a pruned model is trained.

    Attributes:
        steps: updates.
        batch: scenes in each.
        rate: of the learning rates of the model's recipe.
        task: weight of the error against the true target beside that against the unpruned model.
        decay: share of the steps over which the rate falls to nothing.
        looks: held-out prompts that are drawn and scored at checkpoints, for `looks.csv`; 0 for none.
        every: steps between checkpoints.
    """

    steps: int = 1000
    batch: int = 32
    rate: float = 0.5
    task: float = 0.1
    decay: float = 0.7
    looks: int = 0
    every: int = 100
    device: str = "cpu"
    seed: int = 0
    compiled: bool = False
    quiet: bool = False


def recipe_of(folder: Path) -> str:
    """The bundled model whose recipe a pipeline's folder can be trained with: that with the same classes and tokens.

    Raises:
        HastenError: there is none.
    """
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    for name in bundled_models():
        mine = bundled_folder() / name
        same = json.loads((mine / "model_index.json").read_text("utf-8"))
        files = [f"{part}/config.json" for part in ("vae", "text_encoder")]
        if name in FAMILIES and index.get("_class_name") == same.get("_class_name"):
            configs = [(_config(folder / file), _config(mine / file)) for file in files]
            if all(a is not None and a == b for a, b in configs):
                return name
    raise HastenError(
        f"{folder} cannot be recovered here: hasten can train what shares its autoencoder and text encoder with a "
        f"bundled model ({', '.join(FAMILIES)}), since it draws their scenes"
    )


def recover(pruned: Path, original: Path, work: Path, recovery: Recovery) -> Path:
    """Train the denoiser of a pruned pipeline on what the original says; its folder then holds the running mean.

    Interrupt it when you like: the same call goes on from the last checkpoint in `work`.

    Args:
        pruned, original: diffusers folders of one recipe; the first is written to.
        work: checkpoints, `recovery.csv` and `looks.csv`.

    Returns:
        The pruned pipeline's folder.

    Raises:
        HastenError: no recipe fits.
    """
    name = recipe_of(original)
    family = FAMILIES[name]
    kind = type(family.build_denoiser())
    kept = kind.from_pretrained(pruned / family.denoiser_folder)
    dtype = next(kept.parameters()).dtype
    student, teacher = kept.float(), kind.from_pretrained(original / family.denoiser_folder).float()
    data = _data(original, family, name, recovery)
    trainer = _Distiller(family, work, student, teacher, recovery)
    run = Run("recovery", work, recovery.steps, trainer, (10, recovery.every), quiet=recovery.quiet)
    prompts, curve = held_out_prompts(recovery.looks), LossCurve(work / "looks.csv")
    mean: dict[str, float] = {}
    began = time.perf_counter()
    for step in run:
        factor = recovery.rate * flat_then_linear(step, recovery.steps, decay=recovery.decay)
        for key, value in trainer.update(data.next(recovery.batch, NATIVE_SIZE), factor, 0.0).items():
            mean[key] = value if key not in mean else 0.95 * mean[key] + 0.05 * value
        run.note(seconds=time.perf_counter() - began, **mean)
        if prompts and run.due(step + 1):
            pixels = sample(trainer.ema, data, prompts, NATIVE_SIZE)
            scores = [score(prompt, read((image + 1) / 2)) for prompt, image in zip(prompts, pixels, strict=True)]
            curve.add({"step": step + 1, **summary(scores)})
    model = kind.from_config(student.config)
    model.load_state_dict(trainer.ema.model.state_dict())
    model.to(dtype).save_pretrained(pruned / family.denoiser_folder)
    return pruned


class _Distiller(Trainer):
    """A trainer whose target is what another denoiser says."""

    def __init__(self, family: Family, folder: Path, student: Any, teacher: Any, recovery: Recovery) -> None:
        weights = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        super().__init__(family, folder, recovery.device, recovery.seed, student, recovery.compiled)
        for kept in (self.master, self.ema):  # the working copy is rounded, these are not
            kept.model.load_state_dict(weights)
        self._sync()
        self._teacher = family.training_denoiser(teacher).to(recovery.device).eval().requires_grad_(False)
        if recovery.compiled:
            self._teacher.compile_blocks()
        self._task = recovery.task

    def loss(self, batch: Batch, emphasis: float) -> tuple[torch.Tensor, dict[str, float]]:
        """Squared error against the unpruned model, and a little of that against the truth."""
        return distillation_loss(self.family, self.worker, self._teacher, batch, self._task)


def distillation_loss(
    family: Family, student: TrainingDenoiser, teacher: TrainingDenoiser, batch: Batch, task: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """‖student − teacher‖² + task · ‖student − target‖² on the same noisy latents."""
    noised = family.add_noise(batch.latents)
    with torch.no_grad():
        taught, _ = teacher(noised.noisy, noised.level, batch.text, batch.mask)
    said, probe = student(noised.noisy, noised.level, batch.text, batch.mask)
    apart = (said - taught).square().mean()
    error = (said - noised.target).square().mean()
    # The probe of the recipe is not used; it has to have a gradient all the same.
    return apart + task * error + 0.0 * probe.sum(), {"apart": apart.item(), "loss": error.item()}


def _data(folder: Path, family: Family, name: str, recovery: Recovery) -> Data:
    tokenizer, encoder, vae = family.load_parts(folder)
    encoder, vae = (part.float().to(recovery.device).requires_grad_(False) for part in (encoder, vae))
    vocabulary = replace(VOCABULARIES["full"], white=RECIPES[name].white)
    seed = recovery.seed + random.SystemRandom().randrange(2**20)  # a resumed run sees new scenes
    return Data(family, tokenizer, encoder, vae, vocabulary, seed, recovery.device, recovery.compiled)


def _config(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    config: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return {key: value for key, value in config.items() if not key.startswith("_") and "dtype" not in key}
