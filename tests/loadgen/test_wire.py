from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import wire

PARTS = [b"data: 1\n\n", b"data: 22\n\n", b"0\r\n\r\n"]
BODY = b"".join(PARTS)
RESPONSES = {
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in PARTS)
    + b"0\r\n\r\n",
    "length": b"HTTP/1.1 503 Busy\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "close": b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("kind", RESPONSES)
@given(data=st.data())
def test_any_split_gives_the_same_body_and_tells_who_brought_it(
    kind: str, data: st.DataObject
) -> None:
    whole = RESPONSES[kind]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=10)))
    sizes = [end - start for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    body, brought, head = wire.body(whole, sizes)

    assert body == BODY
    assert sum(brought) == len(BODY)
    assert len(brought) == len(sizes)
    assert head is not None
    assert sum(sizes[: head + 1]) >= whole.index(b"\r\n\r\n") + 4 > sum(sizes[:head])


@pytest.mark.parametrize("kind", RESPONSES)
def test_the_end_is_known_where_http_tells_it(kind: str) -> None:
    response = wire.Response()
    response.feed(RESPONSES[kind][:-1])
    assert not response.ended

    response.feed(RESPONSES[kind][-1:])

    assert response.delimited == kind
    assert response.ended == (kind != "close")
    assert response.status == (503 if kind == "length" else 200)


@pytest.mark.parametrize(
    ("header", "reusable"),
    [(b"", True), (b"Connection: keep-alive\r\n", True), (b"Connection: close\r\n", False)],
)
def test_a_server_says_whether_the_connection_stays(header: bytes, reusable: bool) -> None:
    response = wire.Response()
    response.feed(b"HTTP/1.1 200 OK\r\n" + header + b"Content-Length: 0\r\n\r\n")

    assert response.ended
    assert response.reusable == reusable


def test_what_is_not_http_is_a_value_error_and_has_no_body() -> None:
    with pytest.raises(ValueError, match="not an HTTP response"):
        wire.Response().feed(b"SSH-2.0-OpenSSH\r\n\r\n")
    assert wire.body(b"SSH-2.0-OpenSSH\r\n\r\n", [10, 9]) == (b"", [0, 0], None)


def test_what_follows_broken_framing_is_left_out() -> None:
    whole = RESPONSES["chunked"].replace(b"a\r\ndata: 22", b"zz\r\ndata: 22")

    body, brought, head = wire.body(whole, [len(whole) - 3, 3])

    assert body == PARTS[0]
    assert (brought, head) == ([len(PARTS[0]), 0], 0)
