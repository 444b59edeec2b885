"""Leaves out of a script what a browser does not need: comments, spaces, line ends and commas before a bracket.

Names stay as they are. A line end stays where it may end a statement. Strings, templates and regular expressions are
copied. A template literal may contain others.
"""

from __future__ import annotations

import re

_SPACE = re.compile(r"(?:\s|//[^\n]*|/\*.*?\*/)+", re.DOTALL)
_WORD = re.compile(r"[\w$]+")
_STRING = re.compile(r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""")
_REGEX = re.compile(r"/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\[\n])+/\w*")
#: A slash after one of these begins a regular expression, and does not divide.
_BEFORE_REGEX = frozenset("(,=:[!&|?{};")
_WORDS_BEFORE_REGEX = frozenset({"return", "typeof", "case", "in", "of"})
#: A statement does not end after one of these, and does not begin with one of these.
_NO_END, _NO_BEGIN = frozenset(";{,([:=?&|<>!*"), frozenset(")]},;:?.&|=<>*")


def compact(source: str) -> str:
    """Return a script that does the same.

    Raises:
        ValueError: a string, a template or a regular expression has no end.
    """
    tokens: list[str] = []
    last, at = ";", 0
    while at < len(source):
        space = _SPACE.match(source, at)
        if space is not None:
            at = space.end()
            if at == len(source):
                break
        token = _token(source, at, last)
        at += len(token)
        if token in {")", "]", "}"} and last == ",":
            tokens.pop()
        if space is not None:
            tokens.append(_between(space[0], last, token))
        tokens.append(token)
        last = token
    return "".join(tokens)


def _between(space: str, last: str, token: str) -> str:
    """Return what must stand between two tokens that have space between them."""
    if "\n" in space and last[-1] not in _NO_END and token[0] not in _NO_BEGIN:
        return "\n"
    is_two_words = _is_word(last[-1]) and _is_word(token[0])
    return " " if is_two_words or (last[-1] == token[0] and token[0] in "+-/") else ""


def _is_word(char: str) -> bool:
    return _WORD.match(char) is not None


def _token(source: str, at: int, last: str) -> str:
    """Return the token at a position."""
    char = source[at]
    if char == "`":
        return source[at : _template_end(source, at)]
    pattern = None
    if char in "\"'":
        pattern = _STRING
    elif char == "/" and (last in _BEFORE_REGEX or last in _WORDS_BEFORE_REGEX):
        pattern = _REGEX
    elif _is_word(char):
        pattern = _WORD
    if pattern is None:
        return char
    found = pattern.match(source, at)
    if found is None:
        raise _endless(source, at)
    return found[0]


def _template_end(source: str, begin: int) -> int:
    """Return the position after a template literal."""
    at, last = begin + 1, ""
    depth = 0  # of braces in a substitution; 0: in the text
    while at < len(source):
        char = source[at]
        if depth == 0 and char == "`":
            return at + 1
        if depth == 0:
            is_substitution = source.startswith("${", at)
            depth = int(is_substitution)
            at += 2 if is_substitution or char == "\\" else 1
            last = "{"
            continue
        token = char if char.isspace() else _token(source, at, last)
        depth += {"{": 1, "}": -1}.get(token, 0)
        last = token if not token.isspace() else last
        at += len(token)
    raise _endless(source, begin)


def _endless(source: str, at: int) -> ValueError:
    return ValueError(f"{source[at : at + 60]!r} has no end")
