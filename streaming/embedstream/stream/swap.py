"""Give a running stream other models, at the boundary of two micro-batches.

A thread takes requests and prepares: it checks the new models as a start does and loads them in
the workers, while the old ones go on working. The driver's main thread switches: it lets the
micro-batch in flight finish, records the new models in the table, and starts their query from the
same checkpoint. Each micro-batch is made by one set of models, which its rows name, and Delta skips
a repeated one; so no row is lost or doubled wherever the driver is killed. If anything fails before
the first micro-batch of the new models is committed, the old ones go on.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from embedstream.config.sections import StreamConfig
from embedstream.logs.events import Event, log_event
from embedstream.recovery.claim import ClaimLost, HeldClaim
from embedstream.recovery.swap_files import Phase, Swap, SwapFiles, SwapRequest, find_differences
from embedstream.spark.errors import describe_error
from embedstream.stream.job import (
    Stream,
    Until,
    list_ids,
    record_models,
    start_query,
    stop_stream,
)
from embedstream.stream.pause import list_work, measure_pause
from embedstream.stream.service import Service, prepare_service
from embedstream.stream.swap_record import RecordClosed, SwapRecord
from embedstream.table.address import TableAddress
from embedstream.table.delta import set_models
from embedstream_core.errors import EmbedstreamError, SetupError, explain

__all__ = ["SwapDesk"]

_log = logging.getLogger(__name__)

_POLL_S = 1.0
_PAUSE_S = 10.0
_STORAGE_ERRORS = (SetupError, Py4JJavaError, OSError)


@dataclass(slots=True)
class _Switch:
    """A switch whose models have committed no micro-batch yet.

    `before` is the progress of the old models' query, which was asked to stop at `asked_at`. An
    earlier driver's has no `previous` models. `seen` is the time of the new query's last progress.
    """

    id: str
    previous: Service | None = None
    before: list[Any] = field(default_factory=list)
    asked_at: float = 0.0
    seen: str = ""
    is_announced: bool = False


class SwapDesk:
    """Runs the query of the present models, and that of others when they are asked for.

    `prepared` are the next ones, once they are ready. A thread takes requests within a `with`
    block; every method is for the main thread.
    """

    def __init__(
        self,
        spark: SparkSession,
        service: Service,
        *,
        claim: HeldClaim,
        given: StreamConfig,
        reread: Callable[[], StreamConfig],
        reload: threading.Event,
        until: Until,
    ) -> None:
        """Read the record of an earlier driver; start nothing yet.

        Args:
            spark: The stream's session.
            service: What is to run at first.
            claim: The stream's own.
            given: The configuration as the user gave it; all but its encoders must stay.
            reread: Returns the configuration as its file is now; used when `reload` is set.
            reload: Set by a signal.
            until: As in `start_query`.

        Raises:
            SetupError: the record cannot be read.
        """
        self.service = service
        self.prepared: Service | None = None
        self._spark = spark
        self._claim = claim
        self._given = given
        self._reread = reread
        self._reload = reload
        self._until: Until = until
        self._files = SwapFiles.of(spark, given)
        self._record = SwapRecord(self._files, claim=claim)
        self._former_loads = 0
        self._switch: _Switch | None = None
        self._settled = threading.Event()
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        """Go on with the swap of an earlier driver, and begin to take requests."""
        if (swap := self._record.swap) is not None:
            if swap.phase == "preparing":
                line = "the driver ended before the new models were ready"
                self._record.advance("failed", line)
            if swap.is_open:
                self._switch = _Switch(swap.id)
        threading.Thread(target=self._serve, name="swap", daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Take no more requests; a swap that is still in preparation has failed."""
        self._record.close("the stream ended before the switch")
        self._closed.set()
        self._settled.set()

    @property
    def loads(self) -> int:
        """How often a worker loaded a model."""
        # Read once: other threads ask while the main thread switches.
        switch = self._switch
        previous = switch.previous if switch else None
        return self._former_loads + sum(one.loads for one in (previous, self.service) if one)

    @property
    def can_go_back(self) -> bool:
        """Whether the present models have committed no micro-batch since they replaced others."""
        return self._switch is not None and self._switch.previous is not None

    def start(self) -> Stream:
        """Record the present models in the table, and start their query."""
        record_models(self._spark, self.service.config, self.service.models)
        return self._start_query()

    def switch(self, stream: Stream) -> Stream:
        """Let the micro-batch in flight finish, and start the query of the prepared models.

        Returns the old models' query if the switch is not recorded, which is tried again, and the
        old models' query started again if the new one cannot be started.

        Raises:
            StreamingQueryException: the old query failed; `prepared` can still be switched to.
        """
        assert self.prepared is not None
        assert self._record.swap is not None
        if not self._record.swap.is_open:
            try:
                # From here on a start with either configuration goes on with the swap.
                self._record.advance(
                    "accepted", "switching when the micro-batch in flight is committed"
                )
            except _STORAGE_ERRORS:
                _log.warning("the swap is not recorded yet", exc_info=True)
                return stream
        old, asked_at = self.service, time.time()
        stop_stream(stream.query, timeout_s=old.config.trigger.stop_timeout_s)
        before = list_work(stream.query.recentProgress)
        self._switch = _Switch(self._record.swap.id, old, before, asked_at)
        self.service, self.prepared = self.prepared, None
        ids = list_ids(self.service.models)
        try:
            if ids != list_ids(old.models):
                set_models(self._spark, TableAddress.of(self.service.config.table), ids)
            return self._start_query()
        except (PySparkException, Py4JJavaError) as error:
            return self.go_back(error)

    def go_back(self, error: Exception) -> Stream:
        """Start the old models' query again, because the new one failed with an error."""
        switch, self._switch = self._switch, None
        assert switch is not None
        assert switch.previous is not None
        self._former_loads += self.service.loads
        self.service = switch.previous
        stream = self.start()
        line = f"the new models failed, and the old ones go on: {_describe(error)}"
        try:
            self._settle(switch, "failed", line)
        except _STORAGE_ERRORS:
            _log.warning("the end of a swap is not recorded", exc_info=True)
            self._settled.set()
        return stream

    def watch(self, query: StreamingQuery) -> None:
        """Record the first micro-batch that is committed after a switch."""
        switch = self._switch
        if switch is None or (last := query.lastProgress) is None:
            return
        if switch.seen == last.timestamp:
            return
        switch.seen = last.timestamp
        progress = query.recentProgress
        work = list_work(progress)
        try:
            if switch.previous is None:
                if work:
                    self._settle(switch, *self._describe_resumed())
            elif work:
                pause = measure_pause(switch.before, work[0], asked_at=switch.asked_at)
                self._settle(switch, "done", str(pause))
            elif not switch.is_announced:
                pause = measure_pause(switch.before, progress[0], asked_at=switch.asked_at)
                ready = f"the new models were ready after {pause.seconds:.1f} s"
                self._settle(switch, "switched", f"{ready}; no message was waiting")
                switch.is_announced = True
        except _STORAGE_ERRORS:
            _log.warning("the end of a swap is not recorded yet", exc_info=True)
            switch.seen = ""
            return
        if work:
            # The former models are dropped here, with their broadcasts.
            self._former_loads += switch.previous.loads if switch.previous else 0
            self._switch = None

    def _start_query(self) -> Stream:
        config, function = self.service.config, self.service.function
        return start_query(self._spark, config, function, until=self._until)

    def _serve(self) -> None:
        while not self._closed.is_set():
            is_signal = self._reload.wait(_POLL_S)
            if self._closed.is_set():
                return
            try:
                if is_signal:
                    self._reload.clear()
                    self._take_signal()
                else:
                    self._take_request()
            except (RecordClosed, ClaimLost):
                return
            except Exception:
                # A session that ends raises anything.
                if self._closed.is_set():
                    return
                # Storage may be unreachable for a while.
                _log.warning("a request for other models was not taken", exc_info=True)
                self._closed.wait(_PAUSE_S)

    def _take_signal(self) -> None:
        try:
            config = self._reread()
        except SetupError as error:
            text = f"swap: refused, and the old models go on: {error}"
            log_event(_log, Event.SWAP, text, level=logging.WARNING, phase="failed")
            return
        self._answer(SwapRequest.of(config, id=uuid.uuid4().hex, driver=self._claim.claim.id))

    def _take_request(self) -> None:
        try:
            request = self._files.read_request()
        except SetupError:
            self._files.delete_request()
            raise
        if request is None:
            return
        if request.driver != self._claim.claim.id:
            # Its driver has ended, and the command has said so.
            self._files.delete_request()
            return
        self._answer(request)

    def _answer(self, request: SwapRequest) -> None:
        """Prepare the models of a request, and wait until the main thread has switched to them."""
        old = self.service.config.all_encoders
        self._settled.clear()
        self._record.begin(Swap(request.id, request.driver, old, request.encoders))
        self._files.delete_request()
        try:
            prepared = self._prepare(request)
        except (RecordClosed, ClaimLost):
            raise
        except Exception as error:
            # A user's own encoder may raise anything.
            is_explained = isinstance(error, EmbedstreamError)
            if not is_explained:
                _log.warning("the new models were refused", exc_info=True)
            self._record.advance("failed", f"refused, and the old models go on: {_describe(error)}")
        else:
            if prepared is None:
                self._record.advance("done", "nothing to do: these models run already")
                return
            self.prepared = prepared
            self._settled.wait()

    def _prepare(self, request: SwapRequest) -> Service | None:
        """Return the models of a request, ready to run; None if they run already.

        Raises:
            SetupError: more than the encoders differs, or a model cannot be used.
        """
        if differences := find_differences(self._given, request.settings):
            raise SetupError(
                "a swap changes encoder and encoders only, and the running stream has another "
                f"{', '.join(differences)}; give the same settings, or restart the stream"
            )
        note = partial(self._record.advance, "preparing")
        return prepare_service(self._spark, self.service, request.encoders, note)

    def _describe_resumed(self) -> tuple[Phase, str]:
        """Return how a swap ended whose driver was killed."""
        swap = self._record.swap
        if swap is not None and self.service.config.all_encoders == swap.new:
            return "done", "the restarted driver works with the new models"
        return "failed", "the restarted driver works with other models"

    def _settle(self, switch: _Switch, phase: Phase, line: str) -> None:
        """Record how a switch went, unless another swap has begun, and let the thread go on."""
        swap = self._record.swap
        if swap is not None and swap.id == switch.id:
            self._record.advance(phase, line)
            self._settled.set()


def _describe(error: Exception) -> str:
    if isinstance(error, PySparkException | Py4JJavaError):
        return describe_error(error)
    return str(error) if isinstance(error, EmbedstreamError) else explain(error)
