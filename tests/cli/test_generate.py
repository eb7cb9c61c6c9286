"""`hasten generate`, as a person meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import prompted
from hasten.cli.generate import FLAGS
from hasten.cli.main import app as hasten
from hasten.plan import Plan, load_plan
from hasten.record import read_png

ROOT = Path(__file__).parents[2]
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(prompted.save(prompted.qwen(), tmp_path_factory.mktemp("models") / "tiny", prompted.NATIVE))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, code: int = 0, text: str | None = None) -> Result:
    result = CliRunner().invoke(hasten, ["generate", *map(str, arguments)], input=text)
    assert result.exit_code == code, result.output
    return result


def planned(*arguments: object) -> Plan:
    """The plan that these arguments make."""
    document = json.loads(run(*arguments, "--dry-run", "--json").stdout)
    return load_plan(document["plan"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_prompt_becomes_an_accelerated_image(model: str, here: Path) -> None:
    result = run(PROMPT, "--model", model)
    assert names(here / "outputs") == ["taylorseer_a_red_circle_0.png"]
    assert "outputs/taylorseer_a_red_circle_0.png" in result.stdout
    record = read_png(here / "outputs" / "taylorseer_a_red_circle_0.png").record
    assert record is not None
    assert record.plan.cache == load_plan("taylorseer", **record.plan.cache.model_dump(exclude_none=True)).cache
    assert record.steps.skipped > 0
    assert f"{record.steps.computed} of 10 steps computed, {record.steps.skipped} skipped" in result.stderr
    assert "s/it" in result.stderr
    assert "snapshots" in result.stderr


def test_the_sources_command_line_works_as_written(model: str, here: Path) -> None:
    run(
        *("--model", model, "--prompt", PROMPT, "--negative_prompt", "blurry", "--steps", 9, "--device", "cpu"),
        *("--dtype", "fp32", "--width", 48, "--height", 32, "--seed", 4, "--true_cfg_scale", 2.5),
        *("--cache_size", 64, "--taylor_order", 1, "--first_enhance_steps", 2),
    )
    record = read_png(here / "outputs" / "taylorseer_a_red_circle_4.png").record
    assert record is not None
    assert (record.width, record.height, record.seed, record.steps.total) == (48, 32, 4, 9)
    assert record.plan.generation.negative_prompt == "blurry"
    assert record.plan.generation.true_cfg_scale == 2.5
    assert record.plan.cache is not None
    assert (record.plan.cache.size, record.plan.cache.order, record.plan.cache.first_enhance) == (64, 1, 2)


def test_disable_taylorseer_skips_nothing(model: str, here: Path) -> None:
    run(PROMPT, "-m", model, "--disable-taylorseer")
    record = read_png(here / "outputs" / "reference_a_red_circle_0.png").record
    assert record is not None
    assert (record.plan.cache, record.steps.skipped) == (None, 0)


def test_every_flag_ends_in_the_plan(model: str) -> None:
    values = {
        "model": model,
        "device": "cpu",
        "dtype": "bf16",
        "negative_prompt": "dark",
        "steps": 40,
        "width": 64,
        "height": 80,
        "true_cfg_scale": 1.5,
        "guidance_scale": 2.5,
        "num_images": 3,
        "seed": 11,
        "interval": 5,
        "taylor_order": 2,
        "first_enhance_steps": 6,
        "cache_size": 12.5,
        "out": "elsewhere",
        "rounds": 2,
    }
    plan = planned(
        PROMPT,
        *(part for name, value in values.items() for part in (f"--{name}", value)),
        *("--grid", "--compare", "--save-latents"),
    )
    expected = {FLAGS[name]: value for name, value in values.items()}
    expected |= {"io.grid": True, "io.compare": True, "io.save_latents": True}
    assert set(expected) == set(FLAGS.values()) - {"quality"}  # it stands for a plan of its own
    for key, value in expected.items():
        found: Any = plan
        for part in key.split("."):
            found = getattr(found, part)
        assert found == (Path(value) if key == "io.out" else value), key


def test_later_sources_win(model: str, here: Path) -> None:
    (here / "plan.yaml").write_text(f"model: {model}\nseed: 1\ncache: {{interval: 3, order: 2}}\n")
    plan = planned(PROMPT, "--plan", "plan.yaml", "--set", "cache.interval=5", "--set", "seed=2", "--seed", 3)
    assert plan.cache is not None
    assert (plan.seed, plan.cache.interval, plan.cache.order) == (3, 5, 2)


def test_a_plan_without_cache_skips_nothing_and_a_preset_is_a_plan(model: str, here: Path) -> None:
    (here / "plan.yaml").write_text("seed: 1\n")
    assert planned(PROMPT, "-m", model, "--plan", "plan.yaml").cache is None
    assert planned(PROMPT, "-m", model, "--preset", "reuse").cache.method == "reuse"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", 0], "--steps 0: must be a whole number of at least 1"),
        (["--set", "cache.intervall=3"], "did you mean 'interval'"),
        (["--first-enhance-steps", 60, "--steps", 50], "--first-enhance-steps 60: a warm-up of 60 steps is longer"),
        (["--interval", 3, "--disable-taylorseer"], "no use for --interval"),
        (["--plan", "a.yaml", "--preset", "reuse"], "give one of them"),
        (["--plan", "a.yaml"], "no such file"),
        (["--preset", "taylorser"], "did you mean 'taylorseer'"),
        (["--device", "npu"], "torch_npu"),
        (["--model", "scense-qwen"], "did you mean 'scenes-qwen'"),
        (["--model", "org/name"], "hub cannot be reached"),
        (["--width", 50], "multiples of 16 pixels"),
        (["--disable-taylorseer", "--compare"], "nothing to compare"),
    ],
)
def test_mistakes_end_in_one_message_and_exit_code_2(
    model: str, here: Path, arguments: list[Any], message: str
) -> None:
    chosen = [] if "--model" in arguments else ["--model", model]
    result = run(PROMPT, *chosen, *arguments, code=2)
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not list(here.glob("outputs/*"))


def test_without_a_prompt_there_is_an_example(model: str) -> None:
    assert 'hasten generate "a red circle left of a blue square"' in run("-m", model, code=2).stderr


def test_a_door_that_is_closed_is_found_at_once(here: Path, model: str) -> None:
    (here / "outputs").touch()
    assert "choose another folder with --out" in run(PROMPT, "-m", model, code=2).stderr


def test_several_prompts_and_images_and_a_grid(model: str, here: Path) -> None:
    run("one circle", "two circles", "-m", model, "--num-images", 2, "--grid", "-o", "out", "--seed", 7)
    assert names(here / "out") == [
        "grid_taylorseer_one_circle_7.png",
        "taylorseer_one_circle_7.png",
        "taylorseer_one_circle_8.png",
        "taylorseer_two_circles_7.png",
        "taylorseer_two_circles_8.png",
    ]


def test_prompts_are_read_from_stdin(model: str) -> None:
    document = json.loads(run("-", "-m", model, "--dry-run", "--json", text="one\n\n两个圆\n").stdout)
    assert document["prompts"] == ["one", "两个圆"]


def test_an_unquoted_prompt_is_pointed_at(model: str) -> None:
    assert "quote a prompt" in run("a", "red", "circle", "-m", model, "--dry-run").stderr
    assert "quote" not in run("a red circle", "a dog", "-m", model, "--dry-run").stderr


def test_json_is_one_document_and_nothing_else(model: str, here: Path) -> None:
    result = run(PROMPT, "-m", model, "--json")
    document = json.loads(result.stdout)
    assert result.stderr == ""
    assert document["interrupted"] is False
    image = document["images"][0]
    record = read_png(here / image["path"]).record
    assert record is not None
    assert image["record"] == record.model_dump(mode="json")


def test_quiet_says_nothing(model: str, here: Path) -> None:
    assert run(PROMPT, "-m", model, "--quiet").output == ""
    assert names(here / "outputs") == ["taylorseer_a_red_circle_0.png"]
    assert "must be" in run(PROMPT, "-m", model, "--quiet", "--steps", 0, code=2).stderr


@pytest.mark.filterwarnings("default")  # as for users; elsewhere in these tests a warning is an error
def test_a_warning_is_one_line_without_code(model: str) -> None:
    lines = run(PROMPT, "-m", model, "--steps", 3).stderr.splitlines()
    assert next(line for line in lines if "skipped nothing" in line).startswith(
        "warning: hasten skipped nothing in this run"
    )
    assert not any(".py" in line for line in lines)
    assert run(PROMPT, "-m", model, "--steps", 3, "--quiet").stderr == ""


def test_compare_prints_the_table_and_writes_three_pictures(model: str, here: Path) -> None:
    result = run(PROMPT, "-m", model, "--compare", "--rounds", 1)
    for row in (
        "time",
        "speed-up",
        "per step",
        "steps computed",
        "steps skipped",
        "PSNR",
        "SSIM",
        "snapshots",
        "peak memory (process)",
    ):
        assert row in result.stdout
    assert names(here / "outputs") == [
        "compare_taylorseer_a_red_circle_0.png",
        "reference_a_red_circle_0.png",
        "taylorseer_a_red_circle_0.png",
    ]
    with Image.open(here / "outputs" / "compare_taylorseer_a_red_circle_0.png") as picture:
        assert picture.width > 3 * 384


def test_compare_of_several_prompts_ends_in_medians(model: str) -> None:
    result = run("one circle", "two circles", "-m", model, "--compare", "--rounds", 1)
    assert "medians of 2 images: speed-up" in result.stdout


def test_compare_as_json(model: str) -> None:
    document = json.loads(run(PROMPT, "-m", model, "--compare", "--rounds", 1, "--json").stdout)
    comparison = document["comparisons"][0]
    assert comparison["quality"]["psnr"] > 0
    assert comparison["quality"]["speedup"] > 0
    assert all(Path(comparison[kind]).exists() for kind in ("reference", "accelerated", "picture"))


def test_a_dry_run_prints_a_plan_that_can_be_used_and_writes_nothing(model: str, here: Path) -> None:
    (here / "there").mkdir()
    (here / "there" / "taylorseer_a_red_circle_0.png").touch()
    text = run(PROMPT, "-m", model, "--dry-run", "--out", "there").stdout
    assert "# would write there/taylorseer_a_red_circle_0-2.png" in text
    assert names(here) == ["there"]
    (here / "plan.yaml").write_text(text)
    again = planned(PROMPT, "--plan", "plan.yaml")
    assert again.generation.num_inference_steps == 10  # the model's own
    assert again.cache is not None
    assert again.cache.interval is not None


def test_a_dry_run_imports_no_torch(model: str) -> None:
    code = (
        "import sys\nfrom hasten.cli.main import main\n"
        f"try:\n    main(['generate', 'x', '-m', {model!r}, '--dry-run'])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_images_made_again_from_their_metadata_are_the_same(model: str, here: Path) -> None:
    run(PROMPT, "-m", model, "--seed", 5, "--interval", 3)
    made = here / "outputs" / "taylorseer_a_red_circle_5.png"
    shown = CliRunner().invoke(hasten, ["metadata", str(made), "--plan"])
    (here / "again.yaml").write_text(shown.stdout)
    run(PROMPT, "--plan", "again.yaml", "-o", "again")
    with Image.open(made) as first, Image.open(here / "again" / made.name) as second:
        assert first.tobytes() == second.tobytes()


def test_ctrl_c_keeps_what_is_finished_and_leaves_nothing_half_done(model: str, here: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hasten", "generate", PROMPT, "-m", model, "--num-images", "2000", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
    deadline = time.monotonic() + 120
    while len(list(here.glob("outputs/*.png"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    document = json.loads(stdout)
    assert document["interrupted"] is True
    kept = sorted(image["path"] for image in document["images"])
    assert kept == sorted(str(path.relative_to(here)) for path in (here / "outputs").iterdir())
    assert len(kept) >= 2
    for path in kept:
        assert read_png(here / path).record is not None


def test_the_sources_script_works_from_any_folder(model: str, here: Path) -> None:
    script = ROOT / "scripts" / "run_taylorseer_diffusers_pure.sh"
    link = here / "run.sh"
    link.symlink_to(script)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for program in (script, link):
        done = subprocess.run(
            [program, "--model", model, "--prompt", "a 'quoted' $prompt", "--true_cfg_scale", "2", "--dry-run"],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert "true_cfg_scale: 2.0" in done.stdout
        assert "# would write outputs/taylorseer_a_quoted_prompt_0.png" in done.stdout
