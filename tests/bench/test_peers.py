"""Peers: put on for one run, taken off without a trace, and measured in processes of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prompted
from bench.reports import make
from hasten import load_plan
from hasten.bench import Bench, benchmark
from hasten.bench.markdown import to_markdown
from hasten.bench.peers import PEERS, every_peer, parse_peer, processes
from hasten.bench.peers.session import Arithmetic, PeerSession, pristine
from hasten.bench.schema import BenchReport, PeerChoice, Variant, read_report
from hasten.bench.summary import pairs, summarize
from hasten.bench.tables import overview, peers
from hasten.errors import HastenError
from hasten.generation import Session

PROMPT = "a red circle"
BASE = {"generation": {"num_inference_steps": 10, "width": 32, "height": 32}}
HOOKS = [name for name in PEERS if name.startswith("diffusers-")]


def open_session(pipe: Any, text: str) -> PeerSession:
    return PeerSession(Session.open(load_plan(BASE), PROMPT, pipe=pipe), parse_peer(text))


@pytest.fixture(scope="module")
def qwen() -> Any:
    return prompted.qwen()


@pytest.fixture(scope="module")
def unet() -> Any:
    return prompted.stable_diffusion()


# --- naming them ---


def test_a_peer_is_named_with_the_settings_that_differ_from_its_published_ones() -> None:
    choice = parse_peer("cache-dit:residual_diff_threshold=0.12,Fn_compute_blocks=2")
    assert choice == PeerChoice(name="cache-dit", settings={"residual_diff_threshold": 0.12, "Fn_compute_blocks": 2})
    assert choice.label == "cache-dit residual_diff_threshold=0.12 Fn_compute_blocks=2"
    assert parse_peer("diffusers-pab:spatial_attention_timestep_skip_range=[0, 500]").settings == {
        "spatial_attention_timestep_skip_range": [0, 500]
    }
    every = every_peer([choice])
    assert [one.name for one in every] == list(PEERS)
    assert choice in every


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cachedit", "no peer 'cachedit'; did you mean 'cache-dit'"),
        ("deepcache:cache_intervall=3", "no setting 'cache_intervall'; did you mean 'cache_interval'"),
        ("deepcache:", "NAME:KEY=VALUE"),
        ("deepcache:cache_interval", "NAME:KEY=VALUE"),
        ("deepcache:cache_interval=[", "NAME:KEY=VALUE"),
    ],
)
def test_a_misspelt_peer_is_refused_with_the_nearest_name(text: str, message: str) -> None:
    with pytest.raises(HastenError, match=message):
        parse_peer(text)


def test_the_settings_of_the_documented_table_exist() -> None:
    from benchmarks.bench import NEAR

    assert all(parse_peer(text).settings for text in NEAR)


def test_the_page_names_every_peer() -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text("utf-8")
    for name, peer in PEERS.items():
        assert f"| `{name}` | {peer.package} |" in page


# --- on a pipeline ---


def test_arithmetic_is_counted_by_hand() -> None:
    with Arithmetic() as counter:
        nn.Linear(3, 4)(torch.ones(2, 3))
    assert counter.total == 2 * 2 * 3 * 4


def test_nothing_of_what_a_peer_does_to_a_pipeline_is_left(qwen: Any) -> None:
    transformer, block = qwen.transformer, qwen.transformer.transformer_blocks[0]
    before = (
        type(block),
        dict(vars(block)),
        dict(vars(transformer)),
        dict(vars(type(qwen))),
        list(transformer.children()),
    )
    with pristine(qwen):
        block.forward = lambda *args, **named: None
        block.__class__ = type("Patched", (type(block),), {})
        block.register_forward_hook(lambda *args: None)
        transformer.transformer_blocks = nn.ModuleList()
        transformer.extra = 1
        type(qwen).__call__ = lambda self: None
        type(qwen).is_patched = True
        qwen.own = 2
    assert (
        type(block),
        dict(vars(block)),
        dict(vars(transformer)),
        dict(vars(type(qwen))),
        list(transformer.children()),
    ) == before
    assert not hasattr(qwen, "own")


@pytest.mark.parametrize("name", HOOKS)
def test_diffusers_caches_run_and_leave_no_trace_or_tell_why_they_cannot(qwen: Any, name: str) -> None:
    plain = Session.open(load_plan(BASE), PROMPT, pipe=qwen)
    reference = plain.run(PROMPT, 0).pixels
    more = {"diffusers-firstblock": ":threshold=9.0", "diffusers-seacache": ":threshold=0.9"}.get(name, "")
    session = open_session(qwen, name + more)
    if name in ("diffusers-pab", "diffusers-fastercache"):
        # One state for both branches, whose prompts differ in length here.
        with pytest.raises(RuntimeError, match="must match the size"):
            session.prepare(PROMPT, 0)
    else:
        session.prepare(PROMPT, 0)
        result = session.run(PROMPT, 0)
        assert bool(torch.isfinite(result.pixels).all())
        assert not torch.equal(result.pixels, reference)
        assert len(session.shares) == 10
        assert session.work is not None
        assert session.work < 9.5
        assert session.shares[0] == pytest.approx(1, abs=0.01)
        assert result.record.method == name
        assert "the plan alone makes the reference" in result.record.notes[-1]
    assert torch.equal(plain.run(PROMPT, 0).pixels, reference)


def test_a_peer_without_its_part_or_its_package_says_so(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PEERS["diffusers-taylorseer"].refuses(unet) == (
        "works on a pipeline's transformer, which StableDiffusionPipeline has not"
    )
    monkeypatch.setitem(sys.modules, "DeepCache", None)
    with pytest.raises(HastenError, match=r"not installed: pip install 'hasten\[peers\]'"):
        open_session(unet, "deepcache").prepare(PROMPT, 0)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["deepcache", "tomesd", "t-gate"])
def test_peers_of_unets_run_and_leave_no_trace(unet: Any, name: str) -> None:
    pytest.importorskip(PEERS[name].module)
    more = {"t-gate": ":gate_step=5", "tomesd": ":max_downsample=2"}.get(name, "")
    _runs_and_leaves_no_trace(unet, name + more)


@pytest.mark.peer
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["cache-dit", "cache-dit-taylorseer"])
def test_cache_dit_runs_and_leaves_no_trace(qwen: Any, name: str) -> None:
    pytest.importorskip("cache_dit")
    _runs_and_leaves_no_trace(qwen, f"{name}:residual_diff_threshold=0.9,max_warmup_steps=3")


def _runs_and_leaves_no_trace(pipe: Any, text: str) -> None:
    plain = Session.open(load_plan(BASE), PROMPT, pipe=pipe)
    reference = plain.run(PROMPT, 0).pixels
    session = open_session(pipe, text)
    session.prepare(PROMPT, 0)
    first, second = session.run(PROMPT, 0).pixels, session.run(PROMPT, 0).pixels
    assert not torch.equal(first, reference)
    assert torch.equal(first, second) or session.choice.name == "tomesd"  # which draws at random
    assert session.work is not None
    assert session.work < 9.9
    assert torch.equal(plain.run(PROMPT, 0).pixels, reference)


# --- in a process of its own ---


def theirs(folder: Path, **more: Any) -> BenchReport:
    """What a peer's process left in its folder: the reference and the peer, half as slow as elsewhere."""
    seconds = {"reference": [8.0, 8.4, 8.2], "deepcache": [2.0, 2.1, 2.05]}
    report = make(folder, seconds=seconds, psnr={"deepcache": [30.0, 31.0, 32.0]}, **more)
    rows = [
        variant if variant.name == "reference" else variant.model_copy(update={"kind": "peer", "work": 4.2})
        for variant in report.variants
    ]
    samples = [sample.model_copy(update={"computed": None, "skipped": None}) for sample in report.samples]
    report = report.model_copy(update={"variants": tuple(rows), "samples": tuple(samples)})
    report.save(folder)
    return report


