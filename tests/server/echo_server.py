"""Runs the server over the made-up model: ``python -m tests.server.echo_server '{"delay_s": 0.1, "serve_port": 0}'``.

Further keys: ``start_s`` is how long the engine takes to start, ``fail`` an error that it then meets.
"""

from __future__ import annotations

import json
import sys
import time

from sgl.engine.api import AsyncEngine
from sgl.engine.base.config import EngineConfig
from sgl.engine.base.errors import ModelError, SglError
from sgl.server.app import run_server
from tests.server.fake import make_config, make_engine


def main() -> None:
    options = json.loads(sys.argv[1])
    start_s, delay_s, fail = options.pop("start_s", 0), options.pop("delay_s", 0), options.pop("fail", "")

    def start(config: EngineConfig) -> AsyncEngine:
        time.sleep(start_s)
        if fail:
            raise ModelError(fail)
        return make_engine(config, delay_s)[0]

    try:
        run_server(
            make_config(**{"serve_port": 0, "observe_log_level": "info", **options}),
            ready=lambda url: print(f"ready at {url}", file=sys.stderr, flush=True),
            start=start,
        )
    except SglError as error:
        print(f"error: {error.message}", file=sys.stderr, flush=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
