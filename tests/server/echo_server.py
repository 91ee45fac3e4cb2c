"""Runs the server over the made-up model: ``python -m tests.server.echo_server '{"delay_s": 0.1, "serve_port": 0}'``.

Further keys: the engine starts once there is a file ``start``, or meets the error ``fail``; while there is a file
``hold`` no answer gets more than its first token, and none does after the first ``most_answers``.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

from sgl.engine.api import AsyncEngine
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import ModelError, SglError
from sgl.server.app import run_server
from tests.server.fake import make_config, make_engine


def main() -> None:
    options = json.loads(sys.argv[1])
    start, hold, fail = Path(options.pop("start", "/")), options.pop("hold", ""), options.pop("fail", "")
    delay_s, most_answers = options.pop("delay_s", 0), options.pop("most_answers", math.inf)

    def begin(config: EngineConfig) -> AsyncEngine:
        while not start.exists():
            time.sleep(0.01)
        if fail:
            raise ModelError(fail)
        engine, client = make_engine(config, delay_s)
        client.limit = lambda: 1 if (hold and Path(hold).exists()) or client.num_finished >= most_answers else math.inf
        return engine

    try:
        run_server(
            make_config(**{"serve_port": 0, "observe_log_level": "info", **options}),
            ready=lambda url: print(f"ready at {url}", file=sys.stderr, flush=True),
            start=begin,
        )
    except SglError as error:
        print(f"error: {error.message}", file=sys.stderr, flush=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
