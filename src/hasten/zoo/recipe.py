"""The whole recipe of a bundled model: autoencoder, text encoder, denoiser, and the pipeline folder they end in."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import tempfile
import threading
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from hasten.errors import HastenError
from hasten.metrics.scenes import read, score
from hasten.zoo.denoiser_data import Data
from hasten.zoo.evaluation import held_out_prompts, summary
from hasten.zoo.family import Family
from hasten.zoo.qwen import Qwen
from hasten.zoo.scenes import VOCABULARIES
from hasten.zoo.sd import StableDiffusion
from hasten.zoo.train_denoiser import Schedule, Trainer, sample, train_denoiser
from hasten.zoo.train_text import train_text
from hasten.zoo.train_vae import polish_decoder, train_vae
from hasten.zoo.training import LossCurve, place

FAMILIES: dict[str, Family] = {"scenes-qwen": Qwen(), "scenes-sd": StableDiffusion()}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run. The defaults are for two CPU cores; see docs/training.md.

    `width` and `layers` are the denoiser's; None for the family's own. `looks` held-out prompts are drawn and scored
    at every checkpoint, for `looks.csv`; 0 for none. `white`: how much likelier the denoiser sees a white background
    than a black one, or a gray one. `finish_steps`: of the decoder on what the trained denoiser predicts.
    """

    family: str = "scenes-qwen"
    vocabulary: str = "full"
    white: float = 4.0
    vae_steps: int = 1400
    vae_batch: int = 24
    decoder_steps: int = 600
    finish_steps: int = 0
    text_steps: int = 750
    text_batch: int = 96
    denoiser: Schedule = field(default_factory=Schedule)
    width: int | None = None
    layers: int | None = None
    decay: float = 0.35
    workers: int = 2
    device: str = "cpu"
    seed: int = 0
    compiled: bool = True
    looks: int = 40

    @classmethod
    def for_device(cls, family: str, device: str, workers: int | None = None) -> Recipe:
        """The recipe for a kind of device: one worker per core on CPU, large batches and a longer run elsewhere.

        Raises HastenError for a family that has no recipe.
        """
        if family not in RECIPES:
            raise HastenError(f"no recipe for {family!r}; there is one for: {', '.join(RECIPES)}")
        if device == "cpu":
            return replace(RECIPES[family], workers=workers or min(4, os.cpu_count() or 1))
        schedule = RECIPES[family].denoiser
        low_steps = 8000 if schedule.low_steps else 0
        return replace(
            RECIPES[family],
            vae_steps=4000,
            vae_batch=128,
            decoder_steps=2000,
            text_steps=3000,
            text_batch=512,
            workers=1,
            device=device,
            denoiser=Schedule(low_steps, high_steps=16000 - low_steps, low_batch=768, high_batch=256),
        )


RECIPES = {
    "scenes-qwen": Recipe(),
    "scenes-sd": Recipe(
        family="scenes-sd",
        vae_steps=800,
        decoder_steps=400,
        finish_steps=250,
        denoiser=Schedule(low_steps=0, high_steps=1950, high_batch=48),
        white=2.0,
        decay=0.62,
        looks=16,
    ),
}


