"""Memory: decoding in parts, weights that wait elsewhere, and limits that are kept or refused."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import prompted
import tiny
from hasten import accelerate, load_plan
from hasten.errors import PassError, PlanError
from hasten.passes.activations import estimate
from passes.states import state


@pytest.fixture(scope="module")
def qwen() -> Any:
    return tiny.qwen(2)


def weights(pipe: Any) -> list[torch.Tensor]:
    return [tensor.clone() for part in (pipe.transformer, pipe.vae) for tensor in part.state_dict().values()]


def test_the_vae_decodes_in_parts_while_the_plan_is_on(qwen: Any) -> None:
    call = tiny.qwen_call(steps=2, batch=2, output_type="pt")
    plain = qwen(**call).images
    before = state(qwen)
    with accelerate(qwen, "none", memory={"vae_slicing": True, "vae_tiling": True}) as handle:
        result = qwen(**tiny.qwen_call(steps=2, batch=2, output_type="pt")).images
        assert qwen.vae.use_slicing
        assert qwen.vae.use_tiling
        assert "memory: vae: decodes image by image" in str(handle.report())
    assert torch.allclose(result, plain, atol=1e-4)
    assert state(qwen) == before


@pytest.mark.parametrize("group", ["leaf", "block"])
def test_weights_wait_on_disk_until_they_are_used(group: str, tmp_path: Any) -> None:
    pipe = tiny.qwen(2)
    plain, before, names = pipe(**tiny.qwen_call(steps=2)).images, weights(pipe), set(vars(pipe.transformer))
    settings = {"offload": "group", "group": group, "disk": str(tmp_path)}
    with accelerate(pipe, interval=2, first_enhance=1, cooldown=0, memory=settings) as handle:
        assert list(tmp_path.glob("*/*.safetensors"))
        pipe(**tiny.qwen_call(steps=4))
        assert handle.report().skipped_steps > 0
    assert all(torch.equal(one, other) for one, other in zip(before, weights(pipe), strict=True))
    assert set(vars(pipe.transformer)) == names
    assert not list(tmp_path.iterdir())
    assert torch.equal(pipe(**tiny.qwen_call(steps=2)).images, plain)


def test_a_limit_chooses_the_cheapest_settings_and_says_which(qwen: Any) -> None:
    pipe = prompted.qwen()
    with accelerate(pipe, "none", memory="64GiB", width=32, height=32) as handle:
        assert "limit 64.00 GiB: nothing to do, estimated 0.00 GiB" in str(handle.report())
    with accelerate(pipe, "none", memory={"limit": "10 MiB"}, width=512, height=512) as handle:
        assert "VAE in tiles" in str(handle.report())
        assert pipe.vae.use_tiling
    with pytest.raises(
        PassError, match=r"memory\.limit: 0\.00 GiB are too little for QwenImagePipeline \(nothing to do"
    ):
        accelerate(pipe, "none", memory={"limit": "1kB"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offload": "model"}, "there is none here; offload: group with disk: FOLDER works on the CPU"),
        ({"offload": "sequential"}, "there is none here"),
        ({"offload": "group"}, "there is no accelerator here to offload from; with disk: FOLDER"),
        ({"offload": "group", "disk": "x", "stream": True}, r"memory\.stream: .* needs an accelerator"),
        ({"free_text_encoder": True}, "memory.free_text_encoder: QwenImagePipeline has no text encoder"),
    ],
)
def test_what_needs_an_accelerator_says_so_without_one(qwen: Any, settings: Any, message: str) -> None:
    before = state(qwen)
    with pytest.raises(PassError, match=message):
        accelerate(qwen, "none", memory=settings)
    assert state(qwen) == before


def test_a_text_encoder_waits_on_disk(tmp_path: Any) -> None:
    pipe = prompted.qwen()
    with accelerate(pipe, "none", memory={"free_text_encoder": True, "disk": str(tmp_path)}) as handle:
        pipe("a red circle", num_inference_steps=2, width=32, height=32, output_type="latent")
        assert [row.component for row in handle.report().passes] == ["text_encoder"]


@pytest.mark.parametrize(("written", "size"), [("8GiB", 8 * 2**30), ("512 MB", 512e6), (1000, 1000)])
def test_sizes_are_read_with_their_units(written: Any, size: float) -> None:
    assert load_plan(memory={"limit": written}).memory.limit == size


def test_a_wrong_size_is_refused() -> None:
    with pytest.raises(
        PlanError, match=r"memory\.limit: must be bytes with a unit, such as 8GiB or 512MB, not '8 apples'"
    ):
        load_plan({"memory": "8 apples"})


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings",
    [
        {"offload": "model"},
        {"offload": "sequential"},
        {"offload": "group", "stream": True},
        {"free_text_encoder": True},
    ],
)
def test_weights_come_to_the_accelerator_when_they_are_used(settings: Any) -> None:
    pipe = prompted.qwen().to("cuda")
    call = {"num_inference_steps": 2, "width": 32, "height": 32, "output_type": "latent"}
    plain = pipe("a red circle", generator=torch.Generator().manual_seed(0), **call).images
    with accelerate(pipe, "none", memory=settings):
        result = pipe("a red circle", generator=torch.Generator().manual_seed(0), **call).images
    assert torch.allclose(result, plain, atol=1e-4)
    assert {p.device.type for part in (pipe.transformer, pipe.vae, pipe.text_encoder) for p in part.parameters()} == {
        "cuda"
    }


class Live(TorchDispatchMode):
    """The most bytes that the results of operations took at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            tensor.untyped_storage()._cdata
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in before | self._known:
                storage = tensor.untyped_storage()
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.mark.parametrize("family", ["unet", "transformer"])
def test_activations_are_estimated_within_a_factor(family: str) -> None:
    if family == "unet":
        model: Any = tiny.unet(
            1,
            block_out_channels=(32, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
        inputs = {"sample": tiny.noise(2, 4, 32, 32), "encoder_hidden_states": tiny.noise(2, tiny.TEXT, 24)}
        guess = estimate(model, 32, 32, 4, 2)
    else:
        model = tiny.qwen_transformer(2)
        inputs = {
            "hidden_states": tiny.noise(1, 1024, 16),
            "encoder_hidden_states": tiny.noise(1, tiny.TEXT, 24),
            "encoder_hidden_states_mask": torch.ones(1, tiny.TEXT, dtype=torch.long),
            "img_shapes": [[(1, 32, 32)]],
        }
        guess = estimate(model, 64, 64, 4, 1)
    live = Live()
    with torch.no_grad(), live:
        model(**inputs, timestep=torch.full((len(next(iter(inputs.values()))),), 0.5))
    assert 0.5 < guess / live.peak < 2
