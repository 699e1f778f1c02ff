"""Print the README's table from a finished demo and draw its picture.

    python tests/benchmarks/readme_demo.py runs/demo docs/demo.svg

The numbers are those that the demo measured; nothing is measured here.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.history import measured
from vcompress.compress.reporting.page import scatter_figures, summary
from vcompress.compress.reporting.terminal import rows


def main() -> None:
    runs, picture = Path(sys.argv[1]), Path(sys.argv[2])
    bundles = [Bundle.open(path.parent) for path in runs.glob("*/manifest.json")]
    history = max((bundle.history for bundle in bundles), key=len)
    comparison = json.loads((runs / "side_by_side.json").read_text(encoding="utf-8"))

    print("| stage | network | top-1 (95 % interval) | parameters | MACs | file | median latency |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows(history):
        print(f"| {' | '.join(row)} |")
    (*_, (_, last)) = measured(history)
    assert last.latency is not None
    print(f"\n{summary(history, comparison)}")
    print(f"Machine: {last.latency.cpu}, {last.latency.threads} thread, {last.latency.provider}.")
    print(f"Training: {sum(entry.seconds or 0 for entry in history):.0f} s over all stages.")
    picture.write_text(_side_by_side(scatter_figures(history)), encoding="utf-8")


def _side_by_side(figures: list[str]) -> str:
    """The report's SVGs beside each other in one, with the page's style inside."""
    width, height = map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)"', figures[0])[0])
    style = (
        "text{font:12px system-ui,sans-serif;fill:#1c2430}.soft{fill:#5d6878}"
        ".grid{stroke:#dfe4ea}.whisker{stroke:#9db8e6;stroke-width:3}"
        ".way{stroke:#5d6878;stroke-dasharray:3 4;fill:none}.dot{fill:#1f6feb}.last{fill:#1a7f37}"
        ".number{fill:#fff;font-weight:600;text-anchor:middle}"
    )
    inner = "".join(
        f'<g transform="translate({number * width} 0)">{re.sub("</?svg[^>]*>", "", figure)}</g>'
        for number, figure in enumerate(figures)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * len(figures)} {height}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{inner}</svg>\n'
    )


if __name__ == "__main__":
    main()
