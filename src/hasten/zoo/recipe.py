"""The whole recipe of a bundled model: autoencoder, text encoder, denoiser, and the pipeline folder they end in."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import tempfile
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from hasten.metrics.scenes import read, score
from hasten.zoo import train_denoiser
from hasten.zoo.architecture import NATIVE_SIZE, build_scheduler, build_tokenizer
from hasten.zoo.evaluation import held_out_prompts, summary
from hasten.zoo.scenes import VOCABULARIES
from hasten.zoo.train_denoiser import Data, Schedule, Trainer, sample
from hasten.zoo.train_text import train_text
from hasten.zoo.train_vae import polish_decoder, train_vae
from hasten.zoo.training import LossCurve

NATIVE = {
    "height": NATIVE_SIZE,
    "width": NATIVE_SIZE,
    "num_inference_steps": 50,
    "true_cfg_scale": 3.0,
    "negative_prompt": " ",
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run. The defaults are for two CPU cores; see docs/training.md.

    `looks` held-out prompts are drawn and scored at every checkpoint, for `looks.csv`; 0 for none.
    """

    vocabulary: str = "full"
    vae_steps: int = 1400
    vae_batch: int = 24
    decoder_steps: int = 600
    text_steps: int = 750
    text_batch: int = 96
    denoiser: Schedule = field(default_factory=Schedule)
    width: int = 192
    layers: int = 8
    decay: float = 0.35
    workers: int = 2
    device: str = "cpu"
    seed: int = 0
    compiled: bool = True
    looks: int = 40

    @classmethod
    def for_device(cls, device: str, workers: int | None = None) -> Recipe:
        """The recipe for a kind of device: one worker per core on CPU, large batches and a longer run elsewhere."""
        if device == "cpu":
            return cls(workers=workers or min(4, os.cpu_count() or 1))
        return cls(
            vae_steps=4000,
            vae_batch=128,
            decoder_steps=2000,
            text_steps=3000,
            text_batch=512,
            workers=1,
            device=device,
            denoiser=Schedule(low_steps=8000, high_steps=8000, low_batch=768, high_batch=256),
        )


def train(folder: Path, recipe: Recipe, quiet: bool = False) -> Path:
    """Run every stage that is not finished, then write the diffusers folder `folder/pipeline` and return its path.

    Interrupt it when you like: the next call goes on from the last checkpoint of the stage it was in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    torch.set_num_threads(
        max(1, torch.get_num_threads() // recipe.workers) if recipe.device == "cpu" else torch.get_num_threads()
    )
    vocabulary = VOCABULARIES["full"]  # for words and pixels; the denoiser alone is taught the recipe's vocabulary
    tokenizer = build_tokenizer()
    if not (folder / "tokenizer").exists():
        tokenizer.save_pretrained(folder / "tokenizer")
    if not (folder / "text_encoder").exists():
        encoder = train_text(
            folder, tokenizer, vocabulary, recipe.text_steps, recipe.text_batch, recipe.device, recipe.seed, quiet
        )
        encoder.save_pretrained(folder / "text_encoder")
    device, seed = recipe.device, recipe.seed
    if not (folder / "vae").exists():
        vae = train_vae(folder, vocabulary, recipe.vae_steps, recipe.vae_batch, device, seed, quiet, recipe.compiled)
        vae = polish_decoder(
            folder, vae, vocabulary, recipe.decoder_steps, recipe.vae_batch // 4, device, seed, quiet, recipe.compiled
        )
        vae.save_pretrained(folder / "vae")
    if recipe.workers > 1:
        with tempfile.TemporaryDirectory() as meeting:
            spawn(_worker, (folder, recipe, quiet, f"file://{meeting}/store"), nprocs=recipe.workers)
    else:
        _train_denoiser(folder, recipe, quiet)
    return assemble(folder, folder / "pipeline")


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


def _train_denoiser(folder: Path, recipe: Recipe, quiet: bool) -> None:
    tokenizer, encoder, vae = load_parts(folder, recipe.device)
    rank = dist.get_rank() if dist.is_initialized() else 0
    seed = recipe.seed + 7919 * rank + random.SystemRandom().randrange(2**20)  # a resumed run sees new scenes
    data = Data(tokenizer, encoder, vae, VOCABULARIES[recipe.vocabulary], seed, recipe.device, compiled=recipe.compiled)
    prompts, curve = held_out_prompts(recipe.looks, recipe.vocabulary), LossCurve(folder / "looks.csv")

    def look(trainer: Trainer, size: int) -> None:
        pixels = sample(trainer.ema, data, prompts, size)
        torch.save(pixels.half(), folder / "look.pt")
        scores = [score(prompt, read((picture + 1) / 2)) for prompt, picture in zip(prompts, pixels, strict=True)]
        curve.add({"step": trainer.step, "size": size, **summary(scores)})

    model = train_denoiser.train_denoiser(
        folder,
        data,
        recipe.denoiser,
        recipe.device,
        recipe.seed,
        quiet,
        recipe.width,
        recipe.layers,
        recipe.compiled,
        recipe.decay,
        look if recipe.looks else None,
    )
    if rank == 0:
        model.save_pretrained(folder / "transformer")


def load_parts(folder: Path, device: str) -> tuple[Any, Any, Any]:
    """Tokenizer, text encoder and autoencoder of a run's folder."""
    from diffusers import AutoencoderKLQwenImage
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder").to(device)
    vae = AutoencoderKLQwenImage.from_pretrained(folder / "vae").to(device)
    return tokenizer, encoder.requires_grad_(False), vae.requires_grad_(False)


def assemble(folder: Path, target: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Put a run's parts together as an ordinary diffusers folder and `hasten.json`, its native settings."""
    from diffusers import QwenImagePipeline, QwenImageTransformer2DModel

    tokenizer, encoder, vae = load_parts(folder, "cpu")
    transformer = QwenImageTransformer2DModel.from_pretrained(folder / "transformer")
    pipe = QwenImagePipeline(
        scheduler=build_scheduler(),
        vae=vae.to(dtype),
        text_encoder=encoder.to(dtype),
        tokenizer=tokenizer,
        transformer=transformer.to(dtype),
    )
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipe.save_pretrained(partial)
    (partial / "hasten.json").write_text(json.dumps(NATIVE, indent=1) + "\n")
    for file in partial.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for the owner alone, which a wheel would hand on
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    return target
