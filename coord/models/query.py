"""The query language: ``type:ocr state:failed age:>1h``. One grammar for HTTP, the command line and bulk operations.

    query   terms with spaces between; all of them hold
    term    field:values   -field:values (none of the values)   word (without a field, see ``Grammar``)
    values  value,value,… (any of them)
    value   text   prefix*   * (any)   "text with spaces"   >1h  >=2  <5  >=80% (durations, numbers and shares)

Outside quotes, a word such as ``state=failed`` and the words AND, OR and NOT are refused: they are meant as terms.

``Grammar.parse`` returns a ``Query``. ``str(query)`` writes it in the shortest form, and that parses to the same query.
``Query.matches`` decides about one item. A grammar is a table of ``Field``; the table is also the completion data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

from msgspec import Struct

from coord.durations import parse_duration
from coord.errors import QueryInvalid
from coord.suggestions import closest

T = TypeVar("T")

#: Longest query, in characters.
MAX_LENGTH = 4_096
#: Maximum number of values in a query.
MAX_VALUES = 500

_OPERATORS = (">=", "<=", ">", "<")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "": lambda found, wanted: found == wanted,
    ">": lambda found, wanted: found > wanted,
    ">=": lambda found, wanted: found >= wanted,
    "<": lambda found, wanted: found < wanted,
    "<=": lambda found, wanted: found <= wanted,
}
#: A value that needs no quotes.
_PLAIN = re.compile(r'[^\s",*<>=-][^\s",]*')
_FIELD = re.compile(r"(-?)([A-Za-z_]+):")
#: A word that looks like a comparison of a field: ``state=failed``, ``age>1h``.
_COMPARISON = re.compile(r"([A-Za-z_]+)([=<>]+)(.*)")
#: Operators of other languages -> how this one writes them.
_FOREIGN = {
    "AND": "terms with spaces between all have to hold",
    "OR": "write several values with commas, such as state:failed,expired",
    "NOT": "write - before a term, such as -state:failed",
}
_NUMBER = re.compile(r"[0-9]{1,15}")
#: A share: 0.8, .8, 1 or 80%.
_SHARE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(%?)")
#: A number without a unit: a duration in a query needs one, because a year or a date would be taken for seconds.
_NO_UNIT = re.compile(r"-?[0-9]*\.?[0-9]*")
#: Years that a number without a unit may mean.
_YEARS = range(1970, 2200)
#: Valid values of a duration and of a moment, for errors.
_DURATIONS = "a time with a unit, such as 30s, 5m, 2h or 7d"
_MOMENTS = "a date such as 2026-01-31 or 2026-01-31T12:00:00Z"


class Kind(StrEnum):
    """What the values of a field are."""

    TEXT = "text"  #: a name; ``prefix*`` matches all that begin with it
    CHOICE = "choice"  #: one of a few names
    NUMBER = "number"  #: a number, alone or with a comparison
    SHARE = "share"  #: a share from 0 to 1, or in percent, alone or with a comparison: ``>=0.8``, ``>=80%``
    DURATION = "duration"  #: a length of time, with its unit, and a comparison: ``>1h``
    MOMENT = "moment"  #: a point in time: how long ago (``1h``), or a date with or without a time of day


class Value(Struct, frozen=True):
    """One value of a term."""

    text: str
    operator: str = ""  #: one of > >= < <=, or empty
    is_prefix: bool = False
    #: The number; seconds of a duration; of a moment seconds since 1970, or minus seconds ago.
    amount: float = 0.0

    def __str__(self) -> str:
        is_plain = _PLAIN.fullmatch(self.text) and not self.text.endswith("*")
        text = self.text if is_plain or (self.is_prefix and not self.text) else _quoted(self.text)
        return f"{self.operator}{text}{'*' if self.is_prefix else ''}"


class Term(Struct, frozen=True):
    """One condition: the field has one of the values; negated: none of them."""

    field: str  #: empty: the shorthand
    values: tuple[Value, ...]
    is_negated: bool = False

    def __str__(self) -> str:
        texts = [str(value) for value in self.values]
        if not self.field:
            texts = [_quoted(value.text) if _is_mistakable(value.text) else str(value) for value in self.values]
        name = f"{self.field}:" if self.field else ""
        return f"{'-' if self.is_negated else ''}{name}{','.join(texts)}"


class Field(Struct, Generic[T], frozen=True):
    """A field of a grammar."""

    name: str
    kind: Kind
    help: str
    get: Callable[[T], Any]  #: its value of an item: text, number, None, or several texts. ms since 1970 of times
    example: str
    values: tuple[str, ...] = ()  #: of a ``CHOICE``


class FieldInfo(Struct, frozen=True):
    """What an editor needs to know of a field, for completion."""

    name: str
    kind: Kind
    help: str
    values: tuple[str, ...]  #: all valid ones of a choice, known ones of a text; empty: any
    operators: tuple[str, ...]
    example: str


class Query(Struct, frozen=True):
    """A parsed query: all terms hold. Without terms it matches everything."""

    terms: tuple[Term, ...] = ()

    def __str__(self) -> str:
        return " ".join(map(str, self.terms))

    def of(self, field: str) -> list[Term]:
        """Return the terms of a field."""
        return [term for term in self.terms if term.field == field]

    def names(self, field: str) -> frozenset[str] | None:
        """Return the only texts that a field may have; None if the query does not limit them to some."""
        limit: frozenset[str] | None = None
        for term in self.of(field):
            if not term.is_negated and not any(value.is_prefix for value in term.values):
                found = frozenset(value.text for value in term.values)
                limit = found if limit is None else limit & found
        return limit

    def allowed(self, field: str, names: Iterable[str]) -> frozenset[str]:
        """Return which of these texts of a field can match."""
        terms = self.of(field)
        return frozenset(name for name in names if all(_has_text(term, (name,)) for term in terms))

    def with_term(self, field: str, values: Sequence[str]) -> Query:
        """Return the query with one more term; without values it is the same."""
        return Query((*self.terms, Term(field, tuple(map(Value, values))))) if values else self


class Grammar(Generic[T]):
    """The language of one kind of item.

    Args:
        item: what an item is called in errors: ``task``.
        fields: the table of its fields.
        shorthand: the fields that a word without a field looks at: the first one takes it as a prefix.
        has_word: returns True if an item has a word without a field, in place of ``shorthand``.
    """

    def __init__(
        self,
        item: str,
        fields: Sequence[Field[T]],
        shorthand: tuple[str, str] = ("id", "id"),
        *,
        has_word: Callable[[T, str], bool] | None = None,
    ) -> None:
        self.item = item
        self.fields = {field.name: field for field in fields}
        self.shorthand = shorthand
        self._article = "an" if item[0] in "aeiou" else "a"
        self._has_word = has_word

    def parse(self, text: str) -> Query:
        """Return the query.

        Args:
            text: as typed; empty: everything.

        Raises:
            QueryInvalid: it does not fit; names the position (1 is the first character) and the nearest valid text.
        """
        if len(text) > MAX_LENGTH:
            raise QueryInvalid(f"the query has {len(text):,} characters; at most {MAX_LENGTH:,} are possible")
        terms = tuple(self._terms(text))
        count = sum(len(term.values) for term in terms)
        if count > MAX_VALUES:
            raise QueryInvalid(f"the query has {count} values; at most {MAX_VALUES} are possible")
        return Query(terms)

    def matches(self, query: Query, item: T, now: int) -> bool:
        """Return True if an item meets all terms.

        Args:
            query: from ``parse``.
            item: one of the grammar's kind.
            now: ms since 1970 on the server's clock.
        """
        return all(self._holds(term, item, now) for term in query.terms)

    def completion(self, known: dict[str, tuple[str, ...]] | None = None) -> tuple[FieldInfo, ...]:
        """Return the fields with their values.

        Args:
            known: values of text fields that exist at the moment.
        """
        return tuple(
            FieldInfo(
                field.name,
                field.kind,
                field.help,
                field.values or (known or {}).get(field.name, ()),
                _operators(field.kind),
                field.example,
            )
            for field in self.fields.values()
        )

    def _terms(self, text: str) -> Iterator[Term]:
        at = 0
        while True:
            while at < len(text) and text[at].isspace():
                at += 1
            if at == len(text):
                return
            term, at = self._term(text, at)
            yield term

    def _term(self, text: str, at: int) -> tuple[Term, int]:
        begin = at
        found = _FIELD.match(text, at)
        if found is None:
            is_negated = text[at] == "-"
            at += is_negated
            value, end = self._value(text, at, None)
            if text[at] != '"':
                self._check_word(value.text, at)
            if end < len(text) and not text[end].isspace():
                raise _problem(end, f"unexpected {text[end]!r}; write a space between two terms")
            return Term("", (value,), is_negated), end
        sign, name = found.groups()
        field = self.fields.get(name)
        if field is None:
            raise _problem(begin + len(sign), self._unknown_field(name, text[found.end() :]))
        at = found.end()
        values: list[Value] = []
        while True:
            value, at = self._value(text, at, field)
            values.append(value)
            if at == len(text) or text[at].isspace():
                return Term(name, tuple(values), bool(sign)), at
            if text[at] != ",":
                raise _problem(at, f"unexpected {text[at]!r}; write a comma between two values, a space between terms")
            at += 1

    def _value(self, text: str, at: int, field: Field[T] | None) -> tuple[Value, int]:
        begin = at
        operator = next((one for one in _OPERATORS if text.startswith(one, at)), "") if field is not None else ""
        at += len(operator)
        is_quoted = text.startswith('"', at)
        if is_quoted:
            word, at = _read_quoted(text, at)
        else:
            end = at
            while end < len(text) and not text[end].isspace() and text[end] not in ',"':
                end += 1
            word, at = text[at:end], end
        is_prefix = False
        if is_quoted:
            if text.startswith("*", at):
                is_prefix, at = True, at + 1
        elif word.endswith("*"):
            word, is_prefix = word[:-1], True
        if not word and not (is_prefix and field is not None):
            example = f", such as {field.example}" if field is not None else ""
            raise _problem(begin, f"a value is missing{f' after {field.name}:' if field else ''}{example}")
        return self._checked(Value(word, operator, is_prefix), field, begin), at

    def _checked(self, value: Value, field: Field[T] | None, at: int) -> Value:
        """Check a value against the kind of its field."""
        if field is None:
            return Value(value.text)  # a word is a prefix of the first field in any case
        label = f"{field.name}:{value}"
        if value.operator and not _operators(field.kind):
            raise _problem(at, f"{label}: {field.name} takes no comparison; write {field.example}")
        if value.is_prefix and field.kind is not Kind.TEXT:
            raise _problem(at, f"{label}: only names can end with *; write {field.example}")
        try:
            return _CHECKS[field.kind](value, field)
        except ValueError as error:
            raise _problem(at, str(error)) from None

    def _check_word(self, word: str, at: int) -> None:
        """Refuse a word that is meant as something else than the text to search for."""
        if word in _FOREIGN:
            raise _problem(at, f'{word} is not an operator; {_FOREIGN[word]}; "{word}" searches for the text')
        if (found := _COMPARISON.fullmatch(word)) is not None:
            meant = self._meant(*found.groups())
            step = (
                f"did you mean {meant}?"
                if meant
                else f"the fields of {self._article} {self.item} are {', '.join(self.fields)}"
            )
            raise _problem(at, f"{word} is not a term, which is written field:value; {step}")

    def _meant(self, name: str, operator: str, value: str) -> str | None:
        """Return the term that a comparison stands for; None if there is no such field."""
        near = closest(name.lower(), self.fields)
        if near is None:
            return None
        field = self.fields[near]
        value = closest(value, field.values) or value
        operator = operator if operator in _operators(field.kind) else ""
        try:
            return str(self.parse(f"{near}:{operator}{value}"))
        except QueryInvalid:
            return field.example

    def _unknown_field(self, name: str, rest: str) -> str:
        near = closest(name.lower(), self.fields)
        if near:
            return f"there is no field {name!r}; did you mean {near}:{rest.split(' ', maxsplit=1)[0]}?"
        return f"there is no field {name!r}; the fields of {self._article} {self.item} are {', '.join(self.fields)}"

    def _finds(self, item: T, word: str) -> bool:
        """Return True if a word without a field selects an item."""
        if self._has_word is not None:
            return self._has_word(item, word)
        prefix, exact = (self.fields[name].get(item) for name in self.shorthand)
        return bool(prefix.startswith(word) or exact == word)

    def _holds(self, term: Term, item: T, now: int) -> bool:
        if not term.field:
            return any(self._finds(item, value.text) for value in term.values) != term.is_negated
        field = self.fields[term.field]
        found = field.get(item)
        if field.kind in {Kind.TEXT, Kind.CHOICE}:
            return _has_text(term, (found,) if isinstance(found, str) else found or ())
        if found is None:
            return term.is_negated
        if field.kind is Kind.DURATION:
            found = (now - found) / 1000
        elif field.kind is Kind.MOMENT:
            return any(_is_since(value, found, now) for value in term.values) != term.is_negated
        return any(_COMPARE[value.operator](found, value.amount) for value in term.values) != term.is_negated


def _check_choice(value: Value, field: Field[Any]) -> Value:
    if value.text not in field.values:
        near = closest(value.text, field.values)
        step = f"; did you mean {field.name}:{near}?" if near else ""
        raise ValueError(f"{field.name} {value.text!r} is not one of {', '.join(field.values)}{step}")
    return value


def _check_number(value: Value, field: Field[Any]) -> Value:
    if not _NUMBER.fullmatch(value.text):
        raise ValueError(f"{field.name}:{value}: expected a whole number, such as {field.example}")
    return Value(value.text, value.operator, amount=float(value.text))


def _check_share(value: Value, field: Field[Any]) -> Value:
    found = _SHARE.fullmatch(value.text)
    if found is None:
        raise ValueError(f"{field.name}:{value}: expected a share from 0 to 1 or in percent, such as {field.example}")
    number, percent = found.groups()
    return Value(value.text, value.operator, amount=float(number) / (100 if percent else 1))


def _check_duration(value: Value, field: Field[Any]) -> Value:
    seconds = _seconds(value.text)
    if seconds is None:
        meant = f"{field.name}:{value.operator or '>'}{value.text}s" if _has_no_unit(value.text) else field.example
        raise ValueError(f"{field.name}:{value}: expected {_DURATIONS} with a comparison, such as {meant}")
    if not value.operator:
        raise ValueError(f"{field.name}:{value}: write a comparison, such as {field.name}:>{value.text}")
    return Value(value.text, value.operator, amount=seconds)


def _check_moment(value: Value, field: Field[Any]) -> Value:
    amount = _moment(value.text)
    if amount is None:
        meant = _meant_moment(value.text)
        step = f"; did you mean {field.name}:{meant}?" if meant else ""
        raise ValueError(f"{field.name}:{value}: expected {_DURATIONS} ago, or {_MOMENTS}{step}")
    return Value(value.text, amount=amount)


#: kind -> returns a value with its amount; raises ``ValueError`` if it does not fit.
_CHECKS: dict[Kind, Callable[[Value, Field[Any]], Value]] = {
    Kind.TEXT: lambda value, _field: value,
    Kind.CHOICE: _check_choice,
    Kind.NUMBER: _check_number,
    Kind.SHARE: _check_share,
    Kind.DURATION: _check_duration,
    Kind.MOMENT: _check_moment,
}


def _has_text(term: Term, found: Sequence[str]) -> bool:
    """Return True if one of the texts that an item has is one of the values; negated: if none is."""
    has = any(_equals(value, text) for value in term.values for text in found)
    return has != term.is_negated


def _equals(value: Value, text: str) -> bool:
    return text.startswith(value.text) if value.is_prefix else text == value.text


def moment_ms(value: Value, now: int) -> float:
    """Return the moment that a value of the kind ``MOMENT`` names, in ms since 1970."""
    return now + value.amount * 1000 if value.amount <= 0 else value.amount * 1000


def _is_since(value: Value, found: float, now: int) -> bool:
    return found >= moment_ms(value, now)


def _operators(kind: Kind) -> tuple[str, ...]:
    return _OPERATORS if kind in {Kind.NUMBER, Kind.SHARE, Kind.DURATION} else ()


def _seconds(text: str) -> float | None:
    """Return the seconds of a duration with a unit; None if the text is none."""
    seconds = None if _has_no_unit(text) else parse_duration(text)
    return None if seconds is None or seconds < 0 else seconds


def _has_no_unit(text: str) -> bool:
    return _NO_UNIT.fullmatch(text.strip()) is not None


def _moment(text: str) -> float | None:
    """Return seconds since 1970 of a date or time, which is in UTC unless it says otherwise; or minus seconds ago."""
    seconds = _seconds(text)
    if seconds is not None:
        return -seconds
    if _has_no_unit(text) or not text[:4].isdecimal():
        return None
    try:
        found = datetime.fromisoformat(text)
        found = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
        return max(found.timestamp(), 0.001)
    except (ValueError, OverflowError):
        return None


def _is_mistakable(text: str) -> bool:
    """Return True if a word without a field needs quotes: it looks like another term."""
    return any(form.match(text) for form in (_FIELD, _COMPARISON)) or text in _FOREIGN


def _meant_moment(text: str) -> str:
    """Return what a number without a unit can mean: a year, a date, a time in s or ms since 1970, or a duration."""
    number = text.strip()
    if not number.isascii() or not number.isdecimal():
        return ""
    if len(number) == 4 and int(number) in _YEARS:
        return f"{number}-01-01"
    if len(number) == 8:
        with suppress(ValueError):
            return date.fromisoformat(number).isoformat()
    if len(number) in {10, 13}:
        found = datetime.fromtimestamp(int(number[:10]), UTC)
        return found.isoformat().replace("+00:00", "Z")
    return f"{number}s" if len(number) < 8 else ""


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _read_quoted(text: str, at: int) -> tuple[str, int]:
    """Return the text in quotes that begin at a position, and the position after them."""
    begin, parts = at, []
    at += 1
    while at < len(text) and text[at] != '"':
        if text[at] == "\\" and at + 1 < len(text):
            at += 1
        parts.append(text[at])
        at += 1
    if at == len(text):
        raise _problem(begin, 'the quotation mark " has no second one; write \\" for one inside a value')
    return "".join(parts), at + 1


def _problem(at: int, message: str) -> QueryInvalid:
    return QueryInvalid(f"query, position {at + 1}: {message}")
