"""Number formats, compilation, orders in memory and their combinations on the CPU: time of a step, memory, error.

Every row is a process of its own, which loads the model in the row's formats, so that its memory is its own, too. The
model `random-170m` is a Qwen-Image denoiser of that size with random weights in the pipeline of scenes-qwen: its times
and memory mean something, its pictures do not.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hasten import accelerate, load_plan
from hasten.calling import call_arguments
from hasten.devices import PeakMemory
from hasten.loading import load
from hasten.models import complete_plan
from hasten.zoo.evaluation import held_out_prompts

RANDOM = "random-170m"
STEPS = {RANDOM: 2}  # 20 of the others
LIMIT = 420
"""Seconds for a row: a compiler may take longer with a large UNet."""
CACHE = {"method": "taylorseer", "interval": 4, "order": 1}
BF16 = {"precision": {"dtype": "bf16"}}
INT8 = {"quantization": "int8"}
LAST = {"attention": {"channels_last": True}}
BLOCKS = {"compile": {"scope": "blocks"}}
WHOLE = {"compile": {"scope": "model"}}
FROZEN = {"compile": {"scope": "model", "inductor": "freezing"}}
ROWS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp32, channels last": LAST,
    "fp32, tokens merged by half": {"tokens": 0.5},
    "fp32, traced": {"compile": {"backend": "trace"}},
    "fp32, blocks compiled": BLOCKS,
    "fp32, compiled": WHOLE,
    "fp32, compiled, weights frozen": FROZEN,
    "int8": INT8,
    "int8, compiled": INT8 | WHOLE,
    "bf16": BF16,
    "bf16, channels last": BF16 | LAST,
    "bf16, blocks compiled": BF16 | BLOCKS,
    "bf16, compiled": BF16 | WHOLE,
    "bf16, compiled, weights frozen": BF16 | FROZEN,
    "bf16, channels last, compiled, weights frozen": BF16 | LAST | FROZEN,
    "bf16 and int8, compiled": BF16 | INT8 | WHOLE,
    "fp32, again": {},
}
PRODUCTS = {
    "blocks compiled, the stack of blocks skipped": ({"cache": {**CACHE, "site": "residual"}}, BLOCKS),
    "compiled as a whole, the output predicted": ({"cache": {**CACHE, "site": "output"}}, WHOLE),
}


@dataclass(frozen=True)
class Run:
    """What one process measured.

    Attributes:
        first: seconds of the first denoising loop, compilation included.
        loop: of each later one, median.
        bytes: the most memory that the process took beyond what it had taken before it loaded the model.
        latents: for each prompt.
    """

    first: float
    loop: float
    bytes: int
    latents: tuple[torch.Tensor, ...]


def table(model: str, prompts: int) -> str:
    """Each row: one denoising loop to warm up, then one per prompt; errors against fp32 at the same seeds."""
    base = measure(model, prompts, {})
    lines = [
        "| plan | step ms | speed-up | memory MiB | error of the latents | first loop s |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    left_out = []
    for name, plan in ROWS.items():
        found = base if name == "fp32" else measure(model, prompts, plan)
        if isinstance(found, str) or isinstance(base, str):
            left_out.append(f"- {name}: {found}")
            continue
        lines.append(
            f"| {name} | {1e3 * found.loop / steps(model):.1f} | {base.loop / found.loop:.2f}× | "
            f"{found.bytes / 2**20:.0f} | {error(found, base):.2%} | {found.first:.1f} |"
        )
    told = (
        f"Medians over {prompts} prompts, {steps(model)} steps each with guidance, the decoder left out. Memory is the "
        "highest resident memory beyond that of a process with nothing loaded."
    )
    notes = ["", "Not measured:", "", *left_out] if left_out else []
    return "\n".join([*lines, "", told, *notes])


def product(model: str, prompts: int) -> str:
    """Cache and compilation: each alone, both, and how much of the product of their speed-ups arrives."""
    lines = ["| | cache | compiled | both | of the product |", "|---|--:|--:|--:|--:|"]
    base = measure(model, prompts, {})
    for name, (cache, compiled) in PRODUCTS.items():
        runs = [measure(model, prompts, plan) for plan in (cache, compiled, cache | compiled)]
        bad = next((run for run in (base, *runs) if isinstance(run, str)), None)
        if bad is not None or isinstance(base, str):
            lines.append(f"| {name} | {bad} | | | |")
            continue
        one, two, both = (base.loop / run.loop for run in runs if isinstance(run, Run))
        lines.append(f"| {name} | {one:.2f}× | {two:.2f}× | {both:.2f}× | {both / one / two:.0%} |")
    settings = ", ".join(f"{key} {value}" for key, value in CACHE.items())
    return "\n".join(lines) + f"\n\nSpeed-ups of the denoising loop of {steps(model)} steps with guidance; {settings}."


def steps(model: str) -> int:
    return STEPS.get(model, 20)


def error(run: Run, reference: Run) -> float:
    pairs = zip(run.latents, reference.latents, strict=True)
    return statistics.mean(float((one - other).norm() / other.norm()) for one, other in pairs)


def measure(model: str, prompts: int, plan: dict[str, Any]) -> Run | str:
    """One row in a process of its own; why it cannot be, if so."""
    if "quantization" in plan and find_spec("torchao") is None:
        return "torchao is not installed"
    with tempfile.TemporaryDirectory() as folder:
        told = json.dumps({"model": model, "prompts": prompts, "plan": plan, "out": folder})
        command = [sys.executable, "-m", "benchmarks.speed", told]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return f"not done within {LIMIT / 60:g} minutes"
        if done.returncode:
            return next(reversed(done.stderr.strip().splitlines()), "failed")
        found = torch.load(Path(folder) / "run.pt", weights_only=True)
    return Run(found["first"], found["loop"], found["bytes"], tuple(found["latents"]))


def child(model: str, prompts: int, plan: dict[str, Any], out: str) -> None:
    """Measure in this process."""
    source = "scenes-qwen" if model == RANDOM else model
    made = complete_plan(
        load_plan({"cache": None, "model": source, "generation": {"num_inference_steps": steps(model)}, **plan})
    )
    texts = held_out_prompts(prompts)
    with PeakMemory(torch.device("cpu")) as before:
        pass
    with PeakMemory(torch.device("cpu")) as peak:
        pipe = load(made)
        if model == RANDOM:
            pipe.register_modules(transformer=random_transformer(pipe.transformer))
        with accelerate(pipe, made):
            first, _ = loop(pipe, made, texts[0])
            runs = [loop(pipe, made, text) for text in texts]
    torch.save(
        {
            "first": first,
            "loop": statistics.median(seconds for seconds, _ in runs),
            "bytes": (peak.bytes or 0) - (before.bytes or 0),
            "latents": [latents.float() for _, latents in runs],
        },
        Path(out) / "run.pt",
    )


def loop(pipe: Any, plan: Any, prompt: str) -> tuple[float, torch.Tensor]:
    """One denoising loop: seconds and latents."""
    arguments = {**call_arguments(pipe, plan, prompt, 0).arguments, "output_type": "latent"}
    started = time.perf_counter()
    latents = pipe(**arguments).images
    return time.perf_counter() - started, latents


def random_transformer(small: Any) -> Any:
    """The same class with eight blocks of width 768, in the same format."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    sizes = {"num_layers": 8, "num_attention_heads": 12, "attention_head_dim": 64, "axes_dims_rope": (16, 24, 24)}
    made = type(small).from_config({**small.config, **sizes}).to(small.dtype).eval().requires_grad_(False)
    torch.random.set_rng_state(generator)
    return made


if __name__ == "__main__":
    child(**json.loads(sys.argv[1]))
