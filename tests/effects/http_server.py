"""A real HTTP server on the loopback interface that records what reached it."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Seen:
    """What an outside observer saw.

    Attributes:
        requests: Method, path and body of each request.
        connections: How many were opened.
    """

    def __init__(self):
        self.requests = []
        self.connections = 0
        self.url = ""

    def paths(self, *methods):
        return [path for method, path, _ in self.requests if method in methods]


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = False  # closing joins them
    block_on_close = True

    def __init__(self, seen):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen = seen
        self.open = set()

    def process_request(self, request, client_address):
        self.seen.connections += 1
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        pass


class _Handler(BaseHTTPRequestHandler):
    """`/to/...?status=307&location=...` redirects; anything else is told what it was."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.connection.settimeout(10)

    def _body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _answer(self):
        url = urlsplit(self.path)
        body = self._body()
        self.server.seen.requests.append((self.command, url.path, body))
        query = {name: value[0] for name, value in parse_qs(url.query).items()}
        told = json.dumps({"method": self.command, "body": body.decode()}).encode()
        self.send_response(int(query.get("status", "200")))
        if "location" in query:
            self.send_header("Location", query["location"])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(told)

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def log_message(self, *_):
        pass


@contextmanager
def serve():
    """Serve on a free port; gives what is seen, with the `url`."""
    seen = Seen()
    server = _Server(seen)
    seen.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}
    )
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        thread.join()
        for connection in list(server.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()
