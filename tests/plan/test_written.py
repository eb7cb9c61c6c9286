"""Plans of other programs, taken as they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.errors import PlanError
from hasten.plan import Plan, load_plan, preset_names, read_preset

ROOT = Path(__file__).parents[2]
SOURCES = [name for name in preset_names() if "sd" in name]

WRITTEN = """\
model:
  model_id: someone/something
  device: cpu
  unet_dtype: bf16
  vae_dtype: fp32
  text_encoder_dtype: int8
  compile: {enabled: true, mode: max-autotune, fullgraph: false, dynamic: false, compile_vae: true}
sampler:
  name: dpm
  num_inference_steps: 10
  guidance_scale: 7.5
generation: {height: 512, width: 512, num_images_per_prompt: 4, seed: 42}
io:
  output_dir: somewhere
  filename_pattern: "img_{index:03d}_steps{steps}.png"
  save_latents: true
  save_grid: true
"""


def problems(folder: Path, text: str) -> list[str]:
    file = folder / "plan.yaml"
    file.write_text(text)
    with pytest.raises(PlanError) as caught:
        load_plan(file)
    return [problem.removeprefix(f"{folder}/") for problem in caught.value.problems]


def test_every_section_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(WRITTEN)
    plan = load_plan(file)
    assert (plan.model, plan.device, plan.seed) == ("someone/something", "cpu", 42)
    assert (plan.precision.unet, plan.precision.vae, plan.precision.text_encoder) == ("bf16", "fp32", "int8")
    assert plan.compile.on
    assert (plan.compile.mode, plan.compile.compile_vae) == ("max-autotune", True)
    assert plan.sampler.name == "dpm_solver++"
    generation, io = plan.generation, plan.io
    assert (generation.num_inference_steps, generation.guidance_scale, generation.num_images) == (10, 7.5, 4)
    assert (str(io.out), io.save_latents, io.grid) == ("somewhere", True, True)
    assert io.filename == "img_{index:03d}_steps{steps}.png"
    assert load_plan(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "seed: 1\nmodel:\n  unet_dtyp: bf16\n",
            "plan.yaml:3: model.unet_dtyp: unknown key; did you mean 'unet_dtype'?",
        ),
        ("model:\n  model_id: a/b\n  compile:\n    mod: default\n", "plan.yaml:4: compile.mod: unknown key"),
        ("model:\n  unet_dtype: bf17\n", "plan.yaml:2: precision.unet: must be one of"),
        ("sampler:\n  steps: 5\n  shif: 1\n", "plan.yaml:3: sampler.shif: unknown key; did you mean 'shift'?"),
        ("io:\n  out: a\n  output_dir: b\n", "plan.yaml:3: io.output_dir: is another name for io.out, which is given"),
        ("io:\n  output_dir: b\n  out: a\n", "plan.yaml:2: io.output_dir: is another name for io.out, which is given"),
        ("io:\n  filename: 'a{step}.png'\n", "plan.yaml:2: io.filename: 'a{step}.png' is no name for images"),
        ("io:\n  filename: a/b.png\n", "plan.yaml:2: io.filename: 'a/b.png' is no name for images: a folder goes"),
        ("io:\n  filename: '{seed:x.png'\n", "plan.yaml:2: io.filename: '{seed:x.png' is no name for images"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(problem)


def test_a_later_source_may_use_the_other_spelling() -> None:
    plan = load_plan({"io": {"output_dir": "a"}}, ["io.out=b"])
    assert str(plan.io.out) == "b"


@pytest.mark.parametrize("name", SOURCES)
def test_the_sources_plans_are_presets_and_files(name: str) -> None:
    plan = load_plan(name)
    assert plan == load_plan(ROOT / "configs" / f"{name}.yaml")
    assert isinstance(plan, Plan)
    assert plan.io.filename == "img_{index:03d}_steps{steps}.png"
    assert plan.generation.num_inference_steps == (10 if name.endswith("dpm10") else 50)
    assert plan.compile.on == ("compile" in name)
    assert (plan.precision.text_encoder == "int8") == ("int8" in name)


def test_each_plan_for_sd15_has_its_twin_for_the_bundled_model() -> None:
    own = {name for name in SOURCES if "scenes_sd" in name}
    assert {name.replace("scenes_sd", "sd15") for name in own} == set(SOURCES) - own
    assert len(own) == 5
    for name in own:
        twin = read_preset(name.replace("scenes_sd", "sd15")).splitlines()[1:]
        differing = [
            line for line, other in zip(read_preset(name).splitlines()[1:], twin, strict=True) if line != other
        ]
        assert {line.split(":")[0].strip() for line in differing} == {
            "model_id",
            "guidance_scale",
            "height",
            "width",
            "output_dir",
        }
