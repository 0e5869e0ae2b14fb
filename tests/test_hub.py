"""Names on the Hub, by the real loading code, against a local stand-in of its interface."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tiny_run import make_backbone, run_values

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/tiny"

pytestmark = pytest.mark.slow


class Hub(ThreadingHTTPServer):
    """Serves one model repository as the Hub does: files with their hashes, and lists of them."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[str]()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        self.server.asked.append(path)
        if path.startswith(f"api/models/{NAME}"):
            files = sorted(it.name for it in self.server.folder.iterdir())
            sizes = {name: (self.server.folder / name).stat().st_size for name in files}
            tree = [{"type": "file", "path": n, "size": s, "oid": "0"} for n, s in sizes.items()]
            info = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
            self._send(json.dumps(tree if "/tree/" in path else info).encode(), with_body=with_body)
        elif path.startswith(f"{NAME}/resolve/"):
            file = self.server.folder / path.rpartition("/")[2]
            if file.is_file():
                self._send(file.read_bytes(), with_body=with_body)
            else:
                self._refuse("EntryNotFound")
        else:
            self._refuse("RepoNotFound")

    def _send(self, content: bytes, *, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    server = Hub(make_backbone(tmp_path / "on-the-hub"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def neutral(
    hub: Hub, folder: Path, *arguments: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    """The Hub's address is read when its client is imported: a process of its own."""
    command = [sys.executable, "-m", "neutral_residues.cli.app", *arguments]
    online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hf")}
    return subprocess.run(
        command,
        env=os.environ | online | settings,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def write(folder: Path, model: str, **changes: object) -> str:
    values = run_values(folder, steps=2) | {"model": model, "budget": 0.5} | changes
    (folder / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return "run.yaml"


def test_a_run_extends_a_model_by_its_name_and_finds_it_again(hub: Hub, tmp_path: Path) -> None:
    run = write(tmp_path, NAME, revision="main")
    trained = neutral(hub, tmp_path, "extend", run)
    assert trained.returncode == 0, trained.stderr
    assert f"{NAME}/resolve/{COMMIT}/model.safetensors" in hub.asked
    config = json.loads((tmp_path / "run/extension/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (NAME, "main")
    told = neutral(hub, tmp_path, "generate", "run", "le chat", "--max-new-tokens", "8")
    assert told.returncode == 0, told.stderr
    asked = len(hub.asked)  # what was fetched is enough without a network
    again = neutral(hub, tmp_path, "evaluate", "run", HF_HUB_OFFLINE="1")
    assert len(hub.asked) == asked
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("model", "changes"), [("someone/other", {}), (NAME, {"revision": "no-such"})]
)
def test_what_the_hub_has_not_is_one_line(
    hub: Hub, tmp_path: Path, model: str, changes: dict[str, str]
) -> None:
    if changes:
        hub.folder.rename(tmp_path / "moved")
        hub.folder.mkdir()
    failed = neutral(hub, tmp_path, "describe", write(tmp_path, model, **changes))
    assert failed.returncode == 2
    assert failed.stderr.count("error: ") == 1
    assert f"cannot load the model {model}" in " ".join(failed.stderr.split())
    assert "Traceback" not in failed.stderr
