"""Every denoiser class of diffusers, built small, and the sites that hold on it: the table of docs/coverage.md.

The classes, configs and inputs are those of tests/denoisers.py.
"""

from __future__ import annotations

import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from hasten import accelerate
from hasten.caching.trees import tensors
from hasten.errors import CacheError
from hasten.handle import Handle

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from denoisers import CASES, NO_DENOISERS, Case, classes

STEPS = 4
COMPUTED = (0, 2)
SITES = ("residual", "span", "unet_branch", "output")

Outputs = list[list[Tensor]]


@dataclass(frozen=True)
class Row:
    """What holds on a class.

    Attributes:
        default: the site that is taken where none is asked for.
        refused: site → why it does not hold.
    """

    name: str
    default: str
    refused: dict[str, str]


def check(name: str) -> Row:
    """Accelerate a class in every way.

    Raises:
        AssertionError: something is not as it has to be.
    """
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own, of classes that it calls deprecated
        model = case.build(name)
        before = attributes(model)
        reference = run(model, case)
        with accelerate(model, interval=1) as handle:
            same(run(model, case, handle), reference)
        with accelerate(model, **every_second) as handle:
            default = skips(model, case, handle, reference)
        refused = {}
        for site in SITES:
            try:
                with accelerate(model, **every_second, site=site) as handle:
                    skips(model, case, handle, reference)
            except CacheError as error:
                refused[site] = _reason(error)
        assert attributes(model) == before, "remove() left something behind"
        same(run(model, case, steps=1), reference[:1])
    assert "output" not in refused
    assert default.split()[0] not in refused
    return Row(name, default, refused)


def _reason(error: CacheError) -> str:
    found = re.search(r"has no site '.*?': (.*); allowed here", str(error))
    if found is None:
        raise error
    return found[1]


every_second: dict[str, Any] = {"mask": list(COMPUTED), "cooldown": 0, "order": 1}


def run(model: Any, case: Case, handle: Handle | None = None, steps: int = STEPS) -> Outputs:
    """The results of a few steps; what goes in does not depend on what came out, so that each can be compared."""
    outputs = []
    with torch.no_grad():
        for k in range(steps):
            if handle is not None and not case.time:
                handle.step(k, total=STEPS)
            outputs.append([tensor.clone() for tensor in tensors(model(**case.arguments(k, STEPS)))])
    return outputs


def skips(model: Any, case: Case, handle: Handle, reference: Outputs) -> str:
    """Run with every second step skipped; the site that did it."""
    outputs = run(model, case, handle)
    report = handle.report()
    assert [step.index for step in report.steps if step.computed] == list(COMPUTED), report
    same([outputs[k] for k in COMPUTED], [reference[k] for k in COMPUTED])
    for k in set(range(STEPS)) - set(COMPUTED):
        assert [one.shape for one in outputs[k]] == [other.shape for other in reference[k]]
        assert all(one.isfinite().all() for one in outputs[k] if one.is_floating_point())
        assert not all(torch.equal(one, other) for one, other in zip(outputs[k], reference[k], strict=True))
    return report.site


def same(outputs: Outputs, reference: Outputs) -> None:
    for ours, theirs in zip(outputs, reference, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def attributes(model: nn.Module) -> list[list[str]]:
    return [sorted(vars(module)) for module in model.modules()]


def page(rows: list[Row]) -> str:
    """The table in Markdown."""
    lines = [
        "| class | by default | `residual` | `span` | `unet_branch` | `output` | why not |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.name):
        holds = ["–" if site in row.refused else "yes" for site in SITES]
        why = {row.refused[site]: None for site in ("residual", "span") if site in row.refused}
        lines.append(f"| {row.name} | `{row.default}` | {' | '.join(holds)} | {'; '.join(why)} |")
    lines += ["", "Classes in the same rooms of diffusers that no pipeline calls at every step:", ""]
    lines += ["| class | what it is |", "|---|---|"]
    lines += [f"| {name} | {reason} |" for name, reason in sorted(NO_DENOISERS.items())]
    count = sum(row.default != "output" for row in rows)
    lines += [
        "",
        f"{len(rows)} classes of diffusers {diffusers.__version__}; {count} of them have a better site than `output`.",
    ]
    return "\n".join(lines)


def table(model: str, prompts: int) -> str:
    """All classes, checked now."""
    missing = classes().keys() - CASES.keys() - NO_DENOISERS.keys()
    if missing:
        sys.exit(f"tests/denoisers.py has no config for {', '.join(sorted(missing))}")
    return page([check(name) for name in CASES])
