"""SGLang's command for MMLU on a server: ``sgl eval mmlu`` with its defaults; result.jsonl is written here."""

import argparse
import sys

from sgl.cli.main import program

parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
parser.add_argument("--host", default="http://127.0.0.1")
parser.add_argument("--port", default="30000")
where, rest = parser.parse_known_args()
scheme = "" if "://" in where.host else "http://"
url = f"{scheme}{where.host}:{where.port}"
sys.argv = ["sgl", "eval", "mmlu", "--url", url, "--result-file", "result.jsonl", *rest]
program()
