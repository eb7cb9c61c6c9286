"""`--cfg`, and the scripts that have the names of a Stable Diffusion accelerator's."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import prompted
from hasten.bench.schema import read_report
from hasten.cli.main import app
from hasten.record import read_png

ROOT = Path(__file__).parents[2]
PROMPT = "a red circle"
CFG = """\
model:
  model_id: {model}
  unet_dtype: bf16
sampler: {{name: ddpm, num_inference_steps: 4, guidance_scale: 1.5}}
generation: {{height: 32, width: 32, num_images_per_prompt: 2, seed: 7}}
io:
  output_dir: made
  filename_pattern: "img_{{index:03d}}_steps{{steps}}.png"
  save_latents: true
  save_grid: true
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(prompted.save(prompted.stable_diffusion(), tmp_path_factory.mktemp("models") / "tiny-sd"))


@pytest.fixture(autouse=True)
def cfg(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text(CFG.format(model=model))
    return file


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def test_images_latents_and_grid_are_named_as_in_the_plan(tmp_path: Path) -> None:
    result = run("generate", "--cfg", "mine.yaml", "--prompt", PROMPT, "--json")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "grid_img_000_steps4.png",
        "img_000_steps4.png",
        "img_000_steps4_latents.safetensors",
        "img_001_steps4.png",
        "img_001_steps4_latents.safetensors",
    ]
    seeds = [image["record"]["seed"] for image in json.loads(result.stdout)["images"]]
    assert seeds == [7, 8]
    latents = [load_file(tmp_path / "made" / f"img_00{i}_steps4_latents.safetensors")["latents"] for i in (0, 1)]
    assert not torch.equal(*latents)
    record = read_png(tmp_path / "made" / "img_000_steps4.png").record
    assert record is not None
    assert (record.model.scheduler, record.steps.total) == ("DDPMScheduler", 4)
    assert record.plan.precision.unet == "bf16"


def test_the_steps_that_a_run_chose_are_in_its_files_name_and_record(tmp_path: Path) -> None:
    surely = "{warmup_steps: 3, min_steps: 5, uncertainty: {threshold_low: 1000, threshold_high: 2000}}"
    run("generate", "--cfg", "mine.yaml", PROMPT, "--steps", 12, "--num-images", 1, "--set", f"adaptive={surely}", "-q")
    record = read_png(tmp_path / "made" / "img_000_steps5.png").record
    assert record is not None
    assert (record.steps.total, record.plan.generation.num_inference_steps) == (5, 12)
    (adaptive,) = (row for row in record.passes if row.name == "adaptive")
    assert (adaptive.figures["steps"], adaptive.figures["of"]) == (5, 12)
    assert "Steps: 5," in record.parameters()
    assert record.method == "adaptive"


def test_a_dry_run_tells_the_names(tmp_path: Path) -> None:
    printed = run("generate", "--cfg", "mine.yaml", PROMPT, "--dry-run").stdout
    assert "# would write made/img_001_steps4.png" in printed
    assert not (tmp_path / "made").exists()


def test_one_plan_is_enough() -> None:
    assert (
        "--plan and --cfg both name a whole plan"
        in run("generate", "--cfg", "base_sd15", "--plan", "mine.yaml", PROMPT, code=2).stderr
    )


def test_bench_holds_the_plan_against_the_plain_pipeline(model: str, tmp_path: Path) -> None:
    run("bench", "--cfg", "mine.yaml", "--prompt", PROMPT, "--rounds", 1, "--warmup", 0, "--seeds", 1, "--quiet")
    report = read_report(tmp_path / "made" / "bench")
    reference, mine = report.variants[:2]
    assert (report.settings.model, report.settings.seeds) == (model, (7,))
    assert (reference.plan.precision.unet, mine.plan.precision.unet) == (None, "bf16")
    assert reference.plan.sampler == mine.plan.sampler
    assert reference.plan.generation.num_inference_steps == 4
    assert mine.error is None


def test_int8_without_torchao_is_an_error_that_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "torchao" else find(name, *more)
    )
    arguments = ("--cfg", "mine.yaml", "--set", "text_encoder_dtype=int8")
    result = run("generate", *arguments, PROMPT, code=2)
    assert 'pip install "hasten[torchao]"' in result.stderr
    assert not list((tmp_path / "made").glob("*.png"))


@pytest.mark.parametrize(("script", "command"), [("run_generate", "generate"), ("run_benchmark", "bench")])
def test_the_scripts_are_the_commands(script: str, command: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / f"{script}.py", "--cfg", "nowhere.yaml", "--prompt", PROMPT],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "nowhere.yaml: no such file" in done.stderr
