"""Debian's registry on this machine, and a proxy that counts what goes to it."""

import http.client
import http.server
import shutil
import socket
import subprocess
import threading
import time

from place import remove

CONFIGURATION = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: "{storage}"}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}", secret: bench}}
"""


class Registry:
    """A running registry whose storage can be put aside and brought back."""

    def __init__(self, folder):
        program = shutil.which("docker-registry") or folder.parents[1] / "docker-registry/usr/bin/docker-registry"
        self.folder, self.storage = folder, folder / "storage"
        self.storage.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        (folder / "config.yml").write_text(CONFIGURATION.format(storage=self.storage, port=self.port))
        with open(folder / "log", "w") as log:
            self.process = subprocess.Popen(
                [program, "serve", folder / "config.yml"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.01)
        raise SystemExit(f"scripts/bench: the registry has ended: see {folder / 'log'}")

    def stop(self):
        """Ends it."""
        self.process.terminate()
        self.process.wait()

    def empty(self):
        """It holds nothing."""
        for part in self.storage.iterdir():
            remove(part)

    def put_aside(self, name):
        """Keeps what it holds."""
        remove(self.folder / name)
        # Not as links: it writes into files that are there.
        shutil.copytree(self.storage, self.folder / name)

    def bring_back(self, name):
        """It holds what it held then."""
        self.empty()
        shutil.copytree(self.folder / name, self.storage, dirs_exist_ok=True)


class Counter:
    """A proxy before a registry: requests, and bytes of their bodies."""

    def __init__(self, registry):
        counter = self

        class Handler(Forwarder):
            upstream, count = registry.host, counter.count

        self.lock = threading.Lock()
        self.requests = self.sent = 0
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def count(self, requests, sent):
        """Adds to the figures."""
        with self.lock:
            self.requests += requests
            self.sent += sent

    def take(self):
        """What went through since the last time."""
        with self.lock:
            figures = {"requests": self.requests, "sent": self.sent}
            self.requests = self.sent = 0
        return figures

    def stop(self):
        """Ends it."""
        self.server.shutdown()
        self.server.server_close()


class Forwarder(http.server.BaseHTTPRequestHandler):
    """Passes one request after another on."""

    protocol_version = "HTTP/1.1"
    upstream = None
    count = None

    def forward(self):
        """Passes a request on, with its host: the addresses in the answer lead through the proxy again."""
        type(self).count(1, 0)
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        length = int(self.headers.get("Content-Length", 0))
        body = self.chunks() if chunked else self.pieces(length)
        connection = http.client.HTTPConnection(self.upstream)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            # One by one, for a name may come more than once.
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body, encode_chunked=chunked)
            answer = connection.getresponse()
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            content = b"" if self.command == "HEAD" else answer.read()
            if self.command == "HEAD":
                self.send_header("Content-Length", answer.getheader("Content-Length", "0"))
            elif answer.status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        finally:
            connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = forward

    def pieces(self, length):
        """The request's body, whose length is known."""
        while length > 0:
            piece = self.rfile.read(min(length, 1 << 20))
            if not piece:
                raise ConnectionError("the client has gone")
            length -= len(piece)
            type(self).count(0, len(piece))
            yield piece

    def chunks(self):
        """The request's body, whose length is not known (RFC 9112, 7.1)."""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield from self.pieces(size)
            self.rfile.readline()
        self.rfile.readline()

    def log_message(self, *_):
        """Nothing is logged."""
