"""A STUB of a backend, for tests of the pipeline alone: whatever it is told, it waits a moment and answers its readiness path with 200
and every request with the bytes of stream.sse beside it. What is measured with it says nothing of any backend.

usage: stub_server.py READY_PATH     listens on port 8000
"""

from __future__ import annotations

import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200 if self.path == sys.argv[1] else 404)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in Path(__file__).with_name("stream.sse").read_bytes().split(b"\n\n"):
            if event:
                self.wfile.write(b"%x\r\n%s\n\n\r\n" % (len(event) + 2, event))
                time.sleep(0.01)
        self.wfile.write(b"0\r\n\r\n")


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
