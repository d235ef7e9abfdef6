"""Forms with a file, within limits."""

from __future__ import annotations

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from embedstream.monitor.viewing.process import MAX_UPLOAD_BYTES

__all__ = ["MAX_UPLOAD_MIB", "read_form"]

MAX_UPLOAD_MIB = MAX_UPLOAD_BYTES // 2**20

# The boundaries and the other fields of a form.
_AROUND_BYTES = 64 * 2**10
# A browser shows the answer only after it has sent all; beyond this the connection is closed.
_DISCARDED_BYTES = 2**30


async def read_form(request: Request) -> FormData:
    """Read a form with at most one file.

    Raises:
        HTTPException: 413 if it is too large, 400 if it is not a form.
    """
    limit = MAX_UPLOAD_BYTES + _AROUND_BYTES
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > limit:
            while message.get("more_body") and received < _DISCARDED_BYTES:
                message = await request.receive()
                received += len(message.get("body", b""))
            raise HTTPException(413, f"The file is too large: at most {MAX_UPLOAD_MIB} MiB.")
        return message

    limited = Request(request.scope, receive)
    return await limited.form(max_files=1, max_fields=8, max_part_size=_AROUND_BYTES)
