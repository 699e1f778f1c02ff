"""The page: the numbers are there, names cannot break out, and nothing is fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from vcompress.bench.bundle.history import read as entries
from vcompress.bench.errors import UserError
from vcompress.compress.reporting.page import render, scatter_figures, summary, write_report

DATA = {
    "source": "digits", "root": None, "seed": 0, "fingerprint": "f",
    "splits": {"train": 1259, "val": 179, "test": 359},
}  # fmt: skip
HOSTILE = '<script>alert("x")</script>&<img src=x onerror=y>'


def entry(stage: str, top1: float | None, ms: float, size: int, **more: Any) -> dict[str, Any]:
    test = top1 and {
        "top1": top1, "interval": [top1 - 0.02, top1 + 0.01], "n": 359, "correct": round(359 * top1)
    }  # fmt: skip
    return {
        "stage": stage, "model": "resnet50", "seconds": 12.3, "config": {"lr": 0.001},
        "metrics": {
            "test": test, "parameters": 23_500_000, "macs": 83_900_000, "onnx_bytes": size,
            "latency": {
                "median_ms": ms, "low_ms": ms * 0.9, "high_ms": ms * 1.2, "batch": 1, "threads": 1,
                "steady": True, "provider": "CPUExecutionProvider", "cpu": "a processor",
            },
            "parity": {"ok": True},
        },
        **more,
    }  # fmt: skip


FOUR = [
    entry("finetune", 0.99, 12.0, 94_000_000), entry("distill", 0.985, 3.0, 45_000_000),
    entry("prune", 0.98, 1.0, 12_000_000), entry("quantize", 0.975, 0.4, 3_000_000),
]  # fmt: skip


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def page_of(history: Sequence[dict[str, Any]], data: Any = DATA, comparison: Any = None) -> str:
    return render(entries(history), data, comparison)


def test_the_page_of_a_stored_history_has_not_changed_by_a_byte() -> None:
    """Three stages, their data and their side-by-side measurement, as bundles of schema 1 before
    `Entry` hold them, and the page that was drawn of them then; since then it also says what
    pruning was asked and what it reached."""
    stored = json.loads(Path(__file__).with_name("page_of_three_stages.json").read_text())
    expected = Path(__file__).with_name("page_of_three_stages.html").read_text(encoding="utf-8")
    assert page_of(stored["history"], stored["data"], stored["comparison"]) == expected


def test_the_numbers_of_every_stage_are_on_the_page() -> None:
    reader = read(page_of(FOUR))
    for text in (
        "finetune resnet50 → distill → prune → quantize",
        "30.0 times lower median latency and 31.3 times smaller than stage 1, with -1.50 points",
        "99.00 %", "97.50 %", "95.5 to 98.5 % (350/359)", "23.50 M", "83.9 M", "94.00 MB",
        "31.3× smaller", "0.4 ms", "0.36 to 0.48", "30.0×", "359 images of digits",
        "CPUExecutionProvider", "a processor", "1 thread",
    ):  # fmt: skip
        assert text in reader.text, text
    assert reader.tags.count("circle") == 8  # four stages in two pictures
    assert reader.tags.count("details") == 4


def test_points_lie_inside_the_picture_and_in_order() -> None:
    page = page_of(FOUR)
    circles = re.findall(r'<circle class="[^"]*" cx="([\d.]+)" cy="([\d.]+)"', page)
    xs = [float(x) for x, _ in circles[:4]]
    ys = [float(y) for _, y in circles[:4]]
    assert xs == sorted(xs, reverse=True)  # each stage is faster: further left
    assert ys == sorted(ys)  # and a little less accurate: further down
    assert all(58 <= x <= 444 for x in xs) and all(18 <= y <= 274 for y in ys)


def test_nothing_is_fetched_and_nothing_runs() -> None:
    page = page_of(FOUR, DATA, {"ratio": 0.033, "ratio_low": 0.03, "ratio_high": 0.036,
                               "verdict": "faster"})  # fmt: skip
    reader = read(page)
    assert "http" not in page.replace('http-equiv="', "")
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
    assert not [
        name for name, _ in reader.attributes if name in ("src", "href") or name[:2] == "on"
    ]
    assert "url(" not in page and "@import" not in page


def test_hostile_names_and_labels_are_shown_and_not_run() -> None:
    odd = entry(HOSTILE, 0.9, 1.0, 1000, config={HOSTILE: [HOSTILE]}, details={"labels": HOSTILE})
    odd["model"] = HOSTILE
    odd["metrics"]["latency"]["provider"] = odd["metrics"]["latency"]["cpu"] = HOSTILE
    comparison = {"ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.6, "verdict": HOSTILE}
    page = page_of([odd, odd], {**DATA, "source": HOSTILE}, comparison)
    reader = read(page)
    assert not {"script", "img"} & set(reader.tags)
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;") >= 8


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to all values and tables inside `value`."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in inside:
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from leaves(inner, (*path, key))


def test_no_value_of_a_history_reaches_the_page_as_html() -> None:
    """Each value and each key in turn is replaced by a script: it is refused, or shown escaped."""
    whole = entry("quantize", 0.9, 1.0, 1000)
    whole["metrics"]["robustness"] = {
        "n": 10, "clean": 0.9, "pgd": 0.1, "epsilon": 0.03, "steps": 3, "mean_corrupted": 0.5,
        "corruptions": {"jpeg": [0.1] * 5},
    }  # fmt: skip
    whole["metrics"]["export"] = {
        "integers": {"meant": 2, "integer": 1, "float_layers": {"a": "b"}}
    }
    whole["details"] = {
        "asked": {"macs": 0.5}, "achieved": {"macs": 0.5},
        "verdict": {
            "word": "quantise", "reason": "r", "target": "t", "cpu": "c", "faster": 1.0,
            "faster_low": 1.0, "faster_high": 1.1, "lost_points": 0.1, "max_drop": 0.5,
            "not_tried": {"bf16": "why"},
            "candidates": [
                {"precision": "fp32", "metric": "top1", "value": 0.9, "images": 4,
                 "median_ms": 1.0, "size_bytes": 1_000_000},
                {"precision": "int8", "top1": 0.9, "correct": 3, "images": 4,
                 "median_ms": 1.0, "size_bytes": 1_000_000},
            ],
        },
    }  # fmt: skip
    script, drawn, refused = "<script>x</script>", 0, 0
    assert "<h2>Verdict</h2>" in page_of([whole]) and "<h2>Robustness</h2>" in page_of([whole])
    for way in list(leaves(whole)):
        for key in (False, True):
            changed = deepcopy(whole)
            place: Any = changed
            for step in way[:-1]:
                place = place[step]
            if key and isinstance(place, dict):
                place[script] = place.pop(way[-1])
            else:
                place[way[-1]] = script
            try:
                page = page_of([changed])
            except UserError:
                refused += 1
                continue
            drawn += 1
            assert "<script" not in page, way
    assert drawn > 40 and refused > 40


def test_a_browser_runs_and_fetches_nothing_in_the_page() -> None:
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = page_of(FOUR).partition("<title>")[0]
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in head


def test_one_stage_stands_alone() -> None:
    reader = read(page_of(FOUR[:1]))
    assert "resnet50, one stage so far: finetune." in reader.text
    assert reader.tags.count("circle") == 2


def test_without_data_there_is_no_picture_and_it_says_so() -> None:
    bare = entry("import", None, 2.0, 5_000_000)
    reader = read(page_of([bare], None))
    assert "No data were given, so there is no accuracy to draw." in reader.text
    assert "not measured" in reader.text
    assert "svg" not in reader.tags
    assert "points of top-1" not in summary(entries([bare, bare]))


def test_stages_without_numbers_are_left_out() -> None:
    reader = read(page_of([{"stage": "odd", "model": "m"}, *FOUR[:2]]))
    assert reader.tags.count("details") == 2


@pytest.mark.parametrize("top1", [0.0, 0.001, 0.5, 1.0])
@pytest.mark.parametrize("ms", [1e-3, 0.7, 6.9, 4000.0])
def test_any_accuracy_and_latency_can_be_drawn(top1: float, ms: float) -> None:
    odd = entry("finetune", 0.5, ms, int(ms * 1e5) + 1)
    odd["metrics"]["test"] |= {"top1": top1, "interval": [max(0, top1 - 0.1), min(1, top1 + 0.1)]}
    page = page_of([odd, odd])
    assert "nan" not in page and "inf" not in page.replace("info", "")
    numbers = [float(n) for n in re.findall(r' c[xy]="(-?[\d.]+)"', page)]
    assert len(numbers) == 8 and all(0 <= n <= 460 for n in numbers)


def test_the_side_by_side_measurement_is_what_the_page_says() -> None:
    comparison = {"ratio": 0.04, "ratio_low": 0.035, "ratio_high": 0.05, "verdict": "faster"}
    reader = read(page_of(FOUR, DATA, comparison))
    assert "25.0 times lower median latency" in reader.text
    assert "25.0 times faster than stage 1 (95 % interval 20.0 to 28.6): faster" in reader.text


def test_the_page_is_written_as_utf8(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", entries(FOUR), DATA)
    text = (tmp_path / "r.html").read_bytes().decode("utf-8")
    assert text.startswith("<!doctype html>") and "→" in text


def test_a_slower_and_larger_end_is_not_called_faster_and_smaller() -> None:
    first, last = entry("finetune", 0.9, 1.0, 1000), entry("quantize", 0.9, 1.0, 1000)
    last["metrics"]["latency"]["median_ms"] = 2 * first["metrics"]["latency"]["median_ms"]
    last["metrics"]["onnx_bytes"] = 4 * first["metrics"]["onnx_bytes"]
    text = summary(entries([first, last]))
    assert "2.0 times higher median latency and 4.0 times larger than stage 1" in text


def scored(stage: str, metric: str, value: float, low: float, high: float) -> dict[str, Any]:
    made = entry(stage, None, 2.0, 1_000_000)
    made["metrics"]["test"] = {"metric": metric, "value": value, "interval": [low, high], "n": 50}
    return made


def test_a_number_with_no_unit_is_shown_as_it_is_and_less_of_an_error_is_better() -> None:
    history = [scored("finetune", "mae", 0.125, 0.1, 0.15), scored("prune", "mae", 0.5, 0.4, 0.6)]
    page = page_of(history)
    text = read(page).text
    assert "larger" not in text and "with +0.375 of MAE." in text
    assert "<th>MAE</th>" in page and "top-1" not in page and "%</text>" not in page
    assert ">MAE</text>" in page and "Down and left is better" in page
    assert "<td>0.125<small>0.1 to 0.15 (50 images)</small></td>" in page
    assert "MAE: the held-out 359 images of digits in the same runtime and file; 95 % inter" in text
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', page)[:2]]
    assert heights[0] > heights[1]  # the smaller error lies lower
    ticks = re.findall(r'text-anchor="end">([\d.]+)</text>', page)
    assert ticks == 2 * ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]


def test_a_share_of_another_task_is_in_per_cent_under_its_own_name() -> None:
    page = page_of(
        [scored("finetune", "mAP", 0.5, 0.4, 0.6), scored("prune", "mAP", 0.4, 0.3, 0.5)]
    )
    assert "with -10.00 points of mAP." in page and "<th>mAP</th>" in page
    assert "mAP, %</text>" in page and "40.00 %<small>30.0 to 50.0 % (50 images)" in page


def test_stages_of_two_metrics_are_not_compared() -> None:
    history = [entry("finetune", 0.9, 1.0, 2000), scored("finetune", "mAP", 0.5, 0.4, 0.6)]
    page = page_of(history)
    assert "<th>score</th>" in page and "points of" not in page
    assert all(figure.count("<circle") == 1 for figure in scatter_figures(entries(history)))


@pytest.mark.parametrize("value", [-1e300, 0.0, 1e-12, 101.0, 1e300])
@pytest.mark.parametrize("metric", ["top1", "mae", "new"])
def test_a_score_beyond_all_measure_is_drawn_without_an_error(metric: str, value: float) -> None:
    page = page_of([scored("finetune", metric, value, value, value)])
    assert page.count("<circle") == 2 and len(page) < 20_000


def test_latencies_of_two_runtimes_are_told_apart() -> None:
    first, last = entry("finetune", 0.99, 12.0, 94_000_000), entry("quantize", 0.98, 3.0, 3_000_000)
    last["metrics"]["latency"] |= {"runtime": "openvino", "ships_in": "openvino", "provider": "CPU"}
    text = read(page_of([first, last])).text
    assert "3 ms2.7 to 3.6, in OpenVINO" in text
    assert "4.0×OpenVINO against ONNX Runtime" in text
    assert "1 thread, OpenVINO (CPU), a processor." in text
    assert summary(entries([first, last])).startswith(
        "4.0 times lower median latency (OpenVINO against ONNX Runtime) and 31.3 times smaller"
    )
    beside = {
        "ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.6, "verdict": "FASTER",
        "runtime": "openvino",
    }  # fmt: skip
    assert summary(entries([first, last]), beside).startswith(
        "2.0 times lower median latency and 31.3"
    )
    assert "in one process in OpenVINO, the last stage is 2.0 times" in page_of(
        [first, last], DATA, beside
    )


def test_a_latency_that_is_not_of_the_target_says_so() -> None:
    first, last = entry("finetune", 0.99, 12.0, 94_000_000), entry("quantize", 0.98, 3.0, 3_000_000)
    last["metrics"]["latency"] |= {"runtime": "onnxruntime", "ships_in": "tensorrt"}
    text = read(page_of([first, last])).text
    assert "3 ms2.7 to 3.6, in ONNX Runtime, not in TensorRT" in text
    assert "The last network is quantised for TensorRT, and this is not its latency there." in text
