"""A Hub on loopback, in memory: what huggingface_hub needs to make repositories, push and pull; faults to order."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LFS_SUFFIXES = (".safetensors", ".png", ".bin")


@dataclass
class Repository:
    private: bool = False
    files: dict = field(default_factory=dict)
    commits: list = field(default_factory=lambda: [hashlib.sha1(b"empty").hexdigest()])
    messages: list = field(default_factory=list)
    tags: dict = field(default_factory=dict)

    @property
    def sha(self):
        return self.commits[-1]

    def commit(self, message):
        content = repr((self.sha, sorted((path, hashlib.sha1(data).digest()) for path, data in self.files.items())))
        self.commits.append(hashlib.sha1(content.encode()).hexdigest())
        self.messages.append(message)


@dataclass
class Fault:
    """
    What shall happen to the next `times` requests of a method whose path fits the pattern: a status (int), "drop" (the
    connection breaks before anything is done), "lose answer" (after it), "truncate" or "flip" (the body of the answer
    is halved, or one of its bytes changed).
    """

    method: str
    pattern: str
    what: int | str
    times: int = 1
    headers: dict = field(default_factory=dict)


class HubStub(ThreadingHTTPServer):
    """Repositories by (type, id); `endpoint` is what HF_ENDPOINT shall be."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.blobs, self.faults, self.requests = {}, {}, [], []

    @property
    def files(self):
        """Of the only model."""
        (repository,) = (one for (kind, _), one in self.repositories.items() if kind == "model")
        return repository.files

    @contextmanager
    def serving(self):
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()

    def handle_error(self, *_):
        pass  # a client that hung up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_any(self):
        hub, self.fault = self.server, None
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0]
        hub.requests.append((self.command, path))
        for fault in hub.faults:
            if fault.times > 0 and fault.method == self.command and re.search(fault.pattern, path):
                fault.times -= 1
                self.fault = fault
                break
        if self.fault is not None and isinstance(self.fault.what, int):
            fault, self.fault = self.fault, None
            return self._answer({"error": "as ordered"}, fault.what, **fault.headers)
        if self.fault is not None and self.fault.what == "drop":
            return self._hang_up()
        return getattr(self, f"_{self.command.lower()}")(path)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _hang_up(self):
        self.close_connection = True
        self.connection.close()

    def _answer(self, value=b"", status=200, **headers):
        what = None if self.fault is None else self.fault.what
        if what == "lose answer":
            return self._hang_up()
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, content in headers.items():
            self.send_header(name.replace("_", "-"), content)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if what == "truncate":
            self.wfile.write(body[: len(body) // 2])
            return self._hang_up()
        if what == "flip":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.wfile.write(body)

    def _repository(self, kind, name):
        """The repository, or None after a 404 was answered."""
        repository = self.server.repositories.get((kind, name))
        if repository is None:
            self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return repository

    def _post(self, path):
        hub = self.server
        if path == "/api/repos/create":
            key, name = _named(json.loads(self.body))
            if key in hub.repositories:
                return self._answer({"error": "You already created this repo"}, 409)
            hub.repositories[key] = Repository(private=json.loads(self.body).get("visibility") == "private")
            return self._answer({"url": f"{hub.endpoint}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.endpoint}/blobs/{one['oid']}"}}}
                for one in json.loads(self.body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        found = re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)/(preupload|commit|tag)/([^/]+)", path)
        if not found:
            return self._answer({"error": f"the stub knows no POST {path}"}, 501)
        kind, name, action, revision = found.groups()
        repository = self._repository(kind, name)
        if repository is None:
            return None
        if action == "tag":
            tag = json.loads(self.body)["tag"]
            if tag in repository.tags:
                return self._answer({"error": "Tag exists"}, 409)
            repository.tags[tag] = revision
            return self._answer({})
        if action == "preupload":
            return self._answer({"files": [self._mode(repository, one) for one in json.loads(self.body)["files"]]})
        return self._commit(repository, name)

    def _mode(self, repository, one):
        path = one["path"]
        held = repository.files.get(path)
        oid = None if held is None else _oid(path, held)
        mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _commit(self, repository, name):
        """All or nothing, as on the Hub."""
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", repository.sha) != repository.sha:
            return self._answer({"error": "A commit has happened since"}, 412)
        files = dict(repository.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                if value["path"] not in files:
                    return self._answer({"error": "A file with this name doesn't exist"}, 404)
                del files[value["path"]]
        repository.files = files
        repository.commit(header["summary"])
        url = f"{self.server.endpoint}/{name}/commit/{repository.sha}"
        return self._answer({"commitUrl": url, "commitOid": repository.sha})

    def _put(self, _):
        self.server.blobs[hashlib.sha256(self.body).hexdigest()] = self.body
        self._answer()

    def _delete(self, path):
        key, _ = _named(json.loads(self.body))
        if path != "/api/repos/delete" or key not in self.server.repositories:
            return self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        del self.server.repositories[key]
        self._answer({})

    def _head(self, path):
        self._get(path)

    def _get(self, path):
        if found := re.fullmatch(r"/(spaces/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            repository = self._repository("space" if found[1] else "model", found[2])
            return repository and self._file(repository, found[3])
        if found := re.fullmatch(r"/api/(model|space)s/([^/]+/[^/]+)(/revision/[^/]+|/tree/[^/]+.*)?", path):
            repository = self._repository(found[1], found[2])
            if repository is None:
                return None
            if "/tree/" in (found[3] or ""):
                return self._answer([_entry(name, data) for name, data in sorted(repository.files.items())])
            siblings = [{"rfilename": name} for name in sorted(repository.files)]
            about = {"id": found[2], "sha": repository.sha, "private": repository.private, "tags": []}
            return self._answer({**about, "siblings": siblings})
        return self._answer({"error": f"the stub knows no GET {path}"}, 404, X_Error_Code="EntryNotFound")

    def _file(self, repository, name):
        if name not in repository.files:
            return self._answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=repository.sha)
        data = repository.files[name]
        headers = {"ETag": f'"{_oid(name, data)}"', "X_Repo_Commit": repository.sha}
        if name.endswith(LFS_SUFFIXES):
            headers |= {"X_Linked_Etag": headers["ETag"], "X_Linked_Size": str(len(data))}
        return self._answer(data, **headers)


def _named(request):
    """((type, id), id) of a request to make or delete a repository."""
    name = "/".join(filter(None, (request.get("organization"), request["name"])))
    return (request.get("type") or "model", name), name


def _oid(path, data):
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(name, data):
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry = {"type": "file", "path": name, "size": len(data), "oid": git}
    if name.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": _oid(name, data), "size": len(data), "pointerSize": 130}
    return entry
