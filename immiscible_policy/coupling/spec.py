"""Couplings written as text, as their repr and tables show them: ``KNN(k=2)``, ``Mixture(KNN(k=8), p=0.5)``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from typing import Any

from immiscible_policy.coupling.base import Coupling


def parse_coupling(text: str) -> Coupling:
    """The coupling that ``text`` names. Nothing is evaluated: only calls of exported classes and literals are read.

    >>> parse_coupling("KNN(k=8, metric='inner')")
    KNN(k=8, metric='inner')

    Args:
        text: a class of :mod:`immiscible_policy.coupling` with its arguments, which are numbers, strings, None, True,
            False, lists, tuples, dicts of these, and further couplings. A bare name stands for a call without
            arguments. Functions (a ``source`` of your own) cannot be written.

    Raises:
        ValueError: anything else; the message names what was found and what is allowed. Also what the coupling
            itself refuses, as ValueError.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"coupling {text!r} is not an expression such as KNN(k=2): {error}") from error
    if isinstance(tree, ast.Name):
        tree = ast.Call(tree, [], [])
    try:
        value = _value(tree)
    except (TypeError, ValueError) as error:
        raise ValueError(f"coupling {text!r}: {error}") from error
    if not isinstance(value, Coupling):
        raise ValueError(f"coupling {text!r}: expected one of {_names()}, got {value!r}")
    return value


def available() -> dict[str, type]:
    """The couplings that can be written, by name."""
    return {name: kind for name, kind in _classes().items() if issubclass(kind, Coupling)}


def _classes() -> dict[str, type]:
    import immiscible_policy.coupling as exported  # whose import may not wait for this module

    values = {name: getattr(exported, name) for name in exported.__all__}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and not inspect.isabstract(value)
    }


def _names() -> str:
    return ", ".join(available())


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        return _call(node)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        operand = _value(node.operand)
        if isinstance(operand, int | float) and not isinstance(operand, bool):
            return -operand if isinstance(node.op, ast.USub) else operand
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(item) for item in node.elts)
    if isinstance(node, ast.Dict) and None not in node.keys:
        keys = [_value(key) for key in node.keys if key is not None]
        return dict(zip(keys, (_value(value) for value in node.values), strict=True))
    raise ValueError(
        f"{ast.unparse(node)!r} is not allowed; arguments are numbers, strings, None, True, False, lists, tuples, "
        f"dicts and couplings ({_names()})"
    )


def _call(node: ast.Call) -> Any:
    classes = _classes()
    if not isinstance(node.func, ast.Name) or node.func.id not in classes:
        raise ValueError(f"{ast.unparse(node.func)!r} is none of the couplings: {_names()}")
    if any(isinstance(argument, ast.Starred) for argument in node.args) or any(k.arg is None for k in node.keywords):
        raise ValueError(f"{ast.unparse(node)!r}: write the arguments out, * and ** are not allowed")
    kind = classes[node.func.id]
    positional = [_value(argument) for argument in node.args]
    named = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    signature = inspect.signature(kind)
    try:
        signature.bind(*positional, **named)
    except TypeError as error:
        arguments = ", ".join(signature.parameters) or "none"
        raise ValueError(f"{node.func.id}: {error}; its arguments are: {arguments}") from error
    return kind(*positional, **named)
