"""JSON of users' values: what has an obvious form is encoded, the rest is refused with its path."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict
from pydantic.v1 import BaseModel as OldModel

from coord import values
from coord.values import ValueRefused, decoder_of, encode, text_of


class Word(str):
    """A subclass of text."""

    __slots__ = ()


class Number(int):
    """A subclass of int."""


class Moment(datetime):
    """A subclass of datetime, as pandas has one."""


class Colour(enum.Enum):
    """Members whose values are no text."""

    RED = (255, 0, 0)


class Model(BaseModel):
    """What LangChain's messages and the answers of LLM clients are."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    path: Path
    at: datetime
    score: float = 1.0


class Old(OldModel):
    """The same of pydantic's first version."""

    path: Path


@dataclasses.dataclass
class Holder:
    """A dataclass with a field of any kind."""

    field: Any


AT = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "raw"),
    [
        (Model(path=Path("/a"), at=AT), b'{"path":"/a","at":"2030-01-01T00:00:00Z","score":1.0}'),
        (Old(path=Path("/a")), b'{"path":"/a"}'),
        (Holder([Model(path=Path("b"), at=AT)]), b'{"field":[{"path":"b","at":"2030-01-01T00:00:00Z","score":1.0}]}'),
        ({Word("key"): Word("text")}, b'{"key":"text"}'),
        ([Number(7), {Number(8): 1}], b'[7,{"8":1}]'),
        (Moment(2030, 1, 1, tzinfo=UTC), b'"2030-01-01T00:00:00Z"'),
        ([Colour.RED, Path("/a/b")], b'[[255,0,0],"/a/b"]'),
        ([np.int64(3), np.float64(1.5), np.float32(0.5), np.bool_(True), np.str_("x")], b'[3,1.5,0.5,true,"x"]'),
        (np.array([[1, 2], [3, 4]]), b"[[1,2],[3,4]]"),
        ([collections.deque([1]), range(2), {}.keys()], b"[[1],[0,1],[]]"),
        ([types.MappingProxyType({"a": 1}), collections.UserDict(b=2)], b'[{"a":1},{"b":2}]'),
        ({None: 1, True: 2, Path("p"): 3}, b'{"null":1,"true":2,"p":3}'),
        ([None, {"a": None, "b": b"\xcb\x7f\xf0"}], b'[null,{"a":null,"b":"y3/w"}]'),
        ({"a": None, "b": 10**30}, b'{"a":null,"b":1000000000000000000000000000000}'),
        (msgspec.Raw(b'{"n":1e308}'), b'{"n":1e308}'),
    ],
)
def test_a_value_with_an_obvious_form_is_encoded(value: Any, raw: bytes) -> None:
    """Subclasses as their base, models as they dump themselves, containers as objects and arrays."""
    assert encode(value, "result") == raw


def _endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


class Silent:
    """Its text cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (math.nan, r"^result: nan is not a JSON number; use null or a string for it$"),
        ({"a b": [1, (math.inf,)]}, r"^result\['a b'\]\[1\]\[0\]: inf is not"),
        (Holder(Holder(-math.inf)), r"^result\.field\.field: -inf is not"),
        (Model(path=Path(), at=AT, score=math.nan), r"^result\.score: nan is not"),
        ([None, np.array([1.0, np.nan])], r"^result\[1\]\[1\]: nan is not"),
        ({"n": 10**30, "x": np.float64("nan")}, r"^result\.x: nan is not"),
        ({"a": {"b": object()}}, r"^result\.a\.b: cannot be encoded as JSON: type object has no JSON form$"),
        ([Silent()], r"^result\[0\]: cannot be encoded as JSON: type \S+Silent has no JSON form$"),
        ({"k": {(1, 2): 3}}, r"^result\.k: cannot be encoded as JSON: a tuple cannot be the key of a mapping$"),
        ((x for x in "ab"), r"type generator has no JSON form"),
        ([1 + 2j], r"^result\[0\]: .*type complex"),
        ([np.longdouble(1)], r"^result\[0\]: .*type numpy\.longdouble has no JSON form$"),
        ({"name": "\ud800"}, r"^result\.name: cannot be encoded as JSON: .*surrogates not allowed"),
        ([10**5_000], r"^result\[0\]: cannot be encoded as JSON: Exceeds the limit"),
        (_endless(), r"^result\[0\]\[0\].*: nested too deeply, or contains itself$"),
        (msgspec.Raw(b'{"a":[{"n":-1e999}]}'), r"^result\.a\[0\]\.n: the number -1e999 is out of range$"),
        (msgspec.Raw(b'{"a":\xff}'), r"^result: is not valid JSON"),
    ],
)
def test_a_value_without_one_is_refused_with_its_path(value: Any, why: str) -> None:
    """The path leads to the part that cannot be JSON, however deep it is."""
    with pytest.raises(ValueRefused, match=why):
        encode(value, "result")


def test_the_text_of_a_refused_value_is_bounded() -> None:
    """It is kept in an error, whatever its size; one whose text cannot be shown is its type."""
    assert text_of({"words": ["a"], "made_by": Silent}) == f"{{'made_by': {Silent!r}, 'words': ['a']}}"
    assert len(text_of({str(n): "x" * 10_000 for n in range(1_000)})) == values.TEXT_KEPT + 1
    assert "Silent" in text_of(Silent())
    assert text_of(msgspec.Raw(b'{"n":\xff}')) == '{"n":\ufffd}'


def test_what_cannot_be_decoded_is_no_annotation() -> None:
    """Refused when the handler is registered; what a subclass is decoded from is checked by its base."""
    for kind in (complex, Silent):
        with pytest.raises(TypeError, match="annotate it with Task, with a pydantic model"):
            decoder_of(kind)
    assert decoder_of(dict[str, Word])(b'{"a":"b"}') == {"a": Word("b")}
    assert decoder_of(Old)(b'{"path":"x"}') == Old(path=Path("x"))
    with pytest.raises(msgspec.ValidationError, match="Expected `int`, got `str`"):
        decoder_of(list[Number])(b'["x"]')
    with pytest.raises(msgspec.ValidationError, match=r"field required - at `\$\.path`"):
        decoder_of(Old)(b"{}")
