"""The command that gives a running stream other models."""

from __future__ import annotations

import time
import uuid

from pyspark.sql import SparkSession

from embedstream.cli import console
from embedstream.cli.log import show_log
from embedstream.config.sections import StreamConfig
from embedstream.recovery.claim import read_claim
from embedstream.recovery.swap_files import SwapFiles, SwapRequest
from embedstream.spark.session import open_session
from embedstream_core.errors import SetupError

__all__ = ["ask_driver", "request_swap"]

_POLL_S = 0.5
_BUSY = ("preparing", "accepted")


def request_swap(config: StreamConfig) -> bool:
    """Open a session, and ask the stream's driver for the encoders of a configuration.

    Returns and raises as `ask_driver`.
    """
    # Spark serves only to reach the checkpoint's file system here.
    options = {**config.spark.options, "spark.ui.enabled": "false"}
    here = config.spark.model_copy(update={"master": "local[1]", "options": options})
    session = open_session(here, config.pipeline, config.locations)
    with show_log(config.log), console.show_status("starting Spark") as status, session as spark:
        status.stop()
        return ask_driver(spark, config)


def ask_driver(spark: SparkSession, config: StreamConfig) -> bool:
    """Ask the stream's driver for the encoders of a configuration, and print its answer.

    Returns whether the new models run.

    Raises:
        SetupError: no driver runs with this checkpoint, or it is busy with another swap, or it
            ended before it answered.
    """
    claim = read_claim(spark, config)
    if claim is None:
        raise SetupError(
            f"no driver runs with the checkpoint '{config.checkpoint}'; start one with "
            "`embedstream run`, which takes the encoders of its configuration"
        )
    files = SwapFiles.of(spark, config)
    request = SwapRequest.of(config, id=uuid.uuid4().hex, driver=claim.id)
    _send(files, request)
    console.print_text(f"asked the driver: host {claim.host}, pid {claim.pid}")
    try:
        return _await_answer(spark, config, files, request)
    finally:
        # Nobody would see the answer to a request that was not taken.
        if (waiting := files.read_request()) is not None and waiting.id == request.id:
            files.delete_request()


def _send(files: SwapFiles, request: SwapRequest) -> None:
    swap = files.read_swap()
    if swap is not None and swap.driver == request.driver and swap.phase in _BUSY:
        raise SetupError(f"another swap runs, it is {swap.phase}; try again when it has ended")
    if files.create_request(request):
        return
    waiting = files.read_request()
    if waiting is not None and waiting.driver != request.driver:
        # It was meant for a driver that has ended.
        files.delete_request()
        if files.create_request(request):
            return
    raise SetupError("another swap was asked for a moment ago; try again when it has ended")


def _await_answer(
    spark: SparkSession, config: StreamConfig, files: SwapFiles, request: SwapRequest
) -> bool:
    """Print what the driver records of the swap until it has ended; return whether it succeeded."""
    printed = 0
    while True:
        # In the opposite order of the driver, which records a swap before it deletes the request.
        claim, waiting, swap = read_claim(spark, config), files.read_request(), files.read_swap()
        answer = swap.find_answer(request.id) if swap else None
        if answer is not None:
            for line in answer.lines[printed:]:
                console.print_text(line)
            printed = len(answer.lines)
            if answer.phase not in _BUSY:
                return answer.phase != "failed"
        if claim is None or claim.id != request.driver:
            if answer is not None and answer.phase == "accepted":
                raise SetupError(
                    "the driver ended in the middle of the swap; start it with this configuration, "
                    "or with its former one"
                )
            raise SetupError("the driver ended before it took the new models")
        if answer is None and (waiting is None or waiting.id != request.id):
            raise SetupError("other swaps followed at once; the driver's output has the answer")
        time.sleep(_POLL_S)
