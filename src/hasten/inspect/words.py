"""Layers in words: shapes, kernels, heads and figures as a person reads them."""

from __future__ import annotations

from hasten.inspect.layers import Layer
from hasten.inspect.watching import Attention, Shape, Source

NONE = "–"
_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_COUNTS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


def macs_text(value: float) -> str:
    """`401.6 G`."""
    return _scaled(value, _UNITS)


def count_text(value: float) -> str:
    """`859.5 M`, `20.43 B`."""
    return _scaled(value, _COUNTS)


def seconds_text(value: float | None) -> str:
    """`12.3 ms`."""
    if value is None:
        return NONE
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.{1 if value >= 0.01 else 2}f} ms"


def bytes_text(value: float) -> str:
    """`38.1 GiB`."""
    for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= size:
            return f"{_figures(value / size)} {unit}"
    return f"{value:.0f} B"


def share_text(part: float, whole: float) -> str:
    """`12 %`."""
    if not whole:
        return NONE
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 9.95 or not share else f"{share:.1f} %"


def shape_text(shape: Shape | None) -> str:
    """`1×320×64×64`."""
    return NONE if not shape else "×".join(map(str, shape))


def what_text(layer: Layer) -> str:
    """What a layer was made with, and what it attends to."""
    parts = [text for text in (_facts(layer), *map(attention_text, layer.attentions)) if text]
    if not layer.calls and layer.path and layer.parameters:
        parts.append("not called")
    return "; ".join(parts)


def attention_text(attention: Attention) -> str:
    """`cross, 8×40; q ← sample ×4096; k, v ← encoder_hidden_states ×77`."""
    heads = f"{attention.heads}×{attention.head_dim}"
    if attention.kv_heads != attention.heads:
        heads += f", {attention.kv_heads} kv heads"
    causal = ", causal" if attention.causal else ""
    return f"{attention.kind}{causal}, {heads}; {_sources(attention)}"


def _sources(attention: Attention) -> str:
    q, k, v = attention.q, attention.k, attention.v
    if (q.streams, q.tokens) == (k.streams, k.tokens) == (v.streams, v.tokens):
        return f"q, k, v ← {_stream(q)}"
    keys = f"k, v ← {_stream(k)}" if k.streams == v.streams else f"k ← {_stream(k)}; v ← {_stream(v)}"
    return f"q ← {_stream(q)}; {keys}"


def _stream(source: Source) -> str:
    return f"{' + '.join(source.streams) or '?'} ×{source.tokens}"


def _facts(layer: Layer) -> str:
    facts = layer.facts
    if "kernel_size" in facts:
        return _convolution(layer)
    if "in_features" in facts:
        return f"{facts['in_features']} → {facts['out_features']}" + ("" if facts.get("bias") else ", no bias")
    if "num_groups" in facts:
        return f"{facts['num_groups']} groups of {facts['num_channels']}"
    if "num_embeddings" in facts:
        return f"{facts['num_embeddings']} → {facts['embedding_dim']}"
    for name in ("normalized_shape", "dim"):
        if name in facts:
            return _sizes(facts[name])
    own = [f"{name} {_sizes(value)}" for name, value in facts.items() if name != "eps" and not isinstance(value, float)]
    return ", ".join(own)


def _convolution(layer: Layer) -> str:
    facts = layer.facts
    weight = layer.outputs[0] if layer.outputs else ()
    axes = max(1, len(weight) - 2)
    kernel = facts["kernel_size"]
    text = "×".join(map(str, kernel)) if isinstance(kernel, tuple) else "×".join([str(kernel)] * axes)
    for name, word, usual in (("stride", "/", 1), ("padding", "pad ", 0), ("dilation", "dilated ", 1)):
        if facts.get(name, usual) != usual:
            text += f" {word}{_sizes(facts[name])}"
    if facts.get("groups", 1) != 1:
        text += f", {facts['groups']} groups"
    if facts.get("transposed"):
        text += ", transposed"
    return f"{text}, {facts['in_channels']} → {facts['out_channels']}"


def _sizes(value: object) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    for size, unit in units:
        if value >= size:
            return f"{_figures(value / size)} {unit}"
    return f"{value:.0f}"


def _figures(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.1f}"