def test_what_a_peers_process_measured_stands_against_its_own_reference(tmp_path: Path) -> None:
    folder = tmp_path / "peers" / "deepcache"
    folder.mkdir(parents=True)
    theirs(folder, notes=("something",))
    report = processes.take_over(make(tmp_path), parse_peer("deepcache"), folder, tmp_path)
    report = report.model_copy(update={"summary": summarize(report)})
    assert pairs(report, "deepcache") == ([8.0, 8.4, 8.2], [2.0, 2.1, 2.05])
    assert len(report.of("reference")) == 3
    assert next(s for s in report.summary if s.variant == "reference").median == 4.1
    assert [variant.kind for variant in report.variants] == ["reference", "plan", "peer", "fewer-steps"]
    assert report.notes == ("deepcache: something",)
    assert all((tmp_path / str(sample.image)).is_file() for sample in report.samples)
    row = next(row for row in overview(report).rows if row[0] == "deepcache")
    assert row[2].startswith("4.00×")
    assert row[3] == "≈ 4.2 of 10"
    report.save(tmp_path)
    assert read_report(tmp_path) == report


def test_another_reference_in_a_peers_process_is_noted(tmp_path: Path) -> None:
    other = theirs(tmp_path)
    samples = [s.model_copy(update={"digest": f"{s.digest}!"}) for s in other.samples]
    other.model_copy(update={"samples": tuple(samples)}).save(tmp_path)
    report = processes.take_over(make(), parse_peer("deepcache"), tmp_path, None)
    assert "the plain pipeline made other images in its process" in report.notes[0]
    assert all(sample.image is None for sample in report.samples if sample.process)


