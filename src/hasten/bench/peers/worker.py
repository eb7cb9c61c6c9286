"""A peer's process, from inside: `python -m hasten.bench.peers.worker FOLDER`, begun by `processes.run`.

The benchmark of one peer beside the plain pipeline. Standard output is for its progress, a JSON list in each line; what
the peer prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from hasten.bench.peers.processes import REQUEST, Request
from hasten.bench.run import Bench, Update
from hasten.bench.schema import FILE, read_report


def main(folder: Path) -> int:
    """Measure what `request.json` asks for; the report is written however it ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    request = Request.model_validate_json((folder / REQUEST).read_text("utf-8"))
    torch.set_num_threads(request.threads)
    asked = request.settings

    def tell(update: Update) -> None:
        channel.write(f"{json.dumps([update.label, update.done])}\n")

    bench = Bench(
        request.base,
        [],
        asked.prompts,
        seeds=asked.seeds,
        rounds=asked.rounds,
        warmup=asked.warmup,
        out=folder,
        previous=read_report(folder) if (folder / FILE).exists() else None,
        inside=request.peer,
        known=request.known,
        clip=asked.clip,
        command=f"python -m hasten.bench.peers.worker {folder}",
        progress=tell,
    )
    try:
        bench.run()
    except KeyboardInterrupt:
        return 130
    finally:
        bench.report.save(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
