"""For CMake: `python -m vcompress.export.edge` prints the package's folder; `prepare` is called by
`vcompress_add_model`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vcompress.bench.errors import UserError
from vcompress.bench.text import shown

from . import cmake_dir


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vcompress.export.edge", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    one = commands.add_parser("prepare", help="verify a bundle and write header and model")
    one.add_argument("bundle", type=Path)
    one.add_argument("--name", required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--embed", action="store_true")
    one.add_argument("--key", type=Path)
    asked = parser.parse_args()
    if asked.command is None:
        print(cmake_dir())
        return 0
    from .prepare import prepare

    try:
        sources = prepare(asked.bundle, asked.name, asked.out, embed=asked.embed, key=asked.key)
    except UserError as error:
        print(shown(str(error)), file=sys.stderr)
        return error.status
    for source in sources:
        print(source.as_posix())
    return 0


if __name__ == "__main__":
    sys.exit(main())