def test_a_peer_that_failed_is_a_row_with_its_package_and_its_error() -> None:
    report = processes.failed(make(), parse_peer("t-gate:gate_step=5"), "no such thing")
    table = peers(report)
    assert table is not None
    assert table.rows[0][0] == "t-gate gate_step=5"
    assert table.rows[0][1].startswith("tgate ")
    assert "gate_step=5, sp_interval=5" in table.rows[0][3]
    text = to_markdown(report)
    assert "t-gate gate\\_step=5 did not run: no such thing" in text


def request(**more: Any) -> processes.Request:
    report = make()
    settings = {"base": report.variants[0].plan, "settings": report.settings, "peer": parse_peer("deepcache")}
    return processes.Request(**settings | {"threads": 1} | more)


def interpreter(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin this in the place of a peer's process."""
    script = folder / "python"
    script.write_text(f"#!{sys.executable}\nimport json, pathlib, signal, sys, time\n{code}")
    script.chmod(0o755)
    monkeypatch.setattr(processes.sys, "executable", str(script))  # type: ignore[attr-defined]


def test_a_process_that_ends_without_a_report_is_an_error_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter(tmp_path, "print('first', file=sys.stderr); sys.exit('Killed by nobody')", monkeypatch)
    with pytest.raises(HastenError, match="its process ended with code 1: Killed by nobody"):
        processes.run(request(), tmp_path / "home", lambda text, done: None)


def test_an_interrupt_lets_a_peers_process_keep_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "theirs.json").write_text(theirs(tmp_path).model_dump_json())
    code = f"""
try:
    print(json.dumps(["warm-up", 0]), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path(sys.argv[3], "report.json").write_text(pathlib.Path({str(tmp_path / "theirs.json")!r}).read_text())
"""
    interpreter(tmp_path, code, monkeypatch)
    told: list[str] = []

    def interrupt(text: str, done: int) -> None:
        told.append(text)
        raise KeyboardInterrupt

    kept: list[BenchReport] = []
    with pytest.raises(KeyboardInterrupt):
        processes.measure(
            make(), [(parse_peer("deepcache"), None)], request().base, tmp_path, tell=interrupt, keep=kept.append
        )
    assert told == ["deepcache: warm-up"]
    assert len(kept[0].of("deepcache")) == 3


def test_peers_are_measured_beside_plans_and_leave_this_process_alone(tmp_path: Path) -> None:
    model = str(prompted.save(prompted.qwen(), tmp_path / "tiny", prompted.NATIVE))
    base = {**BASE, "model": model}
    chosen = ["diffusers-taylorseer-lite:cache_interval=3", "diffusers-pab", "deepcache"]

    def run(previous: BenchReport | None = None) -> BenchReport:
        bench = Bench(
            base,
            ["taylorseer"],
            [PROMPT],
            rounds=2,
            peers=list(map(parse_peer, chosen)),
            out=tmp_path,
            previous=previous,
        )
        return bench.run()

    report = run()
    assert report.complete
    names = [variant.name for variant in report.variants]
    assert names[:3] == ["reference", "taylorseer", "diffusers-taylorseer-lite cache_interval=3"]
    lite = report.variant(names[2])
    assert lite.error is None
    assert lite.peer is not None
    assert lite.peer.settings["cache_interval"] == 3
    assert lite.work is not None
    assert 4 < lite.work < 8
    assert [step.computed for step in lite.steps].count(True) == round(lite.work)
    assert f"fewer-steps {round(lite.work)}" in names
    assert "must match the size" in (report.variant("diffusers-pab").error or "")
    assert "unet" in (report.variant("deepcache").error or "") or "not installed" in (
        report.variant("deepcache").error or ""
    )
    assert len(report.of(lite.name)) == 2
    summary = next(one for one in report.summary if one.variant == lite.name)
    assert (summary.computed, summary.psnr is None) == (None, False)
    own = {sample.digest for sample in report.samples if sample.variant == "reference"}
    assert len(own) == 1  # the same pixels in every process
    assert (tmp_path / str(report.of(lite.name)[0].image)).is_file()
    assert read_report(tmp_path) == report

    changed = (tmp_path / "peers" / "diffusers-pab" / "report.json").stat().st_mtime_ns
    again = run(previous=report)
    assert (tmp_path / "peers" / "diffusers-pab" / "report.json").stat().st_mtime_ns == changed
    assert again.samples == report.samples


def test_peers_need_a_model_that_another_process_can_load(qwen: Any) -> None:
    with pytest.raises(HastenError, match="name a model"):
        benchmark("taylorseer", PROMPT, base=BASE, pipe=qwen, peers=["deepcache"])


def test_a_report_of_the_first_version_is_still_read(tmp_path: Path) -> None:
    data = make().model_dump(mode="json")
    data["version"] = 1
    del data["settings"]["peers"]
    for row in data["variants"]:
        for name in ("process", "peer", "work"):
            del row[name]
    for row in data["samples"]:
        del row["process"]
    (tmp_path / "report.json").write_text(json.dumps(data))
    report = read_report(tmp_path)
    assert isinstance(report.variants[0], Variant)
    assert len(report.of("taylorseer")) == 3
