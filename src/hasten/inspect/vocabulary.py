"""diffusers' names for a denoiser's arguments, and what each is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch

from hasten.inspect.ingredients import (
    as_many,
    attention_mask,
    codes,
    dropped,
    encoded,
    face_features,
    face_pixels,
    frame_axes,
    frame_indices,
    guidance,
    history,
    history_indices,
    image_features,
    image_ids,
    image_places,
    image_shapes,
    image_slots,
    kept_keys,
    labels,
    layers_of_text,
    listed_text,
    no_image,
    numbers,
    ones,
    padding_mask,
    pooled,
    pose,
    positions,
    protein,
    roles,
    rotations,
    sound_places,
    stacked_text,
    tags,
    text,
    text_codes,
    text_ids,
    text_lengths,
    text_mask,
    text_places,
    time,
)
from hasten.inspect.known import known

if TYPE_CHECKING:
    from hasten.inspect.inputs import Maker

When = Literal["always", "others", "optional", "required"]
_CPU = "cpu"

_Make = Callable[["Maker", str], Any]
# Names of arguments → when they are given and what they are; the first that fits counts.
VOCABULARY: tuple[tuple[str, When, _Make], ...] = (
    (r"return_dict", "always", lambda maker, name: False),
    (
        r"added_cond_kwargs",
        "always",
        lambda m, name: m.asked(*(("resolution", "aspect_ratio") if m.attempt.optional else ())),
    ),
    (r"cross_attention_kwargs", "optional", lambda maker, name: {}),
    # when
    (r"timesteps?|t|timestep_ratio", "always", time),
    (
        r"timestep_indices",
        "required",
        lambda maker, name: known(torch.zeros(maker.sequence, dtype=torch.long, device=_CPU)),
    ),
    (r"vision_timesteps", "required", lambda maker, name: known(torch.full((maker.tokens,), 500.0, device=_CPU))),
    (r"timestep_\w+|\w+_timestep|\w+_time|sigma", "required", time),
    (r"guidance", "always", guidance),
    (r"fps", "required", labels),
    # the prompt
    (r"encoder_hidden_states", "always", text),
    (r"encoder_hidden_states_image", "required", image_features),
    (r"encoder_hidden_states_llama3", "others", stacked_text),
    (r"text_encoder_layers", "always", layers_of_text),
    (r"text_bth", "required", text),
    (r"text_lens", "required", text_lengths),
    (r"cap_feats", "required", listed_text),
    (r"encodings_and_masks", "required", encoded),
    (
        r"(audio_)?encoder_(hidden_states|attention)_mask(_\w+)?|encoder_mask|text_embedding_mask\w*",
        "optional",
        text_mask,
    ),
    (r"\w*encoder_hidden_states\w*|prompt_embeds|text_hidden_states", "others", text),
    (r"pooled_projections|pooled_embeds|pooled_text_emb|clip_text_pooled|text_embeds", "always", pooled),
    (r"global_hidden_states|id_cond", "optional", pooled),
    (r"class_labels|style", "optional", labels),
    # pictures, films and sound beside it
    (r"image_embeds", "optional", no_image),
    (r"image_embeddings|proj_embedding", "always", pooled),
    (r"id_vit_hidden", "optional", face_features),
    (r"face_pixel_values", "optional", face_pixels),
    (r"pose_hidden_states", "optional", pose),
    (r"control_hidden_states", "always", lambda maker, name: maker.beside(name)),
    (
        r"control_hidden_states_scale",
        "always",
        lambda maker, name: ones(len(maker.config.get("vace_layers") or (0,)), dtype=torch.float32),
    ),
    (r"context_latents|condition_latents|image_latents", "required", lambda maker, name: maker.beside(name)),
    (r"latent_cond", "optional", lambda maker, name: maker.beside(name)),
    (r"local_latents", "required", lambda maker, name: maker.beside(name, maker.config.get("latent_dim"))),
    (
        r"local_add_cond",
        "optional",
        lambda m, name: m.floats(name, m.grid.batch, m.widths[name], m.attempt.layout.shape(1, m.grid)[-1]),
    ),
    (r"latents_(clean|history_\dx)", "optional", history),
    (r"indices_latents_\w+", "optional", history_indices),
    (r"indices_(latents|hidden_states)", "optional", frame_indices),
    (r"audio_hidden_states", "always", lambda m, name: m.floats(name, m.grid.batch, m.sound, m.widths[name])),
    (r"audio_num_frames", "always", lambda maker, name: maker.sound),
    # where
    (r"img_ids", "always", image_ids),
    (r"txt_ids", "always", text_ids),
    (r"img_shapes", "always", image_shapes),
    (r"shape_list", "always", lambda maker, name: [[maker.patches]] * maker.grid.batch),
    (r"position_ids", "required", positions),
    (r"segment_ids", "required", lambda maker, name: ones(maker.grid.batch, maker.sequence)),
    (r"\w*(rotary_emb|rotary_embedding)", "required", rotations),
    (r"visual_rope_pos", "required", frame_axes),
    (r"text_rope_pos", "required", text_places),
    (r"chunk_partition", "required", lambda maker, name: [1] * maker.grid.frames),
    (r"indicator", "required", roles),
    (r"img_mask", "required", image_slots),
    (r"padding_mask", "optional", padding_mask),
    (r"attention_mask", "required", attention_mask),
    # one sequence of everything
    (r"input_ids", "required", text_codes),
    (r"text_ind(ex|ic)es", "required", text_places),
    (r"video_indices|vision_(sequence|mse_loss)_indexes", "required", image_places),
    (r"audio_indices", "required", sound_places),
    (r"token_tags", "required", tags),
    (r"und_len", "required", lambda maker, name: maker.grid.text),
    (r"seq_len", "required", lambda maker, name: maker.tokens),
    (r"sequence_length", "required", lambda maker, name: maker.grid.text + maker.tokens),
    (r"vision_token_shapes", "required", lambda maker, name: [maker.patches]),
    (r"vision_noisy_frame_indexes", "required", lambda m, name: [known(torch.arange(m.patches[0], device=_CPU))]),
    (r"input_img_latents", "required", lambda maker, name: []),
    (r"input_image_sizes", "required", lambda maker, name: {}),
    (r"kv_cache", "required", kept_keys),
    (r"kv_cache_mode", "required", lambda maker, name: "extract"),
    (
        r"(offset|reference)_grid_sizes",
        "optional",
        lambda maker, name: known(torch.tensor([maker.patches], device=_CPU)),
    ),
    # figures
    (r"original_size|target_size|crop_coords|resolution", "always", numbers(2)),
    (r"time_ids|image_meta_size", "always", numbers(6)),
    (r"added_time_ids", "required", as_many("projection_class_embeddings_input_dim", "addition_time_embed_dim", 3)),
    (r"micro_conds", "required", as_many("micro_cond_embed_dim", "micro_cond_encode_dim", 5)),
    (r"aspect_ratio", "always", numbers(1)),
    (r"num_frames", "always", lambda maker, name: maker.grid.frames),
    (r"height", "always", lambda maker, name: maker.grid.height // maker.grid.patch),
    (r"width", "always", lambda maker, name: maker.grid.width // maker.grid.patch),
    (r"prior_token_id", "required", codes),
    (r"prior_token_drop", "required", dropped),
    (r"token_type", "optional", codes),
    (r"conditioning", "always", protein),
)
