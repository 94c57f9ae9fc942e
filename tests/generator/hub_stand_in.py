"""A stand-in of the Hub on loopback: as much of its HTTP API as pushing and loading take, with commits in memory.

Paths, methods and headers are those that the Hub's own client asks for; what it does not know is answered by 404.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_stand_in"


class Hub(ThreadingHTTPServer):
    """Repositories by kind and name, each a list of (commit, files)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repos: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Adds files as a new commit of a repository such as `models/owner/name`."""
        commits = self.repos.setdefault(repo, [])
        whole = {**(commits[-1][1] if commits else {}), **files}
        digest = hashlib.sha1(repr((len(commits), sorted(whole))).encode())
        for name in sorted(whole):
            digest.update(whole[name])
        commits.append((digest.hexdigest(), whole))
        return digest.hexdigest()

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repos.get(repo, [])
        if revision == "main" and commits:
            return commits[-1]
        return next((commit for commit in commits if commit[0] == revision), None)


@contextmanager
def hub() -> Iterator[Hub]:
    """A stand-in that answers until the block ends."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, found: object) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, content = found(path, body) or _error(404, "RepoNotFound", "no such thing in this stand-in")
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _get(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes] | None:
        if match := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            repo = f"{'datasets' if match[1] else 'models'}/{match[2]}"
            if repo not in self.server.repos:
                return None
            found = self.server.at(repo, match[3])
            if found is None:
                return _error(404, "RevisionNotFound", f"no revision {match[3]}")
            commit, files = found
            if match[4] not in files:
                return _error(404, "EntryNotFound", f"no file {match[4]}", {"X-Repo-Commit": commit})
            content = files[match[4]]
            etag = hashlib.sha1(content).hexdigest()
            return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "none"}, content
        if match := re.fullmatch(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(/revision/([^/]+))?", path):
            found = self.server.at(f"{match[1]}/{match[2]}", match[4] or "main")
            if found is None:
                return None
            commit, files = found
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            return _json(
                {"_id": "1", "id": match[2], "sha": commit, "siblings": siblings, "private": False, "tags": []}
            )
        if match := re.fullmatch(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)/tree/([^/]+)(/(.*))?", path):
            found = self.server.at(f"{match[1]}/{match[2]}", match[3])
            if found is None:
                return None
            below = f"{match[5]}/" if match[5] else ""
            inside = {name: content for name, content in found[1].items() if name.startswith(below)}
            if not inside:
                return _error(404, "EntryNotFound", f"nothing in {below}")
            deep = "recursive=true" in self.path.lower()
            folders = {below + name[len(below) :].partition("/")[0] for name in inside if "/" in name[len(below) :]}
            entries = [{"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in sorted(folders)]
            entries += [_entry(name, inside[name]) for name in sorted(inside) if deep or "/" not in name[len(below) :]]
            return _json(entries)
        return None

    def _post(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes] | None:
        if match := re.fullmatch(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)/paths-info/([^/]+)", path):
            found = self.server.at(f"{match[1]}/{match[2]}", match[3])
            asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
            return found and _json([_entry(name, found[1][name]) for name in asked if name in found[1]])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _error(401, "", "Invalid username or password.")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'somebody')}/{asked['name']}"
            if f"models/{name}" in self.server.repos:
                url = f"{self.server.address}/{name}"
                return _error(409, "", "You already created this model repo", url=url)
            self.server.commit(f"models/{name}", {".gitattributes": b""})
            self.server.private[name] = asked.get("visibility") == "private" or bool(asked.get("private"))
            return _json({"url": f"{self.server.address}/{name}"})
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/preupload/main", path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            return _json({"files": files, "commitOid": self.server.repos[f"models/{match[1]}"][-1][0]})
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/commit/main", path):
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            commit = self.server.commit(f"models/{match[1]}", files)
            url = f"{self.server.address}/{match[1]}/commit/{commit}"
            return _json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        return None


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _json(content: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _error(
    status: int, code: str, message: str, headers: dict[str, str] | None = None, **more: str
) -> tuple[int, dict[str, str], bytes]:
    told = {"X-Error-Code": code, "X-Error-Message": message} if code else {"X-Error-Message": message}
    return (
        status,
        {"Content-Type": "application/json", **told, **(headers or {})},
        json.dumps({"error": message} | more).encode(),
    )
