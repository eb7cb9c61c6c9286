"""Everything that can be told of one set of pictures, films or latents against another, in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch

from hasten.errors import HastenError
from hasten.metrics.adherence import (
    Prompts,
    captions,
    judge_by_clip,
    judge_scenes,
    pictures_of,
    record_of,
    take_rewards,
)
from hasten.metrics.clip import Clip
from hasten.metrics.distribution import frechet_distance, kernel_distance
from hasten.metrics.embedding import EmbeddingDistance
from hasten.metrics.features import load_extractor
from hasten.metrics.fidelity import identical, max_difference, ms_ssim
from hasten.metrics.findings import Findings, Tools, some
from hasten.metrics.latents import latent_errors
from hasten.metrics.lpips import Lpips
from hasten.metrics.report import Distance, Failure, Measurement, Pair
from hasten.metrics.scores import read_scores
from hasten.metrics.sources import Item, match, open_source
from hasten.metrics.videos import video_errors

OnPair = Callable[[int, int], None]


def measure(
    image: Any,
    reference: Any = None,
    *,
    prompts: Prompts | None = None,
    reference_prompts: Prompts | None = None,
    clip: str | Path | None = None,
    lpips: str | Path | None = None,
    embedding: str | Path | Sequence[str | Path] | None = None,
    features: str | Path | None = "scenes",
    scores: str | Path | None = None,
    video: bool = False,
    device: str = "cpu",
    on_pair: OnPair | None = None,
) -> Measurement:
    """Measure pictures against their references, and against their prompts.

    Args:
        image, reference: see `hasten.metrics.sources.open_source`; paired by name, then by prompt and seed where hasten
            wrote them into the PNG. Without a reference only adherence is measured.
        prompts: one for all, one for each in order, or by name; by default those that hasten wrote into the PNG.
        reference_prompts: captions of the references, where `image` is an edit of them: for the directional similarity.
        clip: folder of a CLIP model.
        lpips: file or folder of LPIPS' backbone, see `hasten.metrics.lpips`.
        embedding: folders of vision models, for a distance as DreamSim's, see `hasten.metrics.embedding`.
        features: what the distance of sets is measured in, see `hasten.metrics.features`; None leaves it out.
        scores: file of another program's scores, see `hasten.metrics.scores`.
        video, device: see `open_source`; where networks run.
        on_pair: called with (pairs done, pairs in all).

    Raises:
        HastenError: nothing to measure, nothing that belongs together, or a model or file that cannot be read. What
            concerns only one metric or one pair of several is no error: the result says so.
    """
    images = open_source(image, video)
    references = [] if reference is None else open_source(reference, video)
    # Models first: a wrong path should not cost the minutes that the pictures take.
    tools = Tools(
        clip=None if clip is None else Clip(clip, device),
        lpips=None if lpips is None else Lpips(lpips, device),
        embedding=None if embedding is None else EmbeddingDistance(embedding, device),
        extractor=None if features is None else load_extractor(features, device),
        scores=None if scores is None else read_scores(scores),
    )
    found = Findings()
    if references:
        _compare(images, references, tools, found, on_pair)
    else:
        found.miss("fidelity", "there is no reference")
    pictures = {"image": pictures_of(images), "reference": pictures_of(references)}
    asked = captions(pictures["image"], prompts)
    words = {"image": asked, "reference": captions(pictures["reference"], reference_prompts)}
    if prompts is not None and reference_prompts is None:
        # The same request as the partner's; only what was edited has captions of its own.
        words["reference"] = {b.name: asked[a.name] for a, b in found.matched if a.name in asked}
    judge_scenes(pictures, words, found)
    judge_by_clip(pictures, words, tools, found, edit=reference_prompts is not None)
    take_rewards(images, references, tools, found)
    if references:
        _distances(pictures["image"], pictures["reference"], tools, found)
    return found.done()


# --- fidelity


def _compare(images: list[Item], references: list[Item], tools: Tools, found: Findings, on_pair: OnPair | None) -> None:
    matching = match(images, references, _prompt_and_seed)
    if not matching.pairs:
        raise HastenError(
            f"nothing belongs together: {some(matching.left)} on one side, {some(matching.right)} on the other; "
            "pictures are paired by name, or by prompt and seed where hasten wrote them into the PNG"
        )
    found.unmatched = (matching.left, matching.right)
    for number, (image, reference) in enumerate(matching.pairs, start=1):
        try:
            found.pairs.append(_pair(image, reference, tools, found))
            found.matched.append((image, reference))
        except HastenError as error:
            if len(matching.pairs) == 1:
                raise
            found.failed.append(Failure(image.name, str(error)))
        if on_pair is not None:
            on_pair(number, len(matching.pairs))
    if not found.pairs:
        raise HastenError(f"no pair could be compared; the first, {found.failed[0].name}: {found.failed[0].reason}")
    if tools.lpips is None:
        found.miss("lpips", "no weights were named")
    if tools.embedding is None:
        found.miss("embedding_distance", "no vision model was named")
    if tools.clip is None:
        found.miss("clip_image_similarity", "no CLIP model was named")


def _pair(image: Item, reference: Item, tools: Tools, found: Findings) -> Pair:
    if image.latent != reference.latent:
        raise HastenError(
            f"{image.name} and {reference.name}: a tensor file is a latent, and compared with latents only"
        )
    a, b = image.load(), reference.load()
    if image.latent:
        errors = latent_errors(a, b)
        values = {
            "relative_l1": errors.relative_l1,
            "relative_l2": errors.relative_l2,
            "cosine": errors.cosine,
            "max_difference": errors.max_difference,
        }
        return Pair(image.name, reference.name, torch.equal(a, b), values)
    film = video_errors(a, b)
    same = identical(a, b)
    ratios = [value for value in film.psnr if value != math.inf]
    values = {
        # Frames that are identical have no finite ratio; they are left out of the mean, and per_frame shows them.
        "psnr": sum(ratios) / len(ratios) if ratios else math.inf,
        "ssim": sum(film.ssim) / len(film.ssim),
        "max_difference": max_difference(a, b),
    }
    try:
        values["ms_ssim"] = ms_ssim(a, b)
    except HastenError as error:
        found.miss("ms_ssim", str(error))
    finite = bool(a.isfinite().all() and b.isfinite().all())
    if not finite:
        found.notes.append(f"{image.name}: it or its reference holds NaN or infinity: no quality can be told")
    if tools.lpips is not None:
        try:
            values["lpips"] = tools.lpips(a, b) if finite else math.nan
        except HastenError as error:
            found.miss("lpips", str(error))
    if tools.embedding is not None:
        values["embedding_distance"] = tools.embedding(a, b) if finite else math.nan
    if tools.clip is not None:
        likeness = (
            (tools.clip.embed_images(a) * tools.clip.embed_images(b)).sum(1) if finite else torch.tensor(math.nan)
        )
        values["clip_image_similarity"] = likeness.mean().item()
    if len(a) == 1:
        return Pair(image.name, reference.name, same, values)
    values |= {"temporal_l1": film.temporal_l1, "temporal_relative_l2": film.temporal_relative_l2}
    return Pair(image.name, reference.name, same, values, {"psnr": film.psnr, "ssim": film.ssim})


def _prompt_and_seed(item: Item) -> Hashable | None:
    record = record_of(item)
    return None if record is None else (record.prompt, record.seed, record.width, record.height)


# --- distance of the sets


def _distances(images: list[Item], references: list[Item], tools: Tools, found: Findings) -> None:
    extractor = tools.extractor
    reason = None
    if extractor is None:
        reason = "no features were named"
    elif min(len(images), len(references)) < 2:
        reason = f"sets of {len(images)} and {len(references)} pictures have no distribution"
    if reason is not None or extractor is None:
        for metric in ("frechet_distance", "kernel_distance"):
            found.miss(metric, reason or "")
        return
    try:
        a, b = (torch.cat([extractor(item.load().float()) for item in side]) for side in (images, references))
        frechet, (kernel, spread) = frechet_distance(a, b), kernel_distance(a, b)
    except HastenError as error:
        for metric in ("frechet_distance", "kernel_distance"):
            found.miss(metric, str(error))
        return
    where = (extractor.name, a.shape[1], len(a), len(b))
    found.distances.append(Distance("frechet_distance", frechet, None, *where))
    found.distances.append(Distance("kernel_distance", kernel, spread, *where))
    if min(len(a), len(b)) <= a.shape[1]:
        found.notes.append(
            f"{min(len(a), len(b))} pictures are few for {a.shape[1]} dimensions: the Fréchet distance is biased and "
            "the kernel distance noisy; compare only sets of equal sizes"
        )
