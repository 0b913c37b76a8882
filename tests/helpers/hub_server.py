"""A local server with the hub's API for uploads."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading

TOKENS = {"writes": "write", "reads": "read", "fine": "fineGrained"}
USER, GROUP = "me", "team"


class Hub:
    """Repositories {name: {path: bytes}}, and the requests.

    large: file endings for large file storage
    failing: {part of a path: HTTP status of its requests}
    """

    def __init__(self):
        self.repositories = {}
        self.stored = {}  # {digest: bytes}
        self.commits = []  # [(repository, paths)]
        self.requests = []
        self.large = (".onnx",)
        self.failing = {}

    def answer(self, method, path, headers, body):
        """(status, headers, content) for a request."""
        path = path.partition("?")[0]
        address = f"http://{headers['host']}"
        self.requests.append(f"{method} {path}")
        for part, status in self.failing.items():
            if part in path:
                return status, {}, b"{}"
        token = headers.get("authorization", "").removeprefix("Bearer ")
        if path.startswith("/store/"):
            self.stored[path.rpartition("/")[2]] = body
            return 200, {}, b""
        if token not in TOKENS:
            return 401, {}, b'{"error": "Invalid credentials"}'
        if path == "/api/whoami-v2":
            role = {"role": TOKENS[token]}
            user = {"type": "user", "name": USER, "orgs": [{"name": GROUP}]}
            return 200, {}, json.dumps(user | {"auth": {"accessToken": role}}).encode()
        if path == "/api/validate-yaml":
            return 200, {}, b'{"errors": [], "warnings": []}'
        if path == "/api/repos/create":
            requests = json.loads(body)
            name = f"{requests.get('organization') or USER}/{requests['name']}"
            answer = json.dumps({"url": f"{address}/{name}"}).encode()
            if name in self.repositories:
                return 409, {}, answer
            self.repositories[name] = {".gitattributes": b""}
            return 200, {}, answer
        name = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        name = name.removesuffix(".git")
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "not found"}'
        files = self.repositories[name]
        if "/tree/" in path:
            entries = [self.entry(path, files[path]) for path in files]
            return 200, {}, json.dumps(entries).encode()
        if "/resolve/" in path:
            content = files[path.split("/", 5)[-1]]
            etag = hashlib.sha1(content).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": "0" * 40}, content
        if "/preupload/" in path:
            wanted = []
            for file in json.loads(body)["files"]:
                is_large = file["path"].endswith(self.large)
                mode = "lfs" if is_large else "regular"
                entry = {"path": file["path"], "uploadMode": mode}
                wanted.append(entry | {"shouldIgnore": False})
            return 200, {}, json.dumps({"files": wanted}).encode()
        if path.endswith("/info/lfs/objects/batch"):
            objects = []
            for entry in json.loads(body)["objects"]:
                href = f"{address}/store/{entry['oid']}"
                objects.append(entry | {"actions": {"upload": {"href": href}}})
            answer = {"transfer": "basic", "objects": objects}
            return 200, {}, json.dumps(answer).encode()
        if "/commit/" in path:
            new = {}
            for line in body.decode().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    new[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    new[value["path"]] = self.stored[value["oid"]]
            files |= new
            self.commits.append((name, sorted(new)))
            answer = {"commitUrl": f"{address}/{name}/commit/1", "commitOid": "1"}
            return 200, {}, json.dumps(answer).encode()
        return 200, {}, json.dumps({"id": name, "sha": "1"}).encode()

    def entry(self, path, content):
        return {"type": "file", "path": path, "size": len(content), "oid": "1"}


@contextlib.contextmanager
def serving():
    """Yield a Hub and the address where it answers."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_one(self):
            size = int(self.headers.get("content-length", 0))
            body = self.rfile.read(size)
            if "chunked" in self.headers.get("transfer-encoding", ""):
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            headers = {name.lower(): text for name, text in self.headers.items()}
            status, more, content = hub.answer(self.command, self.path, headers, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for header in more.items():
                self.send_header(*header)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = handle_one

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
