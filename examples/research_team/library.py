"""The offline model of the team: it finds sentences in Markdown documents instead of writing them.

It stands for a language model. It is deterministic and needs no key, and its answers are real: quotes from the
documents with their lines. To use a language model, replace the body of the handlers in ``team.py``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from coord import NonRetryable

#: Words that say nothing about a topic.
COMMON = frozenset({
    "about", "after", "all", "and", "any", "are", "before", "but", "can", "does", "for", "from", "has", "have", "how",
    "into", "its", "may", "not", "one", "only", "other", "that", "the", "their", "them", "then", "there", "these",
    "they", "this", "those", "was", "what", "when", "where", "which", "while", "who", "why", "will", "with", "without",
    "you",
})  # fmt: skip
#: The end of a sentence, before the beginning of another one.
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`*])")
#: Characters of a useful quote.
QUOTE = range(30, 400)


class Quote(msgspec.Struct, frozen=True):
    """A sentence of a document."""

    path: str  #: relative to the folder of the documents
    line: int  #: of its paragraph
    text: str


def terms(text: str) -> set[str]:
    """Return the words of a text that say what it is about, without their endings."""
    words = re.findall(r"[a-z]{3,}", text.lower())
    return {re.sub(r"(?:ing|ed|es|s)$", "", word) for word in words if word not in COMMON}


class Library:
    """All Markdown documents below a folder.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def relevant(self, question: str, limit: int) -> list[str]:
        """Return the paths of the documents that say most about a question, the best first."""
        found = {path: Counter(t for quote in self.quotes(path) for t in terms(quote.text)) for path in self._paths()}
        wanted = terms(question)
        weights = _weights(wanted, [set(counts) for counts in found.values()])

        def score(path: str) -> float:
            return sum(weights[term] * math.log1p(found[path][term]) for term in wanted)

        return [path for path in sorted(found, key=lambda path: (-score(path), path)) if score(path) > 0][:limit]

    def best(self, path: str, question: str, limit: int) -> list[Quote]:
        """Return the sentences of a document that answer a question best, in the order of the document."""
        quotes = list(self.quotes(path))
        chosen = cover(quotes, question, limit)
        return [quote for quote in quotes if quote in chosen]

    def quotes(self, path: str) -> Iterator[Quote]:
        """Iterate over the sentences of a document: of its paragraphs and lists, not of its code and tables."""
        for line, paragraph in _paragraphs(self._text(path)):
            for text in SENTENCE_END.split(paragraph):
                if len(text) in QUOTE:
                    yield Quote(path, line, text)

    def has(self, quote: Quote) -> bool:
        """Return True if a quote is word for word in its document, at its line."""
        return quote in self.quotes(quote.path)

    def _paths(self) -> list[str]:
        return sorted(path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*.md"))

    def _text(self, path: str) -> str:
        """Return a document; a path that leads out of the folder is refused, because any client can submit one."""
        if path not in self._paths():
            raise NonRetryable("no_such_document", f"there is no document {path!r} below {self._folder}")
        return (self._folder / path).read_text(encoding="utf-8", errors="replace")


def cover(quotes: Iterable[Quote], question: str, limit: int) -> list[Quote]:
    """Return the quotes that together say most about a question, the best first; a term counts less when it repeats."""
    offered = [(quote, terms(quote.text)) for quote in quotes]
    wanted = terms(question)
    weights = _weights(wanted, [found for _, found in offered])
    chosen: list[Quote] = []
    while offered and len(chosen) < limit:
        values = [sum(weights[term] for term in found & wanted) / math.sqrt(len(found) + 8) for _, found in offered]
        best = max(range(len(offered)), key=values.__getitem__)
        if not values[best]:
            break
        quote, found = offered.pop(best)
        chosen.append(quote)
        weights = {term: weight / 4 if term in found else weight for term, weight in weights.items()}
    return chosen


def _weights(wanted: set[str], texts: list[set[str]]) -> dict[str, float]:
    """Return the weight of each wanted term: the fewer texts have it, the more it says."""
    return {term: math.log1p(len(texts) / (1 + sum(term in text for text in texts))) for term in wanted}


def _paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """Iterate over the paragraphs and list items of a Markdown text, each with its line and on one line."""
    begin, words, in_code = 1, list[str](), False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        content = line.strip()
        is_fence = content.startswith("```")
        in_code ^= is_fence
        is_text = bool(content) and not in_code and not is_fence and content[0] not in "|#<"
        item = re.match(r"(?:[*+-]|\d+\.) +", content)
        if words and (not is_text or item):
            yield begin, " ".join(words)
            words = []
        if is_text:
            if not words:
                begin = number
            words.append(content[item.end() :] if item else content)
