"""YAML read strictly: plain values only, no aliases, no entry twice, and one plain sentence when a file is broken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from kirie.errors import KirieError

MAX_BYTES = 2**20  # of a YAML file that a person wrote; a sound one has a few hundred

# YAML 1.1 wants 1.0e-3 where people write 1e-3: the tag, the form and the first characters of such a number.
PLAIN_FLOAT = "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, made strict: no aliases (a few lines of them unfold into gigabytes), no entry twice.

    It reads 1e-3 as a number.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            problem = "found an alias (*); write the value out in each place"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"found {key.value!r} twice; keep one of them"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(*PLAIN_FLOAT)


def read_yaml(path: str | Path, what: str) -> Any:
    """The plain values in a YAML file.

    Args:
        path: the file.
        what: what the file should be, for the message: "recipe".

    Raises:
        KirieError: when it is missing, cannot be read, is longer than `MAX_BYTES` or no strict YAML.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise KirieError(f"There is no {what} {path}.") from None
    except OSError as error:
        raise KirieError(f"Cannot read the {what} {path}: {error.strerror or error}.") from error
    if len(text) > MAX_BYTES:
        raise KirieError(f"{path} is longer than {MAX_BYTES:,} bytes; is it a {what}?")
    return parse_yaml(text, str(path))


def parse_yaml(text: str | bytes, source: str) -> Any:
    """The plain values in a text of YAML.

    Raises:
        KirieError: when it is no YAML, nested too deeply, or has an alias, an entry twice or a tag for code.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise KirieError(f"{source} is not valid YAML: it is nested too deeply.") from None
    # Besides its own errors, PyYAML lets those of its conversions through, for !!int "" or the date 2024-13-01.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        words = " ".join(str(error).split())
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            mark = error.problem_mark
            words = f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
        raise KirieError(f"{source} is not valid YAML: {words}.") from error
