"""Streams answers until its standard input ends, then prints when each of their tokens came: a process of its own."""

from __future__ import annotations

import json
import sys
import threading
import time
from itertools import pairwise

import httpx

BODY = {"model": "x", "prompt": "Count: ", "stream": True, "max_tokens": 1900, "temperature": 0, "ignore_eos": True}


def main() -> None:
    url, is_over, answers = sys.argv[1], threading.Event(), []
    threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
    with httpx.Client(timeout=60) as client:
        while not is_over.is_set():
            answers.append(times := [])
            with client.stream("POST", f"{url}/v1/completions", json=BODY) as response:
                for line in response.iter_lines():
                    if line.startswith("data: {"):
                        times.append(time.perf_counter())
                    if is_over.is_set():
                        break
    print(json.dumps([gap for times in answers for gap in pairwise(times)]))


if __name__ == "__main__":
    main()
