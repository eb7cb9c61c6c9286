"""A report that nobody measured: hand-made timings for tests of what is made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from hasten.bench.schema import Batch, BenchReport, Gpu, Machine, Sample, Settings, Step, Variant
from hasten.bench.summary import summarize
from hasten.plan import load_plan
from hasten.record import Quality, Timings

PROMPT = "a <b>red</b> circle & a | pipe"
SECONDS = {"reference": [4.0, 4.2, 4.1], "taylorseer": [2.0, 2.1, 2.0], "fewer-steps 5": [1.9, 2.0, 2.1]}
PSNR = {"taylorseer": [30.0, 31.0, 32.0], "fewer-steps 5": [25.0, 26.0, 27.0]}


def make(
    folder: Path | None = None,
    seconds: dict[str, list[float]] = SECONDS,
    psnr: dict[str, list[float]] = PSNR,
    **more: Any,
) -> BenchReport:
    """Three rounds' worth of one prompt with three seeds; images in plain colours where a folder is given."""
    base = load_plan(None, model="some/model", num_inference_steps=10, width=16, height=16)
    variants = [
        Variant(
            name=name,
            kind="reference" if name == "reference" else "fewer-steps" if name.startswith("fewer") else "plan",
            plan=load_plan(base, cache="taylorseer") if name == "taylorseer" else base,
            computed=10 if name == "reference" else 5,
            skipped=5 if name == "taylorseer" else 0,
            steps=tuple(
                Step(
                    index=i, sigma=1 - i / 10, computed=i % 2 == 0, reason="interval", seconds=0.1 + 0.1 * (i % 2 == 0)
                )
                for i in range(10)
            )
            if name == "taylorseer"
            else (),
        )
        for name in seconds
    ]
    samples = [
        Sample(
            variant=variant.name,
            round=0,
            prompt=0,
            seed=seed,
            timings=Timings(text=0.1, denoise=time - 0.2, decode=0.1, other=0, total=time, per_step=(time - 0.2) / 10),
            computed=variant.computed or 0,
            skipped=variant.skipped or 0,
            peak_bytes=2**30,
            memory_source="process",
            digest=f"{variant.name}{seed}",
            quality=Quality(
                psnr=psnr[variant.name][seed], ssim=0.9, max_difference=0.5, latent_relative_l2=0.1, identical=False
            )
            if variant.name in psnr
            else None,
            gpu=Gpu(utilisation=90, power=300, energy=1000),
            image=_image(folder, variant.name, seed) if folder is not None else None,
        )
        for seed in range(3)
        for variant in variants
        for time in [seconds[variant.name][seed]]
    ]
    values: dict[str, Any] = {
        "command": "hasten bench --prompt 'a `red` circle'",
        "settings": Settings(model="some/model", prompts=(PROMPT,), seeds=(0, 1, 2), rounds=1, warmup=1),
        "machine": Machine(
            platform="Linux",
            cpu="A CPU",
            cores=2,
            threads=1,
            ram_bytes=2**34,
            device="cpu",
            device_name="A CPU",
            dtype="f",
        ),
        "versions": {"torch": "2", "diffusers": "1"},
        "load_seconds": 1.5,
        "complete": True,
        "variants": tuple(variants),
        "samples": tuple(samples),
        "batches": (Batch(variant="reference", size=2, seconds=(1.0, 2.0, 4.0), peak_bytes=2**30),),
    }
    report = BenchReport(**values | more)
    return report.model_copy(update={"summary": summarize(report)})


def _image(folder: Path, name: str, seed: int) -> str:
    (folder / "images").mkdir(exist_ok=True)
    path = f"images/{name}_{seed}.png".replace(" ", "_")
    Image.new("RGB", (16, 16), (10 * len(name), 20 * seed, 30)).save(folder / path)
    return path
