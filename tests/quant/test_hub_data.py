"""Text from a data set on the Hub, over a stand-in that answers on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NAME, FILE, COMMIT = "some/talks", "train.jsonl", "a" * 40
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {i} and {i + 1} together? Answer in a whole sentence."},
            {"role": "assistant", "content": f"Together they are {2 * i + 1}, as everybody knows."},
        ]
    }
    for i in range(120)
]
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()

READ = """
import json, sys
from sgl.engine.base import hub
from sgl.engine.base.errors import ConfigError
from sgl.quant.gate.data import Data, DataOptions
data = Data(DataOptions(calibration=sys.argv[1], num_calibration=40, num_gate=20), hub.demo_model())
try:
    kept, held = data.calibration(), data.held_out()
    print(json.dumps([kept.name, len(kept.ids), len(held.ids), len(set(kept.ids) & set(held.ids))]))
except ConfigError as error:
    print(error.message)
"""


class Hub(BaseHTTPRequestHandler):
    """What the libraries ask of huggingface.co for one data set of one file."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        entry = {"type": "file", "path": FILE, "size": len(CONTENT), "oid": "0" * 40}
        facts = {"id": NAME, "sha": COMMIT, "private": False, "siblings": [{"rfilename": FILE}], "tags": []}
        if path == f"/datasets/{NAME}/resolve/{COMMIT}/{FILE}":
            self._file()
        elif path.startswith(f"/api/datasets/{NAME}/tree/"):
            self._say(json.dumps([entry]).encode())
        elif path in (f"/api/datasets/{NAME}", f"/api/datasets/{NAME}/revision/{COMMIT}"):
            self._say(json.dumps(facts).encode())
        else:
            self._say(b"", 404, {"X-Error-Code": "EntryNotFound"})

    def _file(self) -> None:
        asked = self.headers.get("Range", "").removeprefix("bytes=").split("-")
        if len(asked) < 2:
            return self._say(CONTENT, more={"ETag": '"x"', "X-Repo-Commit": COMMIT})
        first, last = int(asked[0]), min(int(asked[1] or len(CONTENT)), len(CONTENT) - 1)
        place = {"Content-Range": f"bytes {first}-{last}/{len(CONTENT)}"}
        return self._say(CONTENT[first : last + 1], 206, place)

    def _say(self, content: bytes, code: int = 200, more: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def read(source: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the libraries read the environment when they are imported."""
    return subprocess.run(
        [sys.executable, "-c", READ, source],
        env={**os.environ, "HF_HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )


def test_rows_become_text_and_some_of_it_is_held_out(endpoint: str, tmp_path: Path) -> None:
    name, kept, held, shared = json.loads(read(NAME, tmp_path, HF_ENDPOINT=endpoint).stdout)
    assert (name, kept, shared) == ("talks", 40, 0)
    assert 10 <= held <= 20


@pytest.mark.parametrize(
    ("source", "environment", "words"),
    [
        ("nobody/nothing", {}, "no such file, and no data set that can be read (404 Client Error)"),
        (f"{NAME}:night", {}, "Bad split: night. Available splits: ['train']"),
        (NAME, {"HF_HUB_OFFLINE": "1"}, f"Couldn't reach '{NAME}' on the Hub"),
    ],
    ids=["unknown", "split", "offline"],
)
def test_what_cannot_be_read_is_one_sentence(
    source: str, environment: dict[str, str], words: str, endpoint: str, tmp_path: Path
) -> None:
    done = read(source, tmp_path, HF_ENDPOINT=endpoint, **environment)
    assert done.stdout.startswith(f"--calibration {source}: ") and words in done.stdout
    assert done.stdout.count("\n") == 1 and done.stderr == ""
