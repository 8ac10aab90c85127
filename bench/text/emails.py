"""An e-mail as its author wrote it: subject and text, without what tells where it was collected.

Headers other than the subject are dropped: ham came through mailing lists and its headers say so. So do list
names in subjects, footers that lists append, quoted replies, signatures, and the names that the archive's
makers put in place of the recipient's. Addresses and links become a word each.
"""

from __future__ import annotations

import re
from email import message_from_bytes
from email.header import decode_header
from email.message import Message
from html.parser import HTMLParser

KEPT = 4_000  # characters; far more than an encoder reads

_LINK = re.compile(
    r"(?:https?://|ftp://|www\.)\S+|\b[\w-]+(?:\.[\w-]+)*\.(?:com|net|org|ie|edu|gov|biz|info)\b\S*", re.I
)
_ADDRESS = re.compile(r"<?\b[\w.+=-]+@[\w.-]*\w>?")
_COLLECTED = re.compile(
    r"\b(?:yyyy+|zzzz\w*|jm(?:ason)?|spamassassin|taint|fork|ilug|exmh|razor|freshrpms)\b", re.I
)
_TAG = re.compile(r"\[[^\]]{1,40}\]|\*+\s*spam\s*\*+", re.I)
_REPLY = re.compile(r"^(?:\s*(?:re|fw|fwd|aw)\s*(?:\[\d+\])?\s*:)+|\(fwd\)", re.I)
_QUOTED = re.compile(r"^\s*(?:>|\||\w{1,4}>)|(?:wrote|writes|said):?\s*$|^-+ ?original message", re.I)
_FEED = re.compile(r"^(?:URL|Date|Hash|Version):\s|^-+BEGIN PGP|^Content-", re.I)
_RULE = re.compile(r"^\s*[_=*-]{20,}\s*$")
_FOOTER = re.compile(r"mailing list|sponsored by|listinfo|unsubscri|list maintainer", re.I)
_BLOB = re.compile(r"\S{31,}")


def author_text(raw: bytes) -> tuple[str, str]:
    """(subject, text) of an e-mail with its headers."""
    message = message_from_bytes(raw)
    subject = _REPLY.sub("", _TAG.sub("", _decoded(str(message.get("Subject", "")))))
    body = "\n".join(_own_lines(_body(message).splitlines()))
    return _plain(subject)[:200], _plain(body)[:KEPT]


def _plain(text: str) -> str:
    text = _LINK.sub(" link ", _ADDRESS.sub(" address ", text))
    return " ".join(_BLOB.sub(" ", _COLLECTED.sub(" ", text)).split())


def _own_lines(lines: list[str]) -> list[str]:
    """Without quotations, and up to the signature or the list's footer."""
    kept: list[str] = []
    for i, line in enumerate(lines):
        if line.rstrip() == "--" or (_RULE.match(line) and _FOOTER.search("\n".join(lines[i : i + 6]))):
            break
        if not (_QUOTED.search(line) or _FEED.match(line)):
            kept.append(line)
    return kept


def _body(message: Message) -> str:
    """The plain text if there is one, else what its HTML shows."""
    parts: dict[str, str] = {}
    for part in message.walk():
        kind = part.get_content_type()
        if kind in ("text/plain", "text/html") and not parts.get(kind, "").strip():
            parts[kind] = _text(part)
    plain = parts.get("text/plain", "")
    if plain.strip() and not re.match(r"\s*<(?:html|!doctype|body|table)", plain, re.I):
        return plain
    return _Shown.of(parts.get("text/html") or plain)


def _text(part: Message) -> str:
    content = part.get_payload(decode=True)
    data = content if isinstance(content, bytes) else b""
    try:
        return data.decode(part.get_content_charset() or "latin-1", "replace")
    except LookupError:  # an unknown charset
        return data.decode("latin-1")


def _decoded(header: str) -> str:
    try:
        parts = decode_header(header)
    except ValueError:  # broken base64
        return header
    known = []
    for data, charset in parts:
        try:
            known.append(data if isinstance(data, str) else data.decode(charset or "latin-1", "replace"))
        except LookupError:
            known.append(data.decode("latin-1"))
    return " ".join(known)


class _Shown(HTMLParser):
    """Collects the text of a page that a reader would see."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._hidden = 0

    @classmethod
    def of(cls, page: str) -> str:
        """The shown text, a line for each element."""
        reader = cls()
        reader.feed(page)
        return "\n".join(reader.words)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in ("script", "style")))

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)
