"""Explain each error code in a sentence; docs/troubleshooting.md says more."""

from __future__ import annotations

from collections.abc import Mapping

from embedstream_core.errors import Code

__all__ = ["find_meaning"]

_MEANINGS: Mapping[str, str] = {
    Code.MESSAGE_MALFORMED: "The value of the message is not JSON, or a field has the wrong form.",
    Code.MESSAGE_INCOMPLETE: "The JSON does not have exactly one of uri, data and text.",
    Code.REFERENCE_DENIED: "The folder, host, bucket or address is not allowed in the section "
    "references.",
    Code.REFERENCE_NOT_FOUND: "There is no such file or object.",
    Code.REFERENCE_UNREADABLE: "The server or the file system returned an error.",
    Code.REFERENCE_TIMEOUT: "The content did not arrive within references.timeout_s.",
    Code.REFERENCE_TOO_LARGE: "The content has more bytes than the limits of its modality.",
    Code.IMAGE_EMPTY: "The message has no bytes.",
    Code.IMAGE_UNSUPPORTED: "The content is not an image of decode.formats.",
    Code.IMAGE_CORRUPT: "The image is broken or cut short.",
    Code.IMAGE_TOO_LARGE: "The image has more bytes, pixels or scans than decode allows.",
    Code.TEXT_EMPTY: "The text has no characters that a model can read.",
    Code.TEXT_MALFORMED: "The bytes are not UTF-8.",
    Code.TEXT_TOO_LARGE: "The text has more bytes or characters than decode allows.",
    Code.AUDIO_EMPTY: "The message has no bytes, or the clip no samples.",
    Code.AUDIO_UNSUPPORTED: "The content is not a clip of decode.audio_formats.",
    Code.AUDIO_CORRUPT: "The clip is broken or cut short.",
    Code.AUDIO_TOO_LARGE: "The clip is longer or has more channels than decode allows.",
    Code.MEDIA_EMPTY: "The message has no bytes.",
    Code.MEDIA_UNSUPPORTED: "No encoder embeds content of this type.",
    Code.DECODER_CRASHED: "The content crashed the process that decoded it.",
    Code.DECODER_TIMEOUT: "Decoding took longer than decode.timeout_s.",
    Code.DECODER_OUT_OF_MEMORY: "Decoding needed more than decode.isolated_memory_bytes.",
    Code.EMBEDDING_INVALID: "The vector has a value that is not a number, or norm zero.",
    Code.INTERNAL_ERROR: "An exception that no code expects; the worker's log has its traceback.",
    Code.DELETED: "The message deletes its key; this is not a failure.",
}


def find_meaning(code: str) -> str:
    """Return the sentence; empty for a code of a later version."""
    return _MEANINGS.get(code, "")
