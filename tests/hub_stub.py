"""A Hub for one model repository on loopback: what huggingface_hub needs to push and to pull, in memory."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubStub(ThreadingHTTPServer):
    """Files of the last commit by path; `endpoint` is what HF_ENDPOINT shall be."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.files, self.blobs, self.lfs_paths = {}, {}, set()
        self.created = False

    @property
    def sha(self):
        return hashlib.sha1(repr(sorted((path, len(data)) for path, data in self.files.items())).encode()).hexdigest()

    @contextmanager
    def serving(self):
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, value=b"", status=200, **headers):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, content in headers.items():
            self.send_header(name.replace("_", "-"), content)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        hub, body = self.server, self._body()
        if self.path == "/api/repos/create":
            hub.created = True
            request = json.loads(body)
            name = "/".join(filter(None, (request.get("organization"), request["name"])))
            return self._answer({"url": f"{hub.endpoint}/{name}", "name": name, "id": name})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for path in (file["path"] for file in json.loads(body)["files"])
            ]
            return self._answer({"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.endpoint}/blobs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.blobs[value["oid"]]
                    hub.lfs_paths.add(value["path"])
            return self._answer({"commitUrl": f"{hub.endpoint}/someone/ecg/commit/{hub.sha}", "commitOid": hub.sha})
        return self._answer({"error": f"the stub knows no POST {self.path}"}, 501)

    def do_PUT(self):
        data = self._body()
        self.server.blobs[hashlib.sha256(data).hexdigest()] = data
        self._answer()

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub, path = self.server, self.path.split("?")[0]
        if found := re.fullmatch(r"/[^/]+/[^/]+/resolve/[^/]+/(.+)", path):
            return self._file(found[1])
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/tree/[^/]+(/.*)?", path):
            return self._answer([self._entry(name) for name in sorted(hub.files)])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
            siblings = [{"rfilename": name} for name in sorted(hub.files)]
            return self._answer({"id": found[1], "sha": hub.sha, "siblings": siblings, "private": False, "tags": []})
        return self._answer({"error": f"the stub knows no GET {path}"}, 404, X_Error_Code="EntryNotFound")

    def _entry(self, name):
        data = self.server.files[name]
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _file(self, name):
        hub = self.server
        if name not in hub.files:
            return self._answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=hub.sha)
        data = hub.files[name]
        etag = hashlib.sha256(data).hexdigest() if name in hub.lfs_paths else hashlib.sha1(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": hub.sha}
        if name in hub.lfs_paths:
            headers |= {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": str(len(data))}
        return self._answer(data, **headers)
