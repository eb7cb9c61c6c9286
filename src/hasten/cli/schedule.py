"""`hasten schedule`: which steps to compute, searched for a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from hasten.cli.console import err, out
from hasten.errors import HastenError

if TYPE_CHECKING:
    from hasten.schedule.solve import Point

app = typer.Typer()


@app.command()
def schedule(
    model: Annotated[
        str, typer.Argument(help="A bundled model, a diffusers folder, a file or a hub id.")
    ] = "scenes-qwen",
    prompts: Annotated[
        str, typer.Option(help="builtin:8, or a text file with a prompt in each line; 8 are enough.")
    ] = "builtin:8",
    steps: Annotated[
        int | None, typer.Option(min=2, help="Steps of the measured runs; default: the model's own.")
    ] = None,
    solve_for: Annotated[
        str | None, typer.Option("--for", metavar="STEPS,...", help="Numbers of steps to find schedules for.")
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(metavar="N,...", help="Numbers of computed steps; default: a sixth to a half.")
    ] = None,
    tries: Annotated[
        int, typer.Option(min=0, help="Candidates per budget that are really run; 0 trusts the theory.")
    ] = 20,
    try_prompts: Annotated[
        int,
        typer.Option(min=1, help="So many of the prompts for that; after every two the better half goes on."),
    ] = 4,
    gain_prompts: Annotated[
        int, typer.Option(min=0, help="So many of the prompts for the gains; 0 takes them as 1.")
    ] = 2,
    calibration: Annotated[
        Path | None, typer.Option("--from", help="Solve from this earlier calibration, without measuring again.")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Of the plan, such as sampler.shift=2.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of the first prompt's image; they count up.")] = 10_000,
    folder: Annotated[Path, typer.Option("--out", "-o", help="The calibration and the plans go here.")] = Path(
        "schedules"
    ),
) -> None:
    """Find the steps to compute that leave the least error in the image, for every number of them.

    A few full runs are measured; masks and predictors are then searched without the model, and the best are tried.
    Writes FOLDER/MODEL.json (about 20 kB, which serves other numbers of steps with --from) and one plan per schedule.

    Example: hasten schedule scenes-qwen --budgets 8,12,16
    """
    from hasten.files import check_writable, write_new
    from hasten.generation import Session
    from hasten.plan import load_plan
    from hasten.schedule import store
    from hasten.schedule.measure import measure
    from hasten.schedule.solve import decoder_of, solve

    lengths = _numbers("--for", solve_for)
    wanted = _numbers("--budgets", budgets)
    check_writable(folder)
    stored = store.read(calibration) if calibration is not None else None
    plan = load_plan(None, sets or (), model=model, device=device)
    if steps is not None:
        plan = load_plan(plan, [f"generation.num_inference_steps={steps}"])
    texts = _prompts(prompts)
    session = Session.open(plan, texts)
    jobs = [(text, seed + number) for number, text in enumerate(texts)]
    with err.status("") as status:

        def say(what: str) -> None:
            status.update(what)

        if stored is None:
            say(f"measuring {len(jobs)} full runs")
            measured = measure(session, jobs, gain_prompts, progress=say)
            stored = store.calibration_of(session, measured)
            path = write_new(folder / f"{_stem(model)}.json", partial(_write, store.text(stored).encode()))
        else:
            store.check_fits(stored, session.pipe, model)
            measured = stored.measured
            path = calibration or folder
        points: list[Point] = []
        for length in lengths or [len(stored.sigmas) if steps is None else steps]:
            mine = wanted or sorted({max(2, round(length * share)) for share in (0.16, 0.2, 0.24, 0.3, 0.4, 0.5)})
            points += solve(session, measured, length, mine, jobs[:try_prompts], tries, progress=say)
    found = {"frontier": [*map(store.stored_point, points)], "decoder": decoder_of(points)}
    document = store.text(stored.model_copy(update=found)).encode()
    if calibration is None:
        path.write_bytes(document)
    for point in points:
        name = f"{_stem(model)}_{point.steps}_steps_{point.budget}_computed.yaml"
        content = store.plan_text(point, model).encode()
        write_new(folder / name, partial(_write, content))
    _show(points, path, folder)


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _numbers(option: str, text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise HastenError(f"{option} {text}: write whole numbers from 1 on, with commas: {option} 8,12,16")
    return numbers


def _prompts(source: str) -> list[str]:
    from hasten.bench.variants import read_prompts
    from hasten.zoo.evaluation import held_out_prompts

    kind, _, count = source.partition(":")
    if kind == "builtin" and count.isdecimal() and int(count):
        return held_out_prompts(int(count), seed=77)  # not those that the benchmark measures on
    return read_prompts(source)


def _stem(model: str) -> str:
    return Path(model).stem or "model"


def _show(points: Sequence[Point], path: Path, folder: Path) -> None:
    from rich.table import Table

    table = Table("steps", "computed", "predictor", "expected error", "measured error", "computed steps", box=None)
    for point in points:
        table.add_row(
            str(point.steps),
            str(point.budget),
            str(point.forecast),
            f"{point.predicted:.2%}",
            "–" if point.measured is None else f"{point.measured:.2%}",
            " ".join(map(str, point.mask)),
        )
    out.print(table)
    err.print(f"errors are of the final latent, relative; calibration: {path}; plans: {folder}/", soft_wrap=True)
