"""MySQL's SQL, cut into words: comments, quoted names, texts with escapes, and what is in ``/*! */``, as the server
reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

_TOKEN = re.compile(
    # Whatever is not ASCII may stand in a name, spaces and signs of Unicode too.
    r"""(?P<space>\s+|\#[^\n]*|--(?=\s)[^\n]*|/\*(?!M?!).*?(?:\*/|\Z)|/\*M?!\d*|\*/)
    |`(?P<name>(?:[^`]|``)*)`
    |(?P<prefix>[xXbBnN]|_[a-zA-Z0-9]+\s*)?(?P<string>'(?:[^'\\]|''|\\.)*'|"(?:[^"\\]|""|\\.)*")
    |(?P<number>(?:0[xX][0-9a-fA-F]+|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)(?![\w$\x80-\U0010ffff]))
    |(?P<word>[\w$\x80-\U0010ffff]+)
    |(?P<sign>.)""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
#: The same where sql_mode has NO_BACKSLASH_ESCAPES.
_PLAIN_TOKEN = re.compile(_TOKEN.pattern.replace(r"\\]|", "]|").replace(r"|\\.)", ")"), _TOKEN.flags)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "Z": "\x1a", "b": "\b"}

Token: TypeAlias = tuple[str, str]
"""(kind, text): "name" for what is in backticks, "word", "string", "introduced" for a text in a character set of its
own, "hex", "bits", "number", "sign", "end"."""

END: Token = ("end", "")


def tokenize(statement: str, *, escapes: bool = True, names: str = "`") -> list[Token]:
    """The words of `statement`, without comments.

    :param escapes: whether backslashes mean anything: not so in NO_BACKSLASH_ESCAPES.
    :param names: what names are quoted in; also in ``"`` in ANSI_QUOTES.
    """
    found: list[Token] = []
    for match in (_TOKEN if escapes else _PLAIN_TOKEN).finditer(statement):
        kind = match.lastgroup or ""
        if kind == "space":
            continue
        text = match[kind]
        if kind == "name":
            text = text.replace("``", "`")
        elif kind == "string":
            prefix = (match["prefix"] or "").lower()
            kind = {"x": "hex", "b": "bits", "": "string"}.get(prefix, "introduced")
            quote = text[0]
            if quote in names:
                kind = "name"
            text = re.sub(
                rf"\\(.)|{quote}{quote}" if escapes else quote + quote,
                lambda m, q=quote: q if m[0] == q + q else _ESCAPES.get(m[1], m[1]),
                text[1:-1],
                flags=re.DOTALL,
            )
        elif kind == "number" and text[:2] in {"0x", "0X"}:
            kind, text = "hex", text[2:]
        found.append((kind, text))
    while found and found[-1] == ("sign", ";"):
        found.pop()
    return found


class NotUnderstoodError(Exception):
    """Where the parser gave up."""


class Tokens:
    """A cursor over tokens; keywords are compared without case, names in backticks are never keywords."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens, self._at = tokens, 0

    def peek(self, ahead: int = 0) -> Token:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else END

    def next(self) -> Token:
        token = self.peek()
        self._at += 1
        return token

    def rest(self) -> list[Token]:
        """All that is left."""
        left, self._at = self._tokens[self._at :], len(self._tokens)
        return left

    @property
    def done(self) -> bool:
        return self._at >= len(self._tokens)

    def is_word(self, *words: str, ahead: int = 0) -> bool:
        kind, text = self.peek(ahead)
        return kind == "word" and text.upper() in words

    def skip(self, *words: str) -> bool:
        """Skip these words if all of them come next."""
        if all(self.is_word(word, ahead=place) for place, word in enumerate(words)):
            self._at += len(words)
            return True
        return False

    def skip_any(self, *words: str) -> str:
        """The one of these words that came next, "" when none did."""
        return self.next()[1].upper() if self.is_word(*words) else ""

    def skip_sign(self, sign: str) -> bool:
        if self.peek() == ("sign", sign):
            self._at += 1
            return True
        return False

    def expect_sign(self, sign: str) -> None:
        if not self.skip_sign(sign):
            raise self.unknown()

    def name(self) -> str:
        kind, text = self.peek()
        # ANSI_QUOTES makes names of double-quoted texts.
        if kind not in {"name", "word", "string"}:
            raise self.unknown()
        self._at += 1
        return text

    def group(self) -> list[Token]:
        """What is between the parentheses that come next."""
        self.expect_sign("(")
        start, depth = self._at, 1
        while depth:
            token = self.next()
            if token == END:
                raise self.unknown()
            depth += (token == ("sign", "(")) - (token == ("sign", ")"))
        return self._tokens[start : self._at - 1]

    def unknown(self) -> NotUnderstoodError:
        return NotUnderstoodError(self.peek()[1] or "its end")


def split(tokens: list[Token]) -> Iterator[Tokens]:
    """The parts between commas outside parentheses."""
    part: list[Token] = []
    depth = 0
    for token in tokens:
        depth += (token == ("sign", "(")) - (token == ("sign", ")"))
        if token == ("sign", ",") and not depth:
            yield Tokens(part)
            part = []
        else:
            part.append(token)
    if part:
        yield Tokens(part)
