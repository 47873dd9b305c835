"""Checking one MONAI configuration as text: nothing in it is run."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from collections.abc import Iterator
from pydoc import ErrorDuringImport, locate
from types import ModuleType
from typing import Any

from monai.bundle import ConfigComponent, ConfigExpression, ConfigItem, ConfigParser
from monai.bundle.properties import InferProperties, TrainProperties
from monai.utils import BundleProperty, BundlePropertyConfig

from dinomed.bundle.config import unresolved_references

PROPERTIES = {"train": TrainProperties, "infer": InferProperties}
REFERENCE = re.compile(r"@[\w:#]+")


def check_config(parser: ConfigParser, kind: str) -> dict[str, list[str]]:
    """Look for what would stop a configuration when it runs.

    Args:
        parser: The configuration, nothing of which has been built yet.
        kind: "train" or "infer".

    Returns:
        What was checked, each with its problems in words.
    """
    missing = unresolved_references(parser)
    items: dict[str, ConfigItem] = parser.ref_resolver.items
    known = set(parser.globals) | set(dir(builtins)) | {"__local_refs"}
    modules: dict[str, Any] = dict(parser.globals)
    for item in items.values():
        if isinstance(item, ConfigExpression) and ConfigExpression.is_import_statement(item.get_config()):
            modules |= _imported(item.get_config()[1:])
    known |= set(modules)
    return {
        "references resolve": missing,
        "targets can be imported": [text for id_, item in items.items() for text in _target(id_, item)],
        "expressions make sense": [
            text for id_, item in items.items() for text in _expression(id_, item, known, modules)
        ],
        "properties that MONAI expects": _properties(parser, kind),
    }


def _target(id_: str, item: ConfigItem) -> Iterator[str]:
    if not isinstance(item, ConfigComponent):
        return
    name = item.resolve_module_name()
    if not isinstance(name, str) or name.startswith(("@", "$")):
        return
    try:
        found = locate(name)
    except ErrorDuringImport as error:
        yield f"{id_} wants {name}, whose import fails ({error.value})"
        return
    if found is None:
        yield f"{id_} wants {name}, which cannot be found"
    elif not callable(found):
        yield f"{id_} wants {name}, which cannot be called"
    else:
        yield from _arguments(id_, name, found, list(item.resolve_args()))


def _arguments(id_: str, name: str, found: Any, given: list[str]) -> Iterator[str]:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # written in C
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    taken = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
    for argument in given:
        if argument not in taken:
            yield f"{id_} gives {name} the argument {argument!r}, which it does not take"


def _imported(statement: str) -> dict[str, Any]:
    """Return the name that an import statement binds, the way MONAI binds it: only the first of a list."""
    node = ast.parse(statement).body[0]
    if isinstance(node, ast.Import):
        alias = node.names[0]
        return {alias.asname or alias.name: locate(alias.name)}
    if isinstance(node, ast.ImportFrom):
        alias = node.names[0]
        return {alias.asname or alias.name: locate(f"{node.module}.{alias.name}")}
    return {}


def _expression(id_: str, item: ConfigItem, known: set[str], modules: dict[str, Any]) -> Iterator[str]:
    """Parse an expression, and look up the names that it uses."""
    if not isinstance(item, ConfigExpression):
        return
    source = REFERENCE.sub("__local_refs", item.get_config()[1:])
    try:
        tree = ast.parse(source.strip())
    except SyntaxError as error:
        yield f"{id_} is no Python expression ({error.msg})"
        return
    if tree.body and isinstance(tree.body[0], (ast.Import, ast.ImportFrom)):
        if None in _imported(source).values():
            yield f"{id_} imports what cannot be found"
        return
    own = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in known | own:
            yield f"{id_} uses the name {node.id!r}, which is not imported"
        elif isinstance(node, ast.Attribute):
            yield from _attribute(id_, node, own, modules)


def _attribute(id_: str, node: ast.Attribute, own: set[str], modules: dict[str, Any]) -> Iterator[str]:
    """Follow `module.part.name` from the modules that are imported."""
    parts: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    if not isinstance(inner, ast.Name) or inner.id in own or not isinstance(modules.get(inner.id), ModuleType):
        return
    current: Any = modules[inner.id]
    for part in reversed(parts):
        if not isinstance(current, ModuleType):
            return
        if not hasattr(current, part):
            yield f"{id_} uses {current.__name__}.{part}, which does not exist"
            return
        current = getattr(current, part)


def _properties(parser: ConfigParser, kind: str) -> list[str]:
    """Find ids that MONAI's tools look for and do not find, or find under another name."""
    problems = []
    for name, wanted in PROPERTIES[kind].items():
        id_, user = wanted[BundlePropertyConfig.ID], wanted.get(BundlePropertyConfig.REF_ID)
        if wanted[BundleProperty.REQUIRED] and id_ not in parser:
            problems.append(f"lacks {id_} ({wanted[BundleProperty.DESC].rstrip('.')})")
            continue
        used = parser.get(user) if user and "::" in user else None
        if isinstance(used, str) and not used.startswith("$") and used.replace("#", "::") != f"@{id_}":
            problems.append(f"{user} must be '@{id_}' for tools to find the {name}, not {used!r}")
    return problems
