"""Watch one forward pass without weights: who is called, on what shapes, at which cost; what attends to what; skips."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import flex_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hasten.inspect.known import META, KnownValues, known, tensors_in
from hasten.inspect.trails import SCORING, Trail, follow, mark, trail_of
from hasten.inspect.widths import WidthLearned, Widths

Shape = tuple[int, ...]
Kind = Literal["self", "cross", "joint"]

_ATEN = torch.ops.aten
_PRODUCTS = (F.linear, torch.matmul, torch.bmm)
_JOINING = {_ATEN.cat: "torch.cat", _ATEN.add: "add"}


class Place(NamedTuple):
    """A line of installed code.

    Attributes:
        file: relative to the folder of installed packages.
        line: from 1.
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Source:
    """Where a side of attention comes from.

    Attributes:
        layers: the projections, relative to the attention module where they lie in it.
        streams: the model's inputs whose tokens these are.
        tokens: how many.
    """

    layers: tuple[str, ...]
    streams: tuple[str, ...]
    tokens: int


@dataclass(frozen=True)
class Attention:
    """One call of attention.

    Attributes:
        heads, kv_heads, head_dim: heads of the queries, of the keys and values, and numbers per head.
        place: the line that calls it.
    """

    kind: Kind
    heads: int
    kv_heads: int
    head_dim: int
    q: Source
    k: Source
    v: Source
    causal: bool
    place: Place | None


@dataclass(frozen=True)
class Skip:
    """A connection that carries a tensor around other layers.

    Attributes:
        source: the module that made it.
        target: the module that takes what it was joined into.
        operation: how it is joined.
        shape: of the tensor.
        place: the line that joins it.
    """

    source: str
    target: str
    operation: str
    shape: Shape
    place: Place | None


@dataclass
class Seen:
    """What was seen of a module in one forward pass.

    Attributes:
        first: how many calls of modules had begun before its first one; None where it was not called.
        inputs, outputs: shapes at the first call, inputs by the names of the arguments.
        macs: multiply-accumulates in this module itself, without its children, over all calls.
        attention_macs: those of them in the two products of attention.
        pooled: whether all that its weights worked on was one row per sample: a modulation, an embedding of time.
    """

    calls: int = 0
    first: int | None = None
    inputs: dict[str, Shape] = field(default_factory=dict)
    outputs: tuple[Shape, ...] = ()
    macs: int = 0
    attention_macs: int = 0
    attentions: list[Attention] = field(default_factory=list)
    pooled: bool | None = None

    def count(self, macs: int, *, attention: bool) -> None:
        """Add to the multiply-accumulates."""
        self.macs += macs
        self.attention_macs += macs if attention else 0


class _Call(NamedTuple):
    """A call that has returned: whose, what it depends on, and how many had returned when it began."""

    path: str
    ancestors: int
    began: int


