"""The one parser of limits: what it reads, prints back, decides and refuses."""

from __future__ import annotations

import math

import pytest

from vcompress.bench.errors import UserError
from vcompress.bench.gates.limits import Budget, parse, to_cut


@pytest.mark.parametrize(
    ("text", "expected", "printed"),
    [
        ("macs<=0.5", Budget("macs", 0.5, relative=True), "macs<=0.5"),
        ("macs<=2e6", Budget("macs", 2e6), "macs<=2000000"),
        ("params <= 30%", Budget("params", 0.3, relative=True), "params<=0.3"),
        ("channels<=0.25", Budget("channels", 0.25, relative=True), "channels<=0.25"),
        ("latency_ms<=4", Budget("latency_ms", 4), "latency_ms<=4"),
        ("latency_ms<=0.5", Budget("latency_ms", 0.5), "latency_ms<=0.5"),
        ("latency<=0.5", Budget("latency_ms", 0.5, relative=True), "latency<=0.5"),
        ("latency_ms<=50%", Budget("latency_ms", 0.5, relative=True), "latency<=0.5"),
        (" size_mb<=3 ", Budget("size_mb", 3), "size_mb<=3"),
        ("memory_mb<=150.5", Budget("memory_mb", 150.5), "memory_mb<=150.5"),
        ("top1>=0.97", Budget("top1", 0.97, at_least=True), "top1>=0.97"),
        ("top1>=97%", Budget("top1", 0.97, at_least=True), "top1>=0.97"),
        ("negative_flips<=2%", Budget("negative_flips", 0.02), "negative_flips<=0.02"),
        ("slowdown<=1.05", Budget("slowdown", 1.05), "slowdown<=1.05"),
        ("speedup>=1.5", Budget("speedup", 1.5, at_least=True), "speedup>=1.5"),
    ],
)
def test_a_limit_is_read_and_printed_back(text: str, expected: Budget, printed: str) -> None:
    found = parse(text)
    assert found == expected
    assert found.text == printed
    assert parse(found.text) == found


@pytest.mark.parametrize("value", [1234567.0, 0.1 + 0.2, 1e-7, 12345.678])
def test_no_digit_is_lost_in_the_text(value: float) -> None:
    assert parse(Budget("latency_ms", value).text).value == value


def test_a_tasks_metric_is_known_by_its_name_and_its_direction() -> None:
    assert parse("f1_macro>=0.6") == Budget("f1_macro", 0.6, at_least=True)
    with pytest.raises(UserError, match="mae is better lower; write mae<=2"):
        parse("mae>=2")
    with pytest.raises(UserError, match="mAP is better higher; write mAP>=60%"):
        parse("mAP<=60%")
    assert parse("mae<=2") == Budget("mae", 2.0)
    assert parse("mAP>=60%") == Budget("mAP", 0.6, at_least=True)
    assert parse("mAP_drop<=0.01").kind == "mAP_drop"
    assert parse("mae_rise<=2.5").outcome(2.6, 2.7) == "fail"
    with pytest.raises(UserError, match="unknown kind 'wer'"):
        parse("wer<=2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"'': expected a kind, <= or >=, and a number: latency_ms<=4"),
        ("macs=0.5", r"'macs=0.5': expected a kind, <= or >="),
        ("macs<0.5", "expected a kind, <= or >="),
        ("macs<=half", "'half' is no number; write it as in latency_ms<=4"),
        ("latncy_ms<=4", "unknown kind 'latncy_ms'. Did you mean 'latency_ms'"),
        ("speed>=xyz", "'xyz' is no number"),
        ("macs>=0.5", "expected macs<=0.5, since macs is better lower"),
        ("top1<=0.97", "top1 is better higher; write top1>=0.97"),
        ("top1>=97", "top1>=97: expected a share from 0 to 1, such as 0.97"),
        ("macs<=1", "macs<=1: expected a share below 1, or a whole number above 1"),
        ("macs<=1.5", "expected a share below 1, or a whole number above 1"),
        ("macs<=0", "macs<=0: expected the share .* that remains, between 0 and 1"),
        ("macs<=-2", "macs<=-2: expected a number of 0 or more"),
        ("macs<=nan", "macs<=nan: expected a number of 0 or more"),
        ("latency_ms<=inf", "expected a number of 0 or more"),
        ("latency<=4", "between 0 and 1; for ms write latency_ms<=4"),
        ("params<=120%", "params<=1.2: expected the share .* between 0 and 1"),
        ("channels<=64", "channels<=64: expected the share"),
        ("negative_flips<=2", "expected a share from 0 to 1, such as 0.02"),
    ],
)
def test_a_limit_with_a_mistake_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("text", "low", "high", "outcome", "bound"),
    [
        ("latency_ms<=4", 3.0, 4.0, "pass", 4.0),
        ("latency_ms<=4", 3.9, 4.1, "inconclusive", 4.1),
        ("latency_ms<=4", 4.01, 4.1, "fail", 4.1),
        ("top1>=0.97", 0.97, 0.99, "pass", 0.97),
        ("top1>=0.97", 0.96, 0.99, "inconclusive", 0.96),
        ("top1>=0.97", 0.9, 0.96, "fail", 0.9),
    ],
)
def test_the_unfavourable_end_of_the_interval_decides(
    text: str, low: float, high: float, outcome: str, bound: float
) -> None:
    limit = parse(text)
    assert limit.outcome(low, high) == outcome
    assert limit.bound(low, high) == bound


def test_one_budget_to_cut_to_is_made_of_whatever_was_given() -> None:
    assert to_cut(macs=0.5, params=None) == parse("macs<=0.5")
    assert to_cut("size_mb<=3") == to_cut(Budget("size_mb", 3)) == parse("size_mb<=3")
    assert to_cut(latency=0.5) == parse("latency<=50%")
    assert to_cut(latency_ms=0.5) == parse("latency_ms<=0.5")
    assert to_cut(macs=None) is None


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, math.nan, math.inf])
def test_a_shorthand_for_a_share_takes_nothing_but_a_share(value: float) -> None:
    with pytest.raises(UserError, match=r"macs = .*: expected the share that remains"):
        to_cut(macs=value)


def test_two_budgets_and_a_result_are_no_budget_to_cut_to() -> None:
    with pytest.raises(UserError, match="exactly one of macs, params and budget; got macs, budget"):
        to_cut("params<=0.5", macs=0.5, params=None)
    with pytest.raises(UserError, match="top1 is a result that is measured afterwards"):
        to_cut("top1>=0.97")
    with pytest.raises(UserError, match="nothing would remain"):
        to_cut("latency_ms<=0")
