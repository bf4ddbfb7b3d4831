"""A model hub on this machine: serves files the way huggingface_hub asks for them, and writes down what was asked."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """files: ``owner/name/file`` -> bytes; broken: repositories that answer 500. Requests are kept in ``asked``."""

    def __init__(self, files: dict[str, bytes], broken: tuple[str, ...] = ()):
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                repository, _, rest = self.path.lstrip("/").partition("/resolve/")
                name = f"{repository}/{rest.partition('/')[2]}"
                if repository in broken:
                    self.answer(500, b"", {})
                elif name in files:
                    etag = hashlib.sha256(files[name]).hexdigest()
                    self.answer(200, files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": "c" * 40})
                elif any(known.startswith(f"{repository}/") for known in files):
                    self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "c" * 40})
                else:
                    self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

            do_HEAD = do_GET

            def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
