"""Sources laid over each other: a base, then `--set` strings, then keywords; every value remembers where it is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel

from hasten.errors import PlanError
from hasten.plan.messages import ALSO_KNOWN_AS, PUBLISHED, dotted_keys, nearest, section_of, show, suggestion
from hasten.plan.reading import MAX_BYTES, read_yaml
from hasten.plan.schema import Cache, Plan
from hasten.plan.written import AS_WRITTEN, holds_others, unknown_within

NO_CACHE = ("none", "off", "no", "null")


class Origin(NamedTuple):
    """Where a value was given.

    Attributes:
        place: `plan.yaml`, `--set cache.interval=4`, `accelerate(..., interval=4)`; empty for a mapping.
        line: in a file.
        names_key: whether the place spells the key out already, so that the message need not.
    """

    place: str
    line: int = 0
    names_key: bool = False

    def say(self, key: str, text: str) -> str:
        """The whole line that a person reads."""
        where = f"{self.place}:{self.line}" if self.line else self.place
        return ": ".join(part for part in (where, "" if self.names_key else key, text) if part)


class Overlay:
    """Values under construction.

    Attributes:
        data: nested mappings, as they will be validated.
        origins: the origin of each path that was given.
        problems: complete lines, in the order in which they were found.
    """

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.origins: dict[tuple[str, ...], Origin] = {}
        self.problems: list[tuple[Origin, str]] = []
        self._spellings: dict[tuple[tuple[str, ...], str], tuple[str, Origin]] = {}

    def complain(self, origin: Origin, key: str, text: str) -> None:
        self.problems.append((origin, origin.say(key, text)))

    def origin(self, path: Sequence[str]) -> Origin:
        """The origin of a path, of the nearest section around it, or of the first value within it."""
        for length in range(len(path), 0, -1):
            if (found := self.origins.get(tuple(path[:length]))) is not None:
                return found
        within = (origin for known, origin in self.origins.items() if known[: len(path)] == tuple(path))
        return next(within, Origin(""))

    def value(self, path: Sequence[str]) -> Any:
        """The value at a path, None where nothing was given."""
        holder: Any = self.data
        for part in path:
            holder = _within(holder, part)
        return holder

    def drop(self, path: Sequence[str]) -> None:
        """Take a value out again, so that its default stands in its place."""
        holder = self.value(path[:-1])
        if isinstance(holder, dict):
            holder.pop(path[-1], None)
        elif isinstance(holder, list):
            holder[int(path[-1])] = {}

    def put_mapping(self, values: Mapping[str, Any], origin_of: Any, path: tuple[str, ...] = ()) -> None:
        """Lay a mapping over what is there, key by key.

        Args:
            origin_of: the origin for a path: `origin_of(("cache", "interval"))`.
        """
        for name, value in values.items():
            self.put((*path, str(name)), value, origin_of)

    def put(self, path: tuple[str, ...], value: Any, origin_of: Any) -> None:
        """Lay one value over what is there; a mapping for a section is merged, anything else replaces."""
        written = path
        if path in AS_WRITTEN:
            path = AS_WRITTEN[path]
        elif path[0] == "cache" and path[-1] in PUBLISHED:
            path = ("cache", PUBLISHED[path[-1]])
        if path != written:
            origin_of = partial(_origin_as_written, origin_of, written, path)
        section = _section_at(path)
        if section is None and holds_others(path) and isinstance(value, Mapping):
            for name, inner in value.items():
                here = (*path, str(name))
                if here in AS_WRITTEN:
                    self.put(here, inner, origin_of)
                else:
                    self.complain(origin_of(here), ".".join(here), unknown_within(here))
            return
        if section is not None:
            if isinstance(value, list | tuple) and path[0] == "cache":
                self._put_layers(path, value, section, origin_of)
                return
            value = _long_form(path[-1], section, value)
            if isinstance(value, BaseModel):
                value = value.model_dump(exclude_unset=True)
            if isinstance(value, Mapping) and not isinstance(value, _Anew):
                self.origins[path] = origin_of(path)
                around = self._holder(path[:-1])
                if not isinstance(around.get(path[-1]), dict):
                    around[path[-1]] = {}
                self.put_mapping(value, origin_of, path)
                return
        if path[0] == "cache" and len(path) > 1 and not self._fits_layers(path, origin_of(path)):
            return
        self._store(path, value, origin_of(path), ".".join(written))

    def _store(self, path: tuple[str, ...], value: Any, origin: Origin, written: str) -> None:
        before = self._spellings.setdefault((path, origin.place), (written, origin))
        if before[0] != written:
            ours = ".".join(path)
            other, where = before if written == ours else (written, origin)
            text = f"is another name for {ours if ours in (before[0], written) else before[0]}, which is given, too"
            self.complain(where, other, text)
        self._holder(path[:-1])[path[-1]] = dict(value) if isinstance(value, _Anew) else value
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]
        self.origins[path] = origin

    def _holder(self, path: tuple[str, ...]) -> Any:
        """The mapping, or the list, at a path; made where there is none."""
        holder: Any = self.data
        for part in path:
            if not isinstance(_within(holder, part), dict | list):
                holder[part] = {}
            holder = _within(holder, part)
        return holder

    def _put_layers(
        self, path: tuple[str, ...], values: Sequence[Any], section: type[BaseModel], origin_of: Any
    ) -> None:
        """A list of sections replaces what was there."""
        layers = [_long_form("", section, value) for value in values]
        layers = [layer.model_dump(exclude_unset=True) if isinstance(layer, BaseModel) else layer for layer in layers]
        self.data[path[0]] = [dict(layer) if isinstance(layer, Mapping) else layer for layer in layers]
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]
        keys = [(str(number), *key) for number, layer in enumerate(layers) for key in _keys(layer)]
        self.origins |= {(*path, *key): origin_of((*path, *key)) for key in [(), *keys]}

    def _fits_layers(self, path: tuple[str, ...], origin: Origin) -> bool:
        """Whether a key within `cache` names its layer where there are several, and none where there is one."""
        layers = self.data.get("cache")
        text = ""
        if isinstance(layers, list):
            known = [str(number) for number in range(len(layers))]
            if path[1] not in known or len(path) == 2:
                name = "interval" if path[1].isdecimal() else path[1]
                choices = " or ".join(f"cache.{number}.{name}" for number in known)
                text = f"cache is a list of {len(layers)} sections: name one of them, {choices}"
        elif path[1].isdecimal():
            text = "cache is one section and no list: leave the number out"
        if text:
            self.complain(origin, ".".join(path), text)
        return not text

    def put_set(self, text: str) -> None:
        """Lay a `--set` string over what is there: `cache.interval=4`."""
        key, equals, written = text.partition("=")
        key = key.strip().replace("-", "_")
        origin = Origin(f"--set {text}", names_key=True)
        if not equals or not key or "" in key.split("."):
            self.complain(origin, "", "must look like key=value, such as cache.interval=4")
            return
        document = read_yaml(written)
        for mistake in document.mistakes:
            self.complain(origin, "", mistake.text)
        if document.mistakes:
            return
        path = tuple(key.split("."))
        if len(path) > 1 and not self._is_section(path[0]):
            self.complain(origin, "", _no_section(path))
            return
        self.put(path, document.value, lambda _: origin)

    def put_keyword(self, keyword: str, value: Any, caller: str) -> None:
        """Lay a keyword over what is there: `seed=1`, `cache__interval=4` or, being the only one, `interval=4`."""
        origin = Origin(f"{caller}(..., {keyword}={show(value)})", names_key=True)
        path = tuple(keyword.split("__"))
        if len(path) == 1:
            path = AS_WRITTEN.get(path) or self._home(keyword)
        if path[0] not in Plan.model_fields:
            if caller == "accelerate":
                allowed = list(Cache.model_fields)
                hint = suggestion(Plan, keyword, allowed, here="cache")
            else:
                allowed = list(Plan.model_fields)
                hint = suggestion(Plan, keyword, allowed).replace(".", "__")
            self.complain(origin, "", f"unknown keyword{hint} (allowed: {', '.join(allowed)})")
            return
        if len(path) > 1 and not self._is_section(path[0]):
            self.complain(origin, "", _no_section(path))
            return
        self.put(path, value, lambda _: origin)

    @staticmethod
    def _is_section(name: str) -> bool:
        field = Plan.model_fields.get(name)
        return field is None or section_of(field) is not None

    @staticmethod
    def _home(name: str) -> tuple[str, ...]:
        """Where a keyword that stands alone belongs: the plan itself, the cache, or the only section that has it."""
        if name in Plan.model_fields:
            return (name,)
        if name in Cache.model_fields or name in PUBLISHED:
            return ("cache", name)
        homes = [key for key in dotted_keys(Plan) if key.endswith(f".{name}")]
        return tuple(homes[0].split(".")) if len(homes) == 1 else (name,)


def _within(holder: Any, part: str) -> Any:
    """A key of a mapping, or an entry of a list by its number."""
    if isinstance(holder, list):
        return holder[int(part)] if part.isdecimal() and int(part) < len(holder) else None
    return holder.get(part) if isinstance(holder, Mapping) else None


def _keys(layer: Any) -> list[tuple[str, ...]]:
    """The places within a section: itself, and its keys."""
    return [(), *((str(name),) for name in layer)] if isinstance(layer, Mapping) else [()]


def _origin_as_written(
    origin_of: Any, written: tuple[str, ...], path: tuple[str, ...], here: tuple[str, ...]
) -> Origin:
    """The origin of a key that belongs elsewhere than it stands, or of one within it."""
    origin: Origin = origin_of((*written, *here[len(path) :]))
    return origin


def _section_at(path: Sequence[str]) -> type[BaseModel] | None:
    """The section at a path, at any depth; None where there is a value, or nothing."""
    owner: type[BaseModel] | None = Plan
    for part in path:
        field = owner.model_fields.get(part) if owner is not None else None
        owner = section_of(field) if field is not None else None
    return owner


class _Anew(dict[str, Any]):
    """A section that replaces the one before: `--set cache=reuse` does not keep the order of a `taylorseer`."""


def _long_form(name: str, section: type[BaseModel], value: Any) -> Any:
    if name == "cache" and (value is False or (isinstance(value, str) and value.strip().lower() in NO_CACHE)):
        return None
    choice = getattr(section, "short_form", None)
    if choice is not None and isinstance(value, str):
        return _Anew({choice: value})
    if isinstance(value, bool) and "enabled" in section.model_fields:
        return {"enabled": value}
    if choice in ("ratio", "limit") and isinstance(value, int | float) and not isinstance(value, bool):
        return _Anew({choice: value})
    return {} if value is None and name != "cache" else value


def _no_section(path: Sequence[str]) -> str:
    return f"{path[0]!r} has no settings of its own; it is one value"


def read_source(overlay: Overlay, source: Plan | Mapping[str, Any] | str | Path | None) -> None:
    """Begin an overlay with a plan, a mapping, a preset, a method or a file."""
    if source is None:
        return
    if isinstance(source, Plan):
        overlay.put_mapping(source.model_dump(exclude_unset=True), lambda _: Origin(""))
    elif isinstance(source, Mapping):
        overlay.put_mapping(source, lambda _: Origin(""))
    elif isinstance(source, Path) or _looks_like_a_path(source):
        _read_file(overlay, Path(source).expanduser(), str(source))
    elif isinstance(source, str):
        _read_name(overlay, source)
    else:
        raise PlanError(f"a plan is a preset's name, a YAML file, a mapping or a Plan, not {show(source)}")


def _looks_like_a_path(source: Any) -> bool:
    return isinstance(source, str) and (source.lower().endswith((".yaml", ".yml")) or "/" in source or "\\" in source)


def _read_name(overlay: Overlay, name: str) -> None:
    plain = name.strip().lower()
    if plain in preset_names():
        _read_text(overlay, read_preset(plain), f"preset {plain}")
    elif plain in methods():
        overlay.put_mapping({"cache": {"method": plain}}, lambda _: Origin(""))
    elif Path(name).is_file():
        _read_file(overlay, Path(name), name)
    else:
        names = sorted({*preset_names(), *methods()})
        near = nearest(plain, names)
        hint = f"; did you mean {near!r}?" if near else ""
        raise PlanError(f"{name!r}: there is no preset and no file of that name{hint} (presets: {', '.join(names)})")


def _read_file(overlay: Overlay, path: Path, shown: str) -> None:
    if not path.is_file():
        what = "is a folder, not a plan" if path.is_dir() else "no such file"
        plans = [entry.name for entry in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = nearest(path.name, plans)
        near = str(path.with_name(near)) if near else nearest(path.stem, preset_names())
        hint = f"; did you mean {near!r}?" if near else ""
        raise PlanError(f"{shown}: {what}{hint} (presets: {', '.join(preset_names())})")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PlanError(f"{shown}: not a plan: larger than {MAX_BYTES // 1000} kB")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PlanError(f"{shown}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise PlanError(f"{shown}: cannot be read: {error.strerror or error}") from None
    _read_text(overlay, text, shown)


def _read_text(overlay: Overlay, text: str, place: str) -> None:
    document = read_yaml(text)
    for mistake in document.mistakes:
        overlay.complain(Origin(place, mistake.line), mistake.key, mistake.text)
    if document.value is None:
        return
    if not isinstance(document.value, dict):
        overlay.complain(Origin(place, 1), "", f"must be a mapping of settings, not {show(document.value)}")
        return
    overlay.put_mapping(document.value, lambda path: Origin(place, document.lines.get(path, 1)))


@cache
def preset_names() -> tuple[str, ...]:
    """The names of the presets that come with hasten."""
    folder = resources.files("hasten").joinpath("presets")
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def read_preset(name: str) -> str:
    """The YAML text of a preset."""
    return resources.files("hasten").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8")


def methods() -> tuple[str, ...]:
    """The names of the methods; each is a plan of its own."""
    return get_args(Cache.model_fields["method"].annotation)


__all__ = ["ALSO_KNOWN_AS", "Origin", "Overlay", "methods", "preset_names", "read_preset", "read_source"]
