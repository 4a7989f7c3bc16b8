"""Registries for the tests: Debian's docker-registry, and a proxy before it that does what networks and servers do."""
import base64
import collections
import http.client
import http.server
import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time

from support import needs_program, run

needs_registry = needs_program("docker-registry")
ORDINARY_HEADERS = {"connection", "transfer-encoding", "keep-alive", "server", "date"}
PIECE = 64 << 10


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_certificates(folder):
    """A certificate authority, and a certificate of it for 127.0.0.1. Returns the folder for --cert-dir."""
    folder = pathlib.Path(folder)
    (folder / "certs").mkdir(parents=True)
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=test-authority",
        "-keyout", folder / "ca.key", "-out", folder / "certs/ca.crt")
    run("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-keyout", folder / "server.key",
        "-out", folder / "server.csr")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    run("openssl", "x509", "-req", "-days", "30", "-in", folder / "server.csr", "-CA", folder / "certs/ca.crt",
        "-CAkey", folder / "ca.key", "-CAcreateserial", "-extfile", folder / "names", "-out", folder / "server.crt")
    return folder / "certs"


class Registry:
    """docker-registry in a folder of its own. `users`: {name: password}; `tls`: a folder of make_certificates()."""

    def __init__(self, folder, users=None, tls=None):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True)
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        lines = ["version: 0.1", "log: {level: error, accesslog: {disabled: true}}",
                 f"storage: {{filesystem: {{rootdirectory: {self.folder}/data}}, delete: {{enabled: true}}}}",
                 "http:", f"  addr: {self.host}"]
        if tls:
            lines += [f"  tls: {{certificate: {tls}/server.crt, key: {tls}/server.key}}"]
        if users:
            for number, (name, password) in enumerate(users.items()):
                run("htpasswd", "-B", "-b", *(["-c"] if number == 0 else []), self.folder / "users", name, password)
            lines += [f"auth: {{htpasswd: {{realm: test, path: {self.folder}/users}}}}"]
        (self.folder / "config.yml").write_text("\n".join(lines) + "\n")
        self.log = open(self.folder / "log", "wb")
        self.process = subprocess.Popen(["docker-registry", "serve", str(self.folder / "config.yml")], stdout=self.log,
                                        stderr=subprocess.STDOUT)
        self.wait_until_it_serves()

    def wait_until_it_serves(self):
        for _ in range(600):
            if self.process.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("docker-registry does not serve: " + (self.folder / "log").read_text())

    def push(self, source, name, *options):
        """From a source of skopeo's, by skopeo. Returns the manifest's digest."""
        run("skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", "--digestfile",
            self.folder / "digest", *options, source, f"docker://{self.host}/{name}")
        return (self.folder / "digest").read_text().strip()

    def digest(self, name, *options):
        return json.loads(run("skopeo", "inspect", "--tls-verify=false", *options,
                              f"docker://{self.host}/{name}").stdout)["Digest"]

    def blob_path(self, digest):
        return self.folder / f"data/docker/registry/v2/blobs/sha256/{digest[7:9]}/{digest[7:]}/data"

    def close(self):
        self.process.kill()
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


Seen = collections.namedtuple("Seen", "method path headers status sent_bytes")


class Fault:
    """What a proxy does instead of, or with, the answer to a request. Each member None: nothing special."""

    def __init__(self, status=None, headers=None, body=b"", delay=0, cut_after=None, change_at=None, extra=b"",
                 stall_after=None, drop_range=False, alter=None, reset=False):
        self.status, self.headers, self.body, self.delay = status, headers or {}, body, delay
        self.cut_after, self.change_at, self.extra, self.stall_after = cut_after, change_at, extra, stall_after
        self.drop_range, self.alter, self.reset = drop_range, alter, reset