class Watch(KnownValues):
    """Follows one forward pass of a module on the meta device.

    Use it as a context around the call; afterwards `seen` and `skips` are filled, and `operations` says how many went
    through.

    Args:
        model: a module whose parameters are on the meta device.
        batch: samples in the call, to tell rows per sample from tokens.
        stream: name of the input that is denoised: only its tensors make skip connections.
        widths: of the inputs, learned where they are not known yet.
    """

    def __init__(
        self, model: nn.Module, batch: int = 1, stream: str | None = None, widths: Widths | None = None
    ) -> None:
        super().__init__(widths)
        self._model = model
        self._batch = batch
        self._stream = stream
        self.seen: dict[str, Seen] = {}
        self.skips: list[Skip] = []
        self.operations = 0
        self._stack: list[tuple[str, int]] = [("", 0)]
        self._calls: list[_Call] = []
        self._begun = 0
        self._waiting: dict[int, tuple[Tensor, int]] = {}
        self._undo = ExitStack()

    def __enter__(self) -> Watch:
        for path, module in self._model.named_modules(remove_duplicate=False):
            self.seen.setdefault(path, Seen())
            for hook in (
                module.register_forward_pre_hook(functools.partial(self._before, path), with_kwargs=True),
                module.register_forward_hook(functools.partial(self._after, path)),
            ):
                self._undo.callback(hook.remove)
        for path, parameter in self._model.named_parameters(remove_duplicate=False):
            mark(parameter, Trail(parameter=path))
            self._undo.callback(mark, parameter, Trail())
        self._undo.enter_context(_Functions(self))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._undo.close()

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        result = super().run(func, args, kwargs)
        self.operations += 1
        given = [tensor for tensor in tensors_in((args, kwargs)) if tensor.device == META]
        results = [tensor for tensor in tensors_in(result) if tensor.device == META]
        follow(func, args, given, results)
        base = func.overloadpacket
        if base in flop_registry:
            self._count(func, args, kwargs, given, result)
        elif base in _JOINING and results:
            self._join(_JOINING[base], given, results[0])
        return result

    def _count(self, func: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor], result: Any) -> None:
        base = func.overloadpacket
        seen = self.seen[self._path]
        names = [trail_of(tensor).parameter for tensor in given]
        scores = [trail_of(tensor).scores for tensor in (*given, *tensors_in(result))]
        macs = flop_registry[base](*args, **kwargs, out_val=result) // 2
        seen.count(macs, attention=base in SCORING and any(scores))
        if any(names):
            rows = max(
                tensor.numel() // max(1, tensor.shape[-1])
                for tensor, name in zip(given, names, strict=True)
                if not name
            )
            pooled = base is not _ATEN.convolution and rows <= self._batch
            seen.pooled = pooled if seen.pooled is None else seen.pooled and pooled
        elif base in SCORING and (found := trail_of(given[-2]).scores) is not None and found.soft:
            count, queries, keys, width = found.shape
            heads = max(1, count // self._batch)
            self.attention(found.q, found.k, trail_of(given[-1]), heads, heads, width, (queries, keys), causal=False)

    @property
    def _path(self) -> str:
        return self._stack[-1][0]

    def attention(
        self, q: Trail, k: Trail, v: Trail, heads: int, kv: int, width: int, tokens: tuple[int, int], *, causal: bool
    ) -> None:
        """Note a call of attention by the module that is running."""
        sides = ((q, tokens[0]), (k, tokens[1]), (v, tokens[1]))
        asks, keys, values = (Source(self._near(side.projections), side.streams, count) for side, count in sides)
        place = _place(past_helpers=True)
        found = Attention(_kind(q, k, tokens), heads, kv, width, asks, keys, values, causal, place)
        attentions = self.seen[self._path].attentions
        if found not in attentions:
            attentions.append(found)

    def _near(self, layers: frozenset[str]) -> tuple[str, ...]:
        prefix = f"{self._path}."
        return tuple(sorted(layer.removeprefix(prefix) for layer in layers))

    # --- calls of modules

    def _before(self, path: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen = self.seen[path]
        seen.calls += 1
        named = dict(_named(type(module), args, kwargs))
        self._begun += 1
        if seen.calls == 1:
            seen.first = self._begun
            seen.inputs = {name: tuple(tensor.shape) for name, tensor in named.items()}
        for tensor in named.values():
            waiting = self._waiting.pop(id(tensor), None)
            if waiting is not None:
                self.skips[waiting[1]] = _aimed(self.skips[waiting[1]], path)
        self._stack.append((path, len(self._calls)))

    def _after(self, path: str, module: nn.Module, args: Any, result: Any) -> None:
        _, began = self._stack.pop()
        seen, outputs = self.seen[path], list(tensors_in(result))
        if seen.calls == 1:
            seen.outputs = tuple(tuple(tensor.shape) for tensor in outputs)
        number, ancestors = len(self._calls), 0
        for tensor in outputs:
            if tensor.device != META:
                continue
            trail = trail_of(tensor)
            ancestors |= trail.ancestors
            if trail.producer is None and trail.parameter is None:
                mark(tensor, Trail(trail.segments, trail.projections, trail.ancestors | 1 << number, number))
        self._calls.append(_Call(path, ancestors, began))

    # --- skip connections

    def _join(self, operation: str, given: list[Tensor], result: Tensor) -> None:
        """See whether one operand went around layers that the other went through."""
        trails = [trail_of(tensor) for tensor in given]
        if self._stream is not None and any(self._stream not in trail.streams for trail in trails):
            return
        if operation == "add" and any(tensor.shape != result.shape for tensor in given):
            return
        for index, trail in enumerate(trails):
            number = trail.producer
            others = [other for at, other in enumerate(trails) if at != index]
            if number is None or not any(other.ancestors >> number & 1 for other in others):
                continue
            if self._jumped(number, others):
                self._waiting[id(result)] = (result, len(self.skips))
                shape = tuple(given[index].shape)
                self.skips.append(Skip(self._calls[number].path, self._path, operation, shape, _place()))

    def _jumped(self, number: int, others: list[Trail]) -> bool:
        """Whether a call lies between: it saw the tensor, the other operand depends on it, it is no part of either."""
        source, (path, began) = self._calls[number].path, self._stack[-1]
        if _is_in(source, path):
            # Both in one module: only where that holds the model's parts is this more than a residual of a block.
            if any(part.isdecimal() for part in path.split(".")):
                return False
            began = len(self._calls)
        for index in range(began - 1, number, -1):
            call = self._calls[index]
            through = any(other.ancestors >> index & 1 for other in others)
            if through and call.ancestors >> number & 1 and not _is_in(source, call.path):
                return not _related(source, call.path, path)
        return False


class _Functions(TorchFunctionMode):
    """Takes calls of scaled-dot-product attention as one operation, whose heads are still to be seen.

    It also keeps the numbers of `torch.tensor`, and learns widths from functions that refuse their arguments.
    """

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.tensor and torch.device((kwargs or {}).get("device") or META) == META:
            return known(func(*args, **{**(kwargs or {}), "device": "cpu"}))  # the meta device would drop the numbers
        if func is not F.scaled_dot_product_attention:
            try:
                return func(*args, **(kwargs or {}))
            except RuntimeError:  # some functions look at sizes before they become an operation
                widths = self._watch.widths
                if widths is not None and widths.learn_from(args, product=func in _PRODUCTS):
                    raise WidthLearned from None
                raise
        bound = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
        bound |= kwargs or {}
        query, key, value = bound["query"], bound["key"], bound["value"]
        *batch, queries, width = query.shape
        keys, value_width = value.shape[-2:]
        heads, kv_heads = (query.shape[-3], key.shape[-3]) if len(batch) > 1 else (1, 1)
        q, k, v = (trail_of(tensor) for tensor in (query, key, value))
        watch = self._watch
        tokens = (queries, keys)
        watch.attention(q, k, v, heads, kv_heads, width, tokens, causal=bool(bound.get("is_causal", False)))
        rows = query.numel() // (queries * width)
        watch.seen[watch._path].count(rows * queries * keys * (width + value_width), attention=True)
        result = query.new_empty((*batch, queries, value_width))
        ancestors = q.ancestors | k.ancestors | v.ancestors
        mark(result, Trail(q.segments, q.projections | k.projections | v.projections, ancestors))
        return result


def _kind(q: Trail, k: Trail, tokens: tuple[int, int]) -> Kind:
    ours, theirs = set(q.streams), set(k.streams)
    if not ours or not theirs:
        return "self" if tokens[0] == tokens[1] else "cross"
    if not ours & theirs:
        return "cross"
    return "self" if len(ours | theirs) == 1 else "joint"


def _is_in(path: str, parent: str) -> bool:
    return not parent or path == parent or path.startswith(f"{parent}.")


def _related(source: str, between: str, target: str) -> bool:
    """Whether the call between lies in the module that made the tensor, or in the one that joins it."""
    return _is_in(between, source) or (bool(target) and _is_in(between, target) and not _is_in(source, target))


def _aimed(skip: Skip, target: str) -> Skip:
    return Skip(skip.source, target, skip.operation, skip.shape, skip.place)


@functools.cache
def _arguments(kind: type) -> tuple[str, ...]:
    forward = kind.forward  # type: ignore[attr-defined]
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _named(kind: type, args: Any, kwargs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a call is given, by their arguments; those in lists and dictionaries with a number."""
    names = _arguments(kind)
    given = [(names[index] if index < len(names) else f"{index}", value) for index, value in enumerate(args)]
    for name, value in (*given, *kwargs.items()):
        if isinstance(value, Tensor):
            yield name, value
        else:
            for index, tensor in enumerate(tensors_in(value)):
                yield f"{name}[{index}]", tensor


def _place(*, past_helpers: bool = False) -> Place | None:
    """The line of a model's code that is running; with `past_helpers`, the line of a method that called a function."""
    frame: FrameType | None = sys._getframe(1)
    first: Place | None = None
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_NOT_MODELS):
            place = Place(relative_file(code.co_filename), frame.f_lineno)
            if not past_helpers or code.co_varnames[:1] == ("self",):
                return place
            first = first or place
        frame = frame.f_back
    return first


_PACKAGES = str(Path(torch.__file__).parents[1])
_NOT_MODELS = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")


@functools.cache
def relative_file(file: str) -> str:
    """A file as seen from the folder of installed packages."""
    path = Path(file)
    return str(path.relative_to(_PACKAGES)) if path.is_relative_to(_PACKAGES) else str(path)


@contextmanager
def on_meta(mode: TorchDispatchMode) -> Iterator[None]:
    """Run on the meta device under a mode, without gradients.

    Two functions of torch refuse the meta device. While this lasts, `torch.autocast` does nothing there (models switch
    it off for parts that need float32), and flex attention is scaled-dot-product attention.
    """
    autocast, flex = torch.autocast, flex_attention.flex_attention

    def unless_meta(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == META.type else autocast(device_type, *args, **kwargs)

    def in_full(query: Tensor, key: Tensor, value: Tensor, *args: Any, enable_gqa: bool = False, **kwargs: Any) -> Any:
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=enable_gqa)

    torch.autocast = unless_meta  # type: ignore[assignment, misc]
    flex_attention.flex_attention = in_full
    try:
        with torch.device(META), torch.no_grad(), mode:
            yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]
        flex_attention.flex_attention = flex
