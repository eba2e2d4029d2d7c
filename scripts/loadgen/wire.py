"""What is on the wire: HTTP/1.1 responses by httptools (llhttp), and server-sent events inside them.

https://www.rfc-editor.org/rfc/rfc9112 and https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import httptools

LINE = re.compile(rb"([^\r\n]*)(\r\n|\r|\n)")


class Response:
    """Where a response ends, fed with its bytes in any pieces.

    status     None until the head is complete;  ended  whether its end, as HTTP delimits it, was fed
    reusable   whether the connection may carry another request after it
    delimited  how its end is told: 'chunked', 'length', or 'close' (by the end of the connection)
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self.ended = self.reusable = False
        self.delimited = "close"
        self.parser: Any = httptools.HttpResponseParser(self)

    def feed(self, data: bytes | memoryview) -> None:
        """Raises ValueError where the bytes are not HTTP."""
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise ValueError(f"not an HTTP response: {error}") from None

    def release(self) -> None:
        """Break the cycle between this and its parser: it would wait for a garbage collection."""
        self.parser = None

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"transfer-encoding" and b"chunked" in value.lower():
            self.delimited = "chunked"
        elif name.lower() == b"content-length" and self.delimited == "close":
            self.delimited = "length"

    def on_headers_complete(self) -> None:
        status = int(self.parser.get_status_code())
        if status >= 200:  # those below announce another response
            self.status = status

    def on_message_complete(self) -> None:
        self.ended = self.status is not None
        self.reusable = self.ended and bool(self.parser.should_keep_alive())


class _Body(Response):
    """A response that keeps its body."""

    def __init__(self) -> None:
        self.body = bytearray()
        super().__init__()

    def on_body(self, piece: bytes) -> None:
        self.body += piece


def body(wire: bytes, read_bytes: Sequence[int]) -> tuple[bytes, list[int], int | None]:
    """The body of a response that arrived in reads of `read_bytes` bytes: its bytes, how many each read brought, and the
    number of the read that completed the head (None if none did). What follows an error in the framing is left out."""
    response, brought, head, at, broken = _Body(), [], None, 0, False
    view = memoryview(wire)
    for number, size in enumerate(read_bytes):
        before = len(response.body)
        if not response.ended and not broken:
            try:
                response.feed(view[at : at + size])
            except ValueError:
                broken = True
        at += size
        brought.append(len(response.body) - before)
        if head is None and response.status is not None:
            head = number
    return bytes(response.body), brought, head


def frames(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Each complete server-sent event's data, with the offset just behind its blank line.

    Lines end with CR, LF or CRLF, a blank line completes an event, lines that begin with ':' are comments, an event cut
    off is none.
    """
    data: list[bytes] = []
    for line in LINE.finditer(body):
        text = line[1]
        if text.startswith(b"data:"):
            data.append(text[5:].removeprefix(b" "))
        elif not text and data:
            yield line.end(), b"\n".join(data)
            data = []