class Proxy:
    """Answers for a registry at 127.0.0.1. Faults are given with fault(); `seen` lists every request in order."""

    def __init__(self, upstream_port=None, tls=None, bytes_per_second=None, delay=0):
        self.upstream_port, self.bytes_per_second, self.delay = upstream_port, bytes_per_second, delay
        self.rules, self.seen, self.arrived, self.lock = [], [], [], threading.Lock()
        self.tokens = None
        self.ended = threading.Event()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # As registries do: else a body waits for the ACK of its header.

            def log_message(self, *_):
                pass

            def handle_one_request(self):
                try:
                    super().handle_one_request()
                except (ConnectionError, ssl.SSLError, TimeoutError):
                    self.close_connection = True

            def do_GET(self):
                proxy.answer(self)

            do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = do_GET

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.host = f"127.0.0.1:{self.port}"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(f"{tls}/server.crt", f"{tls}/server.key")
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def fault(self, pattern, times=1, method="GET", **what):
        """The next `times` requests whose path matches `pattern` end so."""
        with self.lock:
            self.rules.append([method, re.compile(pattern), times, Fault(**what)])

    def require_tokens(self, users=None):
        """From now on only bearers of tokens are answered; /token gives them, to `users` by password."""
        self.tokens = {"valid": set(), "users": users, "given": 0}

    def expire_tokens(self):
        self.tokens["valid"].clear()

    def requests(self, pattern, method="GET"):
        with self.lock:
            return [seen for seen in self.seen if seen.method == method and re.search(pattern, seen.path)]

    def forget(self):
        with self.lock:
            self.seen.clear()

    def close(self):
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()

    # ---- one request ---------------------------------------------------------------------------------------------

    def answer(self, handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        fault = self.fault_for(handler)
        self.arrived.append(handler.path)
        self.ended.wait(self.delay + fault.delay)
        if fault.reset:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return self.note(handler, 0, 0)
        if fault.status:
            return self.reply(handler, fault.status, fault.headers, fault.body, fault)
        if self.tokens is not None:
            if handler.path.startswith("/token"):
                return self.give_token(handler)
            if handler.headers.get("Authorization", "") not in self.tokens["valid"]:
                challenge = f'Bearer realm="http://{self.host}/token",service="test",scope="repository:x:pull"'
                return self.reply(handler, 401, {"WWW-Authenticate": challenge}, b"{}", fault)
        if self.upstream_port is None:
            return self.reply(handler, 404, {}, b"{}", fault)
        return self.forward(handler, body, fault)

    def fault_for(self, handler):
        with self.lock:
            for rule in self.rules:
                if rule[0] == handler.command and rule[1].search(handler.path) and rule[2] > 0:
                    rule[2] -= 1
                    return rule[3]
        return Fault()

    def give_token(self, handler):
        users = self.tokens["users"]
        if users is not None:
            given = handler.headers.get("Authorization", "").removeprefix("Basic ")
            name, _, password = base64.b64decode(given).decode().partition(":")
            if users.get(name) != password:
                return self.reply(handler, 401, {}, b"{}", Fault())
        self.tokens["given"] += 1
        token = f"token-{self.tokens['given']}"
        self.tokens["valid"].add(f"Bearer {token}")
        return self.reply(handler, 200, {}, json.dumps({"token": token}).encode(), Fault())

    def forward(self, handler, body, fault):
        headers = {name: ", ".join(handler.headers.get_all(name)) for name in handler.headers.keys()
                   if name.lower() != "connection"}
        if fault.drop_range:
            headers.pop("Range", None)
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream_port, timeout=60)
        try:
            upstream.request(handler.command, handler.path, body or None, headers)
            response = upstream.getresponse()
            kept = {name: value for name, value in response.getheaders() if name.lower() not in ORDINARY_HEADERS}
            data = response.read()
        finally:
            upstream.close()
        if fault.alter:
            data = fault.alter(data)
            kept["Content-Length"] = str(len(data))
        self.reply(handler, response.status, kept, data, fault)

    def reply(self, handler, status, headers, body, fault):
        headers = {name: value for name, value in headers.items() if name.lower() != "content-length"} | {
            "Content-Length": headers.get("Content-Length", str(len(body)))}
        headers |= fault.headers
        is_head = handler.command == "HEAD"
        if not is_head and fault.extra:
            headers["Content-Length"] = str(len(body) + len(fault.extra))
        body = b"" if is_head else self.changed(body, fault)
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        sent = self.send(handler, body, fault)
        self.note(handler, status, sent)

    @staticmethod
    def changed(body, fault):
        if fault.change_at is not None and body:
            at = fault.change_at % len(body)
            body = body[:at] + bytes([body[at] ^ 0x40]) + body[at + 1:]
        return body + fault.extra

    def send(self, handler, body, fault):
        end = len(body) if fault.cut_after is None else min(len(body), fault.cut_after)
        sent = 0
        while sent < end and not self.ended.is_set():
            stop = end if fault.stall_after is None or sent >= fault.stall_after else fault.stall_after
            piece = body[sent:min(stop, sent + PIECE)]
            try:
                handler.wfile.write(piece)
            except OSError:
                handler.close_connection = True
                break
            sent += len(piece)
            if fault.stall_after is not None and sent >= fault.stall_after:
                self.ended.wait(60)
                handler.close_connection = True
                break
            if self.bytes_per_second:
                self.ended.wait(len(piece) / self.bytes_per_second)
        if sent < len(body):
            handler.close_connection = True
        return sent

    def note(self, handler, status, sent):
        with self.lock:
            self.seen.append(Seen(handler.command, handler.path, dict(handler.headers.items()), status, sent))


def environment_with(folder, **variables):
    """For a daemon: no configuration of this machine or user counts."""
    folder = pathlib.Path(folder)
    (folder / "home").mkdir(exist_ok=True)
    (folder / "runtime").mkdir(exist_ok=True)
    conf = folder / "registries.conf"
    if not conf.exists():
        conf.write_text("")
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return {**kept, "HOME": str(folder / "home"), "XDG_RUNTIME_DIR": str(folder / "runtime"),
            "CONTAINERS_REGISTRIES_CONF": str(conf), "LAMINA_COMPLETE": "off", **variables}
