"""The page's addresses. All of them only read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.monitor.page.feed import Feed
from embedstream.monitor.page.rendering import Fragments, build_environment, find_root
from embedstream.monitor.page.rows import PreviewCache, Reading, RecentRows, SharedRequests, ask
from embedstream.monitor.page.uploads import MAX_UPLOAD_MIB, read_form
from embedstream.monitor.status import StatusSource
from embedstream.monitor.viewer import Card, Found, Preview, Question, RowPosition, Viewer

__all__ = ["build_page"]

_T = TypeVar("_T")

# How long a page waits for the viewer, which answers most requests sooner. After that the page is
# sent with a placeholder.
_PATIENCE_S = 2.0
_SLOW = "The viewer of rows has not answered yet."

_ROW = "{topic:path}/{partition:int}/{offset:int}"
_MAX_PARTITION, _MAX_OFFSET = 2**31 - 1, 2**63 - 1

_NEIGHBOURS = 12


def build_page(
    source: StatusSource, viewer: Viewer, *, config: StreamConfig | BulkFilesConfig
) -> list[BaseRoute]:
    """Return the routes of the live page, to be served at the root.

    Every link is relative, so the page works below any prefix of a reverse proxy. Rows are read
    only while a browser shows them.
    """
    page = _Page(source, viewer, config)
    return [
        Route("/", page.show_stream, methods=["GET"]),
        Route("/events", page.send_events, methods=["GET"]),
        Route(f"/rows/{_ROW}", page.show_row, methods=["GET"]),
        Route(f"/fragments/neighbours/{_ROW}", page.show_neighbours, methods=["GET"]),
        Route(f"/preview/{_ROW}", page.send_preview, methods=["GET"]),
        Route("/search", page.show_search, methods=["GET"]),
        Route("/search", page.search_upload, methods=["POST"]),
        Mount("/static", StaticFiles(packages=[("embedstream.monitor.page", "static")])),
    ]


class _Page:
    """The endpoints, and what they share."""

    def __init__(
        self, source: StatusSource, viewer: Viewer, config: StreamConfig | BulkFilesConfig
    ) -> None:
        self._source = source
        self._viewer = viewer
        self._is_stream = isinstance(config, StreamConfig)
        self._table = config.table.path
        self._previews = PreviewCache(viewer)
        self._rows = RecentRows(viewer, self._previews)
        self._cards: SharedRequests[RowPosition, Reading[Card]] = SharedRequests()
        self._searches: SharedRequests[Question, Reading[Found]] = SharedRequests()
        self._environment = build_environment(self._previews.find)
        self._fragments = Fragments(self._environment, self._rows, can_replay=self._is_stream)
        self._feed = Feed(self._render_fragments)

    def _render_fragments(self) -> Mapping[str, str]:
        status = self._source.read_status()
        self._rows.refresh(status)
        return self._fragments.render(status)

    async def show_stream(self, request: Request) -> Response:
        """Show the stream: everything but single rows."""
        reading = self._rows.refresh(self._source.read_status())
        if reading is not None:
            await asyncio.wait([reading], timeout=_PATIENCE_S)
        return self._respond(request, "stream.html", fragments=self._render_fragments())

    async def send_events(self, request: Request) -> Response:
        """Send the fragments of the page as they change; 503 to more browsers than may listen."""
        if self._feed.is_full:
            raise HTTPException(503)

        async def encode() -> AsyncIterator[bytes]:
            async for event in self._feed.listen():
                yield event.encode("utf-8", "replace")

        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(encode(), media_type="text/event-stream", headers=headers)

    async def show_row(self, request: Request) -> Response:
        """Show a row and its nearest neighbours."""
        position = _read_position(request)
        card, preview, found = await asyncio.gather(
            _wait(self._cards.ask(position, lambda: ask(self._viewer.find_card(position)))),
            _wait(self._find_preview(position)),
            _wait(self._find_neighbours(request)),
        )
        if card.value is None:
            code = 503 if card.note == _SLOW else 404
            return self._respond(request, "message.html", code=code, note=card.note)
        return self._respond(
            request,
            "row.html",
            card=card.value,
            preview=preview.value or Preview("none", note=preview.note),
            found=found,
            is_slow=found.note == _SLOW,
        )

    async def show_neighbours(self, request: Request) -> Response:
        """Show the neighbours of a row alone, however long the search takes."""
        found = await self._find_neighbours(request)
        # Its links are read on the row's page, which is three steps below the root.
        root = "../../../"
        return self._respond(request, "neighbours.html", found=found, is_slow=False, root=root)

    async def send_preview(self, request: Request) -> Response:
        """Send the preview of a row, which the viewer has encoded."""
        preview = await self._previews.get(_read_position(request))
        headers = {"Cache-Control": "private, max-age=600", "X-Content-Type-Options": "nosniff"}
        if preview.kind in ("image", "audio"):
            return Response(preview.content, media_type=preview.media_type, headers=headers)
        status, text = (200, preview.text) if preview.kind == "text" else (404, preview.note)
        headers["Cache-Control"] = "no-store"
        content = text.encode("utf-8", "replace")
        return Response(content, status, headers, media_type="text/plain; charset=utf-8")

    async def show_search(self, request: Request) -> Response:
        """Show the forms of a search, and what was found for words."""
        words = request.query_params.get("words", "").strip()
        if not words:
            return self._respond_search(request, {}, None)
        fields = dict(request.query_params)
        question = _build_question(fields, words=words)
        found = await self._searches.ask(question, lambda: ask(self._viewer.search(question)))
        return self._respond_search(request, fields, found)

    async def search_upload(self, request: Request) -> Response:
        """Show what was found for an uploaded picture, clip or text."""
        try:
            form = await read_form(request)
        except HTTPException as error:
            return self._respond_search(
                request, {}, Reading(note=error.detail), code=error.status_code
            )
        upload = form.get("upload")
        content = await upload.read() if isinstance(upload, UploadFile) else b""
        fields = {key: value for key, value in form.items() if isinstance(value, str)}
        if isinstance(upload, UploadFile):
            fields["upload"] = upload.filename or ""
        await form.close()
        if not content:
            note = "Choose a picture, a clip or a text to search with: the form came without one."
            return self._respond_search(request, fields, Reading(note=note), code=400)
        found = await ask(self._viewer.search(_build_question(fields, upload=content)))
        return self._respond_search(request, fields, found)

    def _respond_search(
        self,
        request: Request,
        fields: Mapping[str, str],
        found: Reading[Found] | None,
        *,
        code: int = 200,
    ) -> Response:
        return self._respond(
            request, "search.html", code=code, fields=fields, found=found, max_mib=MAX_UPLOAD_MIB
        )

    async def _find_preview(self, position: RowPosition) -> Reading[Preview]:
        return Reading(await self._previews.get(position))

    async def _find_neighbours(self, request: Request) -> Reading[Found]:
        model_id = request.query_params.get("model") or None
        position = _read_position(request)
        # The row itself is the nearest.
        question = Question(like=position, model_id=model_id, k=_NEIGHBOURS + 1)
        answer = await self._searches.ask(question, lambda: ask(self._viewer.search(question)))
        if answer.value is None:
            return answer
        others = [card for card in answer.value.cards if card.position != position]
        return Reading(replace(answer.value, cards=tuple(others[:_NEIGHBOURS])))

    def _respond(self, request: Request, name: str, *, code: int = 200, **values: Any) -> Response:
        values = {"root": find_root(request), **values}
        html = self._environment.get_template(name).render(
            table=self._table, status=self._source.read_status(), **values
        )
        headers = {"Cache-Control": "no-store"}
        return HTMLResponse(html.encode("utf-8", "replace"), code, headers)


def _read_position(request: Request) -> RowPosition:
    """Read the position in an address; 404 for one that no message can have."""
    position = RowPosition(**request.path_params)
    if position.partition > _MAX_PARTITION or position.offset > _MAX_OFFSET:
        raise HTTPException(404)
    return position


def _build_question(
    fields: Mapping[str, str], *, words: str | None = None, upload: bytes | None = None
) -> Question:
    model_id, where = fields.get("model"), fields.get("where", "").strip()
    return Question(
        words=words, upload=upload, model_id=model_id or None, where=where or None, k=24
    )


async def _wait(question: Coroutine[None, None, Reading[_T]]) -> Reading[_T]:
    """Return the answer, or a placeholder if it takes long; the question goes on."""
    task = asyncio.create_task(question)
    done, _ = await asyncio.wait([task], timeout=_PATIENCE_S)
    return task.result() if done else Reading(note=_SLOW)
