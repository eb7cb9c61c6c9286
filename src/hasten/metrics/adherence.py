"""How well pictures show what was asked: the scenes checker, CLIP, and scores that another program gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hasten.errors import HastenError
from hasten.metrics.clip import clip_score, directional_similarity
from hasten.metrics.findings import Findings, Tools, some
from hasten.metrics.report import Adherence
from hasten.metrics.scenes import parse, score
from hasten.metrics.sources import Item

Prompts = str | Sequence[str] | Mapping[str, str]


def pictures_of(items: Sequence[Item]) -> list[Item]:
    return [item for item in items if not item.latent]


def captions(items: list[Item], prompts: Prompts | None) -> dict[str, str]:
    """The prompt of each item that has one: as given, or as hasten wrote it into the PNG.

    Raises:
        HastenError: a list of another length, or a mapping that names none of the items.
    """
    if prompts is None:
        return {item.name: record.prompt for item in items if (record := record_of(item)) is not None}
    if isinstance(prompts, str):
        return {item.name: prompts for item in items}
    if isinstance(prompts, Mapping):
        found = {item.name: prompts.get(item.name, prompts.get(item.stem)) for item in items}
        if items and not any(found.values()):
            raise HastenError(f"the prompts name {some(list(prompts))}; the pictures are {some(list(found))}")
        return {name: prompt for name, prompt in found.items() if prompt is not None}
    if len(prompts) != len(items):
        raise HastenError(f"there are {len(prompts)} prompts for {len(items)} pictures")
    return {item.name: prompt for item, prompt in zip(items, prompts, strict=True)}


_Sides = Mapping[str, list[Item]]
_Words = Mapping[str, dict[str, str]]
_NO_PROMPT = "no prompt is known: none was given, and the files say none"


def judge_scenes(pictures: _Sides, words: _Words, found: Findings) -> None:
    from hasten.zoo.evaluation import summary

    if not words["image"]:
        found.miss("scenes", _NO_PROMPT)
        return
    told: dict[str, dict[str, float]] = {}
    strange: dict[str, str] = {}
    count = 0
    for side, items in pictures.items():
        scores = []
        for item in items:
            prompt = words[side].get(item.name)
            if prompt is None:
                continue
            try:
                scene = parse(prompt)
            except ValueError as error:
                strange[prompt] = str(error)
                continue
            try:
                frames = item.load().float()
            except HastenError as error:
                found.miss("scenes", str(error))
                continue
            if frames.isfinite().all():
                scores += [score(scene, frame.expand(3, -1, -1)) for frame in frames]
        told[side] = summary(scores) if scores else {}
        count = len(scores) if side == "image" else count
    if strange:
        more = f" (and {len(strange) - 1} more such prompts)" if len(strange) > 1 else ""
        found.miss("scenes", next(iter(strange.values())) + more)
    for name, value in told["image"].items():
        metric = f"scenes_{name.replace(' ', '_')}"
        found.adherence.append(Adherence(metric, value, told["reference"].get(name), count))


def judge_by_clip(pictures: _Sides, words: _Words, tools: Tools, found: Findings, edit: bool) -> None:
    clip = tools.clip
    if clip is None:
        found.miss("clip_score", "no CLIP model was named")
        return
    if not words["image"]:
        found.miss("clip_score", _NO_PROMPT)
        return
    seen: dict[str, torch.Tensor] = {}
    scores: dict[str, list[float]] = {}
    texts = {prompt: clip.embed_texts([prompt])[0] for side in words.values() for prompt in side.values()}
    cut = sum(not clip.fits(prompt) for prompt in texts)
    for side, items in pictures.items():
        scores[side] = []
        for item in items:
            if (prompt := words[side].get(item.name)) is None:
                continue
            try:
                embeddings = clip.embed_images(item.load())
            except HastenError as error:
                found.miss("clip_score", f"{item.name}: {error}")
                continue
            seen[f"{side} {item.name}"] = embeddings.mean(0)
            scores[side] += [clip_score(embedding, texts[prompt]) for embedding in embeddings]
    if cut:
        found.notes.append(f"CLIP reads {clip.max_tokens} tokens: {cut} of {len(texts)} prompts were cut there")
    if scores["image"]:
        found.adherence.append(
            Adherence("clip_score", _mean(scores["image"]), _mean(scores["reference"]), len(scores["image"]))
        )
    if not edit:
        found.miss("clip_directional_similarity", "the references have no captions of their own")
        return
    values = [
        directional_similarity(after, before, texts[words["image"][a.name]], texts[words["reference"][b.name]])
        for a, b in found.matched
        if (after := seen.get(f"image {a.name}")) is not None
        and (before := seen.get(f"reference {b.name}")) is not None
    ]
    if values:
        found.adherence.append(Adherence("clip_directional_similarity", _mean(values), None, len(values)))
    else:
        found.miss("clip_directional_similarity", "no pair has both captions")


def take_rewards(images: list[Item], references: list[Item], tools: Tools, found: Findings) -> None:
    scores = tools.scores
    if scores is None:
        found.miss("reward", "no file of scores was named")
        return

    def values(items: list[Item]) -> list[float]:
        # A path as the other program wrote it, the name within the folder, or the name alone.
        keys = [(str(item.path), item.name, item.name.rpartition("/")[2], item.stem) for item in items]
        return [scores[key] for names in keys if (key := next((one for one in names if one in scores), None))]

    of_images, of_references = values(images), values(references)
    if not of_images:
        found.miss("reward", f"the file of scores names none of these pictures; it names {some(list(scores))}")
        return
    if len(of_images) < len(images):
        found.notes.append(f"{len(images) - len(of_images)} of {len(images)} pictures have no score")
    # The same name on both sides would give both the same score: a file cannot tell them apart then.
    ambiguous = {item.name for item in images} & {item.name for item in references} & set(scores)
    if ambiguous:
        found.notes.append("the scores name pictures that both sides have: they were taken for the first side's")
    found.adherence.append(
        Adherence("reward", _mean(of_images), None if ambiguous else _mean(of_references), len(of_images))
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def record_of(item: Item) -> Any:
    if item.path is None or item.path.suffix.lower() not in (".png", ".apng"):
        return None
    from hasten.record import read_png

    try:
        return read_png(item.path).record
    except HastenError:  # a picture of another program
        return None