def train(folder: Path, recipe: Recipe, quiet: bool = False) -> Path:
    """Run every stage that is not finished, then write the diffusers folder `folder/pipeline` and return its path.

    Interrupt it when you like: the next call goes on from the last checkpoint of the stage it was in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    torch.set_num_threads(
        max(1, torch.get_num_threads() // recipe.workers) if recipe.device == "cpu" else torch.get_num_threads()
    )
    family, device, seed = FAMILIES[recipe.family], recipe.device, recipe.seed
    vocabulary = VOCABULARIES["full"]  # for words and pixels; the denoiser alone is taught the recipe's vocabulary
    if not (folder / "tokenizer").exists():
        family.build_tokenizer().save_pretrained(folder / "tokenizer")
    if not (folder / "text_encoder").exists():
        tokenizer = family.load_tokenizer(folder / "tokenizer")
        encoder = train_text(
            folder, family, tokenizer, vocabulary, recipe.text_steps, recipe.text_batch, device, seed, quiet
        )
        encoder.save_pretrained(folder / "text_encoder")
    if not (folder / "vae").exists():
        compiled = recipe.compiled and family.compiles_vae
        batch = recipe.vae_batch
        vae = train_vae(folder, family, vocabulary, recipe.vae_steps, batch, device, seed, quiet, compiled)
        vae = polish_decoder(
            folder, family, vae, vocabulary, recipe.decoder_steps, batch // 4, device, seed, quiet, compiled
        )
        vae.save_pretrained(folder / "vae")
    if recipe.workers > 1:
        with tempfile.TemporaryDirectory() as meeting:
            spawn(_worker, (folder, recipe, quiet, f"file://{meeting}/store"), nprocs=recipe.workers)
    else:
        _train_denoiser(folder, recipe, quiet)
    if recipe.finish_steps and not (folder / "vae_finished").exists():
        _finish_decoder(folder, recipe, quiet)
    return assemble(folder, family, folder / "pipeline")


def _worker(rank: int, folder: Path, recipe: Recipe, quiet: bool, meeting: str) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=recipe.workers)
    try:
        _train_denoiser(folder, recipe, quiet)
    finally:
        dist.destroy_process_group()


def _end_with_parent() -> None:
    """A worker whose parent was killed would otherwise train on, unseen, and write over the checkpoints."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _data(folder: Path, recipe: Recipe) -> Data:
    family, device = FAMILIES[recipe.family], recipe.device
    tokenizer, encoder, vae = family.load_parts(folder)
    encoder, vae = encoder.to(device).requires_grad_(False), vae.to(device).requires_grad_(False)
    rank, _ = place()
    seed = recipe.seed + 7919 * rank + random.SystemRandom().randrange(2**20)  # a resumed run sees new scenes
    vocabulary = replace(VOCABULARIES[recipe.vocabulary], white=recipe.white)
    return Data(family, tokenizer, encoder, vae, vocabulary, seed, device, recipe.compiled)


def _finish_decoder(folder: Path, recipe: Recipe, quiet: bool) -> None:
    """Let the decoder meet the denoiser's own predictions, and draw from them what was meant."""
    data, family, device = _data(folder, recipe), FAMILIES[recipe.family], recipe.device
    denoiser = family.build_denoiser().from_pretrained(folder / family.denoiser_folder).to(device)
    model = family.training_denoiser(denoiser).to(device).requires_grad_(False)
    vae = polish_decoder(
        folder,
        family,
        family.load_parts(folder)[2].to(device),
        data.vocabulary,
        recipe.finish_steps,
        recipe.vae_batch // 4,
        device,
        recipe.seed,
        quiet,
        recipe.compiled and family.compiles_vae,
        "finish",
        partial(data.predicted, model),
    )
    vae.save_pretrained(folder / "vae_finished")


def _train_denoiser(folder: Path, recipe: Recipe, quiet: bool) -> None:
    data, family = _data(folder, recipe), FAMILIES[recipe.family]
    prompts, curve = held_out_prompts(recipe.looks, recipe.vocabulary), LossCurve(folder / "looks.csv")

    def look(trainer: Trainer, step: int, size: int) -> None:
        pixels = sample(trainer.ema, data, prompts, size)
        torch.save(pixels.half(), folder / "look.pt")
        scores = [score(prompt, read((picture + 1) / 2)) for prompt, picture in zip(prompts, pixels, strict=True)]
        curve.add({"step": step, "size": size, **summary(scores)})

    model = train_denoiser(
        folder,
        data,
        recipe.denoiser,
        (recipe.width, recipe.layers),
        recipe.seed,
        quiet,
        recipe.compiled,
        recipe.decay,
        look if recipe.looks else None,
    )
    if place()[0] == 0:
        model.save_pretrained(folder / family.denoiser_folder)


def assemble(folder: Path, family: Family, target: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Put a run's parts together as an ordinary diffusers folder and `hasten.json`, its native settings."""
    tokenizer, encoder, vae = family.load_parts(folder)
    if (folder / "vae_finished").exists():
        vae = vae.from_pretrained(folder / "vae_finished")
    denoiser = family.build_denoiser().from_pretrained(folder / family.denoiser_folder)
    pipe = family.pipeline(tokenizer, encoder.to(dtype), vae.to(dtype), denoiser.to(dtype))
    unfinished = target.with_name(target.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    pipe.save_pretrained(unfinished)
    (unfinished / "hasten.json").write_text(json.dumps(family.native, indent=1) + "\n")
    for file in unfinished.glob("*/config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # a folder of the machine it was trained on
        file.write_text(json.dumps(config, indent=2) + "\n")
    for file in unfinished.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for the owner alone, which a wheel would hand on
    shutil.rmtree(target, ignore_errors=True)
    unfinished.replace(target)
    return target
