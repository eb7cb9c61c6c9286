"""One forward pass tells the cost, what attends to what, and what goes around what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hasten.inspect.known import META, KnownValues
from hasten.inspect.trails import Trail, mark
from hasten.inspect.watching import Attention, Watch, on_meta


def watched(model: nn.Module, batch: int = 1, stream: str | None = None, **shapes: tuple[int, ...]) -> Watch:
    """Call a model with inputs of these shapes; the second size counts tokens."""
    watch = Watch(model.to(META), batch, stream)
    with on_meta(watch):
        inputs = {name: torch.empty(shape) for name, shape in shapes.items()}
        for name, tensor in inputs.items():
            mark(tensor, Trail(((name, tensor.shape[1]),)))
        model(**inputs)
    return watch


class Attends(nn.Module):
    """Attention with its projections; `text` is read or joined."""

    def __init__(self, width: int, heads: int, joint: bool = False, by_hand: bool = False) -> None:
        super().__init__()
        self.heads, self.joint, self.by_hand = heads, joint, by_hand
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.add_q, self.add_k, self.add_v = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width // heads)

    def forward(self, image: Tensor, text: Tensor | None = None) -> Any:
        source = text if text is not None and not self.joint else image
        q, k, v = self.to_q(image), self.to_k(source), self.to_v(source)
        if self.joint and text is not None:
            q, k, v = (
                torch.cat([add(text), own], dim=1) for add, own in ((self.add_q, q), (self.add_k, k), (self.add_v, v))
            )
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        q = self.norm(q)
        if self.by_hand:
            weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
            out = (weights @ v).transpose(1, 2).flatten(2)
        else:
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if self.joint and text is not None:
            return out[:, text.shape[1] :], out[:, : text.shape[1]]
        return out


def only(watch: Watch, path: str = "") -> Attention:
    (attention,) = watch.seen[path].attentions
    return attention


def test_self_attention_reads_what_it_asks_with() -> None:
    found = only(watched(Attends(8, 2), image=(1, 16, 8)))
    assert (found.kind, found.heads, found.head_dim, found.causal) == ("self", 2, 4, False)
    assert (found.q.layers, found.k.layers, found.v.layers) == (("to_q",), ("to_k",), ("to_v",))
    assert found.q.streams == found.k.streams == ("image",)


def test_cross_attention_reads_the_other_stream() -> None:
    found = only(watched(Attends(8, 2), image=(1, 16, 8), text=(1, 5, 8)))
    assert found.kind == "cross"
    assert (found.q.streams, found.q.tokens) == (("image",), 16)
    assert (found.k.streams, found.k.tokens) == (("text",), 5)


def test_joint_attention_reads_both_and_parts_again() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Attends(8, 2, joint=True), Attends(8, 2)

        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            image, text = self.first(image, text)
            return self.second(image, text)

    watch = watched(Two(), image=(1, 16, 8), text=(1, 5, 8))
    joint, after = only(watch, "first"), only(watch, "second")
    assert joint.kind == "joint"
    assert joint.q.layers == ("add_q", "to_q")
    assert joint.k.streams == ("text", "image")
    assert joint.k.tokens == 21
    assert after.kind == "cross"
    assert (after.q.streams, after.k.streams) == (("image",), ("text",))


def test_attention_written_out_is_seen_like_the_function() -> None:
    shapes: Any = {"image": (2, 16, 8), "text": (2, 5, 8)}
    by_hand = watched(Attends(8, 2, by_hand=True), batch=2, **shapes)
    function = watched(Attends(8, 2), batch=2, **shapes)
    one, other = only(by_hand), only(function)
    assert (one.kind, one.heads, one.head_dim) == (other.kind, other.heads, other.head_dim)
    assert (one.q, one.k) == (other.q, other.k)
    assert by_hand.seen[""].attention_macs == function.seen[""].attention_macs > 0


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(*[st.integers(1, 4)] * 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 3),
)
def test_macs_of_a_convolution_follow_from_its_shape(
    sizes: tuple[int, int, int], kernel: int, groups: int, batch: int
) -> None:
    into, out, side = sizes[0] * groups, sizes[1] * groups, sizes[2] + 3
    conv = nn.Conv2d(into, out, kernel, groups=groups, padding=1)
    watch = Watch(conv.to(META), batch)
    with on_meta(watch):
        conv(torch.empty(batch, into, side, side))
    left = side + 2 - kernel + 1
    assert watch.seen[""].macs == batch * out * left**2 * into // groups * kernel**2


def test_macs_of_linear_layers_and_attention_follow_from_their_shapes() -> None:
    watch = watched(Attends(8, 2), batch=3, image=(3, 16, 8), text=(3, 5, 8))
    assert watch.seen["to_q"].macs == 3 * 16 * 8 * 8
    assert watch.seen["to_k"].macs == 3 * 5 * 8 * 8
    assert watch.seen[""].macs == watch.seen[""].attention_macs == 2 * 3 * 16 * 5 * 8


def test_the_model_is_left_as_it_was() -> None:
    model = Attends(8, 2).to(META)
    watched(model, image=(1, 16, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with on_meta(KnownValues()):
        assert model(torch.empty(1, 16, 8)).shape == (1, 16, 8)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x))


class Net(nn.Module):
    """Blocks down, one in the middle, blocks up that take what the ones down left."""

    def __init__(self, width: int, added: bool) -> None:
        super().__init__()
        self.down = nn.ModuleList(Block(width) for _ in range(2))
        self.mid = Block(width)
        self.up = nn.ModuleList(nn.Linear(width if added else 2 * width, width) for _ in range(2))
        self.added = added

    def forward(self, sample: Tensor) -> Tensor:
        left = []
        for block in self.down:
            sample = block(sample)
            left.append(sample)
        sample = self.mid(sample)
        for layer in self.up:
            skip = left.pop()
            sample = layer(sample + skip if self.added else torch.cat([sample, skip], dim=-1))
        return sample


def test_skip_connections_are_seen_and_residuals_of_blocks_are_not() -> None:
    for added, operation in ((False, "torch.cat"), (True, "add")):
        watch = watched(Net(4, added), stream="sample", sample=(1, 3, 4))
        found = [(skip.source, skip.target, skip.operation) for skip in watch.skips]
        assert found == [("down.1", "up.0", operation), ("down.0", "up.1", operation)]
        place = watch.skips[0].place
        assert place is not None
        assert place.file.endswith("test_watching.py")
        line = Path(__file__).read_text("utf-8").splitlines()[place.line - 1]
        assert "torch.cat" in line


def test_rows_per_sample_are_told_from_tokens() -> None:
    class Modulated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.linear = nn.Linear(4, 8), nn.Linear(8, 8)

        def forward(self, sample: Tensor, vector: Tensor) -> Tensor:
            return self.linear(sample) * self.scale(vector)[:, None]

    watch = watched(Modulated(), batch=2, sample=(2, 16, 8), vector=(2, 4))
    assert watch.seen["scale"].pooled is True
    assert watch.seen["linear"].pooled is False
