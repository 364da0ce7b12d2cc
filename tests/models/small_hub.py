"""A hub on the loopback that knows one repository and writes down which files it gave away."""

import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(repo, files):
    """Yield its address and the names that were downloaded, in order.

    Args:
        repo: `org/name`.
        files: Contents by name.
    """
    given = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            sizes = [{"rfilename": name, "size": len(held)} for name, held in files.items()]
            if path.startswith(f"/api/models/{repo}/tree/"):
                self.send([
                    {"type": "file", "path": name, "size": len(held), "oid": digest(held)}
                    for name, held in files.items()
                ])  # fmt: skip
            elif path.startswith(f"/api/models/{repo}"):
                self.send({"id": repo, "sha": COMMIT, "siblings": sizes})
            elif path.startswith("/api/models/"):
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif (name := path.removeprefix(f"/{repo}/resolve/{COMMIT}/")) not in files:
                self.send_error(404)
            else:
                if self.command == "GET":
                    given.append(name)
                self.send(files[name], digest(files[name]))

        def send(self, content, etag=None):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            if etag:
                self.send_header("ETag", f'"{etag}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", given
        server.shutdown()


def digest(content):
    return hashlib.sha1(content).hexdigest()
