"""Write a condition that sqlglot has parsed in the SQL of an engine; refuse everything else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from sqlglot import exp

from embedstream.follow.sql_text import quote_name, quote_text
from embedstream_core.errors import SetupError

__all__ = ["COLUMNS", "FORMS", "Dialect", "Renderer", "UnsupportedCondition"]

Dialect = Literal["datafusion", "postgres"]
"""DataFusion reads the Delta table and is inside LanceDB."""

Kind = Literal["text", "integer", "number", "time"]

COLUMNS: Mapping[str, Kind] = {
    "topic": "text",
    "partition": "integer",
    "offset": "integer",
    "image_id": "text",
    "uri": "text",
    "media_type": "text",
    "duration_s": "number",
    "timestamp": "time",
}
"""The columns that a condition may name, besides `attributes['NAME']`."""

_KNOWN = f"{', '.join(COLUMNS)}, attributes['NAME']"
FORMS = (
    "a condition is made of comparisons, AND, OR, NOT, IN, BETWEEN, LIKE, ILIKE, IS NULL, lower() "
    "and upper()"
)
# deltalake's parser refuses a depth of 50, of which a level here takes up to three. LanceDB reads
# NOT as a function from 24 nested ones on, and 48 did not end within three minutes. Chains of 5,000
# terms worked in all engines.
_MAX_DEPTH = 12
_MAX_TERMS = 1000
_INTEGER_BITS = {"partition": 31, "offset": 63}

_COMPARISONS: Mapping[type[exp.Expression], str] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
}
# The parts of sqlglot's trees that are read; `table` of a column is there to be refused.
_READ = {"expression", "expressions", "high", "is_string", "low", "negate", "query", "this", "to"}
_READ |= {"quoted", "table"}
_TIME_TYPES = {exp.DType.TIMESTAMP, exp.DType.TIMESTAMPTZ, exp.DType.DATE}
_CONNECTIVES: Mapping[type[exp.Expression], str] = {exp.And: "AND", exp.Or: "OR"}
_FUNCTIONS: Mapping[type[exp.Expression], str] = {exp.Lower: "lower", exp.Upper: "upper"}


@dataclass(frozen=True, slots=True)
class _Operand:
    """A part of a comparison as SQL; `bits` limit the whole numbers that a column can hold."""

    sql: str
    kind: Kind
    bits: int = 63


class UnsupportedCondition(SetupError):
    """A part of a condition that is not supported."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Renderer:
    """Write a tree in one dialect; raise UnsupportedCondition for what is not supported."""

    dialect: Dialect
    attribute: Callable[[str], str]
    depth: int = 0

    def render(self, tree: Any) -> str:
        """Return the SQL of a condition, which is true, false or null."""
        inner = self._descend()
        _check_parts(tree)
        match tree:
            case exp.Paren(this=condition):
                return self.render(condition)
            case exp.Not(this=condition):
                return f"(NOT {inner.render(condition)})"
            case exp.And() | exp.Or():
                word = f" {_CONNECTIVES[type(tree)]} "
                return f"({word.join(map(inner.render, self._list_terms(tree)))})"
            case exp.Is(this=value, expression=exp.Null()):
                return f"({self._operand(value).sql} IS NULL)"
            case exp.In() if tree.expressions and tree.args.get("query") is None:
                value = self._operand(tree.this)
                literals = [self._literal(one, value) for one in tree.expressions]
                return f"({self._compared(value)} IN ({', '.join(literals)}))"
            case exp.Between():
                value = self._operand(tree.this)
                low, high = (self._literal(tree.args[end], value) for end in ("low", "high"))
                return f"({self._compared(value)} BETWEEN {low} AND {high})"
            case exp.Like() | exp.ILike():
                return self._render_like(tree)
            case exp.Expression() if type(tree) in _COMPARISONS:
                return self._render_comparison(tree)
        raise UnsupportedCondition(f"`{_show(tree)}` is not supported as a condition", FORMS)

    def _descend(self) -> Renderer:
        """Return the renderer of the parts of a tree."""
        if self.depth == _MAX_DEPTH:
            raise UnsupportedCondition(
                f"it is nested more than {_MAX_DEPTH} deep", "write it with fewer levels"
            )
        return replace(self, depth=self.depth + 1)

    def _list_terms(self, tree: exp.Expression) -> list[Any]:
        """Return the parts of a chain of one connective, without a level for each."""
        kind = type(tree)
        waiting: list[Any] = [tree]
        terms: list[Any] = []
        while waiting:
            one = waiting.pop()
            if type(one) is kind:
                waiting += [one.expression, one.this]
            else:
                terms.append(one)
        if len(terms) > _MAX_TERMS:
            raise UnsupportedCondition(
                f"it has {len(terms)} parts joined by {_CONNECTIVES[kind]}, more than {_MAX_TERMS}",
                "write alternatives as a list: offset IN (1, 2, 3)",
            )
        return terms

    def _render_comparison(self, tree: exp.Expression) -> str:
        left, right = tree.this, tree.expression
        sign = _COMPARISONS[type(tree)]
        if _is_literal(left) and _is_literal(right):
            raise UnsupportedCondition(f"`{_show(tree)}` compares no column", f"columns: {_KNOWN}")
        if _is_literal(left):
            value = self._operand(right)
            return f"({self._literal(left, value)} {sign} {self._compared(value)})"
        value = self._operand(left)
        if _is_literal(right):
            return f"({self._compared(value)} {sign} {self._literal(right, value)})"
        other = self._operand(right)
        if other.kind != value.kind:
            raise UnsupportedCondition(
                f"`{_show(tree)}` compares {value.kind} with {other.kind}",
                "compare columns of one type",
            )
        return f"({self._compared(value)} {sign} {self._compared(other)})"

    def _render_like(self, tree: exp.Expression) -> str:
        """Write LIKE; ILIKE is LIKE of texts in small letters, since engines fold differently."""
        value = self._operand(tree.this)
        pattern = tree.expression
        if value.kind != "text" or not (isinstance(pattern, exp.Literal) and pattern.is_string):
            raise UnsupportedCondition(
                f"`{_show(tree)}` does not match text with a pattern in quotes",
                "LIKE takes a column of text and a literal, such as topic LIKE 'a%'",
            )
        text = pattern.this
        if len(text) - len(text.rstrip("\\")) & 1:
            raise UnsupportedCondition(
                f"the pattern '{text}' ends in a backslash, which escapes what follows",
                "write two backslashes for one",
            )
        sql = value.sql
        if isinstance(tree, exp.ILike):
            sql, text = self._fold("lower", sql), text.lower()
        word = "NOT LIKE" if tree.args.get("negate") else "LIKE"
        return f"({sql} {word} {quote_text(text)})"

    def _operand(self, tree: Any) -> _Operand:
        """Return a column, an attribute, or a function of one."""
        _check_parts(tree)
        match tree:
            case exp.Paren(this=inner):
                return self._operand(inner)
            case exp.Lower(this=inner) | exp.Upper(this=inner):
                value = self._descend()._operand(inner)
                if value.kind != "text":
                    raise UnsupportedCondition(f"`{_show(tree)}`: it takes text", "leave it out")
                return _Operand(self._fold(_FUNCTIONS[type(tree)], value.sql), "text")
            case exp.Bracket(this=exp.Column() as column, expressions=[exp.Literal() as key]) if (
                key.is_string and not column.table and column.name.lower() == "attributes"
            ):
                return _Operand(self.attribute(key.this), "text")
            case exp.Column() if not tree.table and tree.name.lower() in COLUMNS:
                name = tree.name.lower()
                return _Operand(quote_name(name), COLUMNS[name], _INTEGER_BITS.get(name, 63))
            case exp.Column():
                hint = (
                    f"write a text in single quotes: '{tree.name}'"
                    if isinstance(tree.this, exp.Identifier) and tree.this.quoted
                    else f"known: {_KNOWN}"
                )
                raise UnsupportedCondition(f"unknown column `{_show(tree)}`", hint)
            case exp.Literal() | exp.Neg() | exp.Cast() if _is_literal(tree):
                raise UnsupportedCondition(
                    f"`{_show(tree)}` stands where a column has to be", FORMS
                )
            case exp.Null():
                raise UnsupportedCondition("nothing equals NULL", "write IS NULL or IS NOT NULL")
        raise UnsupportedCondition(f"`{_show(tree)}` is not supported", FORMS)

    def _fold(self, function: str, value: str) -> str:
        """Return lower() or upper() of a text: PostgreSQL folds by the collation of the text."""
        text = f'{value} COLLATE "default"' if self.dialect == "postgres" else value
        return f"{function}({text})"

    def _compared(self, value: _Operand) -> str:
        """Return a text with the order of its bytes, which DataFusion has anyway."""
        if value.kind == "text" and self.dialect == "postgres":
            return f'{value.sql} COLLATE "C"'
        return value.sql

    def _literal(self, tree: Any, column: _Operand) -> str:
        """Return a literal in the type of the column that it is compared with."""
        text = _read_literal(tree)
        if text is None:
            if isinstance(tree, exp.Null):
                raise UnsupportedCondition("nothing equals NULL", "write IS NULL or IS NOT NULL")
            raise UnsupportedCondition(f"`{_show(tree)}` is not a literal", FORMS)
        is_string = isinstance(text, str)
        if is_string != (column.kind in ("text", "time")):
            wanted = "a number" if is_string else "a text in single quotes"
            raise UnsupportedCondition(
                f"`{_show(tree)}` is compared with {column.sql}", f"write {wanted}"
            )
        if column.kind == "text":
            return quote_text(str(text))
        if column.kind == "time":
            return self._time(str(text))
        if column.kind == "integer":
            if not isinstance(text, int) or not -(2**column.bits) <= text < 2**column.bits:
                raise UnsupportedCondition(
                    f"{column.sql} is compared with {_show(tree)}",
                    f"write a whole number from 0 to {2**column.bits - 1}",
                )
            return str(text)
        number = float(text)
        if not math.isfinite(number):
            raise UnsupportedCondition(
                f"the number {_show(tree)} is too large", "write a smaller one"
            )
        return repr(number)

    def _time(self, text: str) -> str:
        try:
            time = datetime.fromisoformat(text)
            time = (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            raise UnsupportedCondition(
                f"'{text}' is not a time",
                "write one such as '2026-01-31', '2026-01-31T12:00' or '2026-01-31T12:00+01:00'",
            ) from None
        exact = time.isoformat(timespec="microseconds")
        if self.dialect == "postgres":
            return f"TIMESTAMPTZ '{exact}'"
        # TIMESTAMP has nanoseconds there, and so ends in 2262.
        return f"arrow_cast('{exact}', 'Timestamp(Microsecond, Some(\"UTC\"))')"


def _find_others(tree: Any) -> list[str]:
    """Return the parts of a tree that are written, and that nothing here reads."""
    return [name for name, part in tree.args.items() if part and name not in _READ]


def _check_parts(tree: Any) -> None:
    """Refuse what would be ignored otherwise, such as SYMMETRIC after BETWEEN."""
    if others := _find_others(tree):
        raise UnsupportedCondition(f"`{_show(tree)}`: {', '.join(others)} is not supported", FORMS)


def _is_literal(tree: Any) -> bool:
    return _read_literal(tree) is not None


def _read_literal(tree: Any) -> str | int | float | None:
    """Return the value of a literal, also of TIMESTAMP '…' and DATE '…'; None for other trees."""
    match tree:
        case exp.Paren(this=inner):
            return _read_literal(inner)
        case exp.Cast(this=exp.Literal() as inner, to=exp.DataType(this=kind, expressions=[])) if (
            inner.is_string and kind in _TIME_TYPES and not _find_others(tree)
        ):
            return str(inner.this)
        case exp.Neg(this=exp.Literal() as inner) if not inner.is_string:
            value = _read_literal(inner)
            return -value if isinstance(value, int | float) else None
        case exp.Literal() if tree.is_string:
            return str(tree.this)
        case exp.Literal():
            digits = str(tree.this)
            return int(digits) if re.fullmatch(r"\d{1,30}", digits) else float(digits)
    return None


def _show(tree: Any) -> str:
    return tree.sql() if isinstance(tree, exp.Expression) else str(tree)
