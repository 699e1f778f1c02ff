"""Traces in a process of its own, which can be stopped when it hangs."""

from __future__ import annotations

import json
import multiprocessing
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError

from .shadow import shadow
from .structure import Cut, Group, Structure
from .trace import trace

Tracer = Callable[[nn.Module, Tensor, tuple[str, ...]], Structure]


def trace_within(
    model: nn.Module,
    example: Tensor,
    protect: tuple[str, ...],
    limit_s: float,
    tracer: Tracer = trace,
) -> Structure:
    """`trace(model, example, protect)` in a child process that is ended after `limit_s`.

    The structure comes back as JSON. Where processes cannot be forked safely (not Linux) the
    trace runs here and has no limit. Raises UserError after the limit, or what the trace raises.
    """
    if not sys.platform.startswith("linux"):
        return tracer(model, example, protect)
    # The child must not touch a GPU that this process has opened.
    mirror = shadow(model, lambda tensor: tensor.cpu())
    image = example.detach().cpu()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(
        target=_work, args=(sender, tracer, mirror, image, protect), daemon=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads; the child has one
        child.start()
    sender.close()
    try:
        answer = json.loads(receiver.recv_bytes()) if receiver.poll(limit_s) else None
    except EOFError:
        answer = {"failed": "the process that traced the network ended without an answer"}
    finally:
        child.kill()
        child.join()
        receiver.close()
    if answer is None:
        raise UserError(
            f"Tracing the network took longer than {limit_s:.0f} s and was stopped. A smaller "
            "image, or wrapping the part that the trace hangs in, may help; please report it."
        )
    if "refused" in answer:
        raise UserError(answer["refused"])
    if "failed" in answer:
        raise RuntimeError(answer["failed"])
    return _from_json(answer)


def _work(
    sender: Connection, tracer: Tracer, mirror: nn.Module, image: Tensor, protect: tuple[str, ...]
) -> None:
    # A forked process has none of its parent's worker threads: one thread needs none.
    torch.set_num_threads(1)
    answer: dict[str, Any]
    try:
        answer = asdict(tracer(mirror, image, protect))
    except UserError as error:
        answer = {"refused": str(error)}
    except BaseException as error:
        import traceback

        answer = {"failed": f"{error!r}\n{traceback.format_exc()}"}
    sender.send_bytes(json.dumps(answer).encode())
    sender.close()


def _from_json(answer: dict[str, Any]) -> Structure:
    groups = []
    for item in answer["groups"]:
        cuts = tuple(
            Cut(**{**cut, "indices": tuple(cut["indices"]), "units": tuple(cut["units"])})
            for cut in item["cuts"]
        )
        groups.append(Group(**{**item, "cuts": cuts}))
    return Structure(tuple(groups), answer["left_alone"])
