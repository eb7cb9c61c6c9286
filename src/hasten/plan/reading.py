"""YAML with the line of every key, read without ever building an object that is not plain data.

PyYAML's composer is used and its constructor is not: the node tree has the line numbers and both halves of a
duplicate key. Scalars follow YAML 1.2's core rules, so that `no`, `on` and `1:30` stay the text that they look like;
where a field wants a boolean, pydantic still takes `yes` and `off`.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

Path = tuple[str, ...]
MAX_BYTES = 1_000_000

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_PLAIN = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_CORE_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value")
}


class Mistake(NamedTuple):
    """Something wrong with the text itself.

    Attributes:
        line: counted from 1.
        key: the dotted key, empty where none is known.
    """

    line: int
    key: str
    text: str


class Document(NamedTuple):
    """What a YAML text says.

    Attributes:
        value: mappings, lists and scalars; a key that stood there twice has its first value.
        lines: the line of each key, by its path from the root.
    """

    value: Any
    lines: dict[Path, int]
    mistakes: list[Mistake]


def read_yaml(text: str) -> Document:
    """Read one YAML document.

    Everything that is wrong with it is in `mistakes`; after a syntax error the value is None: nothing can be trusted.
    """
    if "\0" in text:
        return Document(None, {}, [Mistake(1, "", "not a text file")])
    reader = _Reader()
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        return Document(None, {}, [Mistake(line, "", f"not valid YAML: {error.problem or error.context}")])
    except yaml.YAMLError as error:
        return Document(None, {}, [Mistake(1, "", f"not valid YAML: {' '.join(str(error).split())}")])
    except RecursionError:
        return Document(None, {}, [Mistake(1, "", "not a plan: nested too deeply")])
    value = reader.value(node, ()) if node is not None else None
    return Document(value, reader.lines, reader.mistakes)


class _Reader:
    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.mistakes: list[Mistake] = []
        self.seen: set[int] = set()

    def value(self, node: yaml.Node, path: Path) -> Any:
        # An alias is the same node again. Plans have no use for it, and expanding aliases makes small files huge.
        if id(node) in self.seen:
            self.complain(node, path, "anchors and aliases (& and *) are not part of a plan; write the value out")
            return None
        self.seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            if node.tag != "tag:yaml.org,2002:seq":
                self.tagged(node, path)
            return [self.item(item, (*path, str(number))) for number, item in enumerate(node.value)]
        return self.scalar(node, path)

    def item(self, node: yaml.Node, path: Path) -> Any:
        self.lines[path] = node.start_mark.line + 1
        return self.value(node, path)

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        if node.tag != "tag:yaml.org,2002:map":
            self.tagged(node, path)
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.complain(key_node, path, "a key must be one word")
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in found:
                text = f"given twice (first in line {self.lines[here]})"
                self.complain(key_node, here, text)
                continue
            self.lines[here] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, here)
        return found

    def scalar(self, node: yaml.Node, path: Path) -> Any:
        text = str(node.value)
        if node.tag not in _CORE_TAGS:
            self.tagged(node, path)
            return text
        if getattr(node, "style", None) is not None:
            return text
        if text in _PLAIN:
            return _PLAIN[text]
        if _INT.fullmatch(text):
            # int() itself refuses absurdly long digit strings; the text then fails the field's own check.
            return int(text) if len(text) < 1000 else text
        return float(text) if _FLOAT.fullmatch(text) else text

    def tagged(self, node: yaml.Node, path: Path) -> None:
        self.complain(node, path, f"tags such as {node.tag!r} are not part of a plan")

    def complain(self, node: yaml.Node, path: Path, text: str) -> None:
        self.mistakes.append(Mistake(node.start_mark.line + 1, ".".join(path), text))
