"""Every error of embedstream. The type says what to do.

EmbedstreamError
├── SetupError          stop: the set-up is wrong, nothing was processed
│   ├── MissingExtra    install an optional package; the message gives the pip line
│   ├── ConfigError     correct the configuration
│   ├── LocationError   correct a path or a URI
│   ├── UnsupportedCondition  correct the condition of a search
│   └── StoreUnavailable  retry: the server of the index cannot be reached, or cannot do it now
├── ItemError           record: this one item becomes a failure row, the stream continues
│   └── TransientError  retry with backoff; what still fails then is recorded
│       └── Busy        retry after the pause that the server asks for
├── SystemicError       fail the micro-batch so that it is retried: no item is to blame
├── StreamFailed        stop: the work ended early; re-run the same command to resume
├── JvmEnded            stop: Spark's JVM is gone; re-run the same command to resume
├── CannotFollow        read the whole table again: a commit of it cannot be followed
├── IndexUnusable       search the table itself: its index cannot answer
├── IndexFailed         stop: the index is as its last write left it; re-run the same command
├── PublishFailed       stop: outcomes are not in the topic yet; re-run the same command
├── ClaimLost           stop: another driver has taken over
├── RecordClosed        stop: the stream ends, and no swap of its models is recorded any more
├── UnreadableFile      report: a file of the checkpoint or the table cannot be read
└── DamagedFile         report: a file of the checkpoint is not what Spark writes
"""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "Code",
    "EmbedstreamError",
    "ItemError",
    "MissingExtra",
    "SetupError",
    "Stage",
    "SystemicError",
    "TransientError",
    "build_decode_error",
    "explain",
]


class Stage(StrEnum):
    """The stage at which an item failed."""

    MESSAGE = "message"
    FETCH = "fetch"
    DECODE = "decode"
    EMBED = "embed"


class Code(StrEnum):
    """Why an item has no embedding: a closed set, safe to group and alert on."""

    MESSAGE_MALFORMED = "message_malformed"
    MESSAGE_INCOMPLETE = "message_incomplete"
    REFERENCE_DENIED = "reference_denied"
    REFERENCE_NOT_FOUND = "reference_not_found"
    REFERENCE_UNREADABLE = "reference_unreadable"
    REFERENCE_TIMEOUT = "reference_timeout"
    REFERENCE_TOO_LARGE = "reference_too_large"
    IMAGE_EMPTY = "image_empty"
    IMAGE_UNSUPPORTED = "image_unsupported"
    IMAGE_CORRUPT = "image_corrupt"
    IMAGE_TOO_LARGE = "image_too_large"
    TEXT_EMPTY = "text_empty"
    TEXT_MALFORMED = "text_malformed"
    TEXT_TOO_LARGE = "text_too_large"
    AUDIO_EMPTY = "audio_empty"
    AUDIO_UNSUPPORTED = "audio_unsupported"
    AUDIO_CORRUPT = "audio_corrupt"
    AUDIO_TOO_LARGE = "audio_too_large"
    MEDIA_EMPTY = "media_empty"
    MEDIA_UNSUPPORTED = "media_unsupported"
    DECODER_CRASHED = "decoder_crashed"
    DECODER_TIMEOUT = "decoder_timeout"
    DECODER_OUT_OF_MEMORY = "decoder_out_of_memory"
    EMBEDDING_INVALID = "embedding_invalid"
    INTERNAL_ERROR = "internal_error"
    DELETED = "deleted"
    """Not a failure: the message says that its key is deleted."""


class EmbedstreamError(Exception):
    """The root of every error that embedstream raises on purpose."""


class SetupError(EmbedstreamError):
    """The set-up is wrong; the message gives the rule, the value and the way out."""


class MissingExtra(SetupError):
    """An optional package is not installed."""

    def __init__(self, *, feature: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{feature} needs an extra package: pip install 'embedstream[{extra}]'")


class ItemError(EmbedstreamError):
    """One item cannot be embedded."""

    def __init__(self, code: Code, stage: Stage, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.stage = stage
        self.message = message


def build_decode_error(code: Code, message: str) -> ItemError:
    """Return the error of content that cannot be decoded."""
    return ItemError(code, Stage.DECODE, message)


class TransientError(ItemError):
    """One item cannot be embedded now; the same call may succeed later."""


class SystemicError(EmbedstreamError):
    """No single item is to blame; the micro-batch fails and Spark retries it."""


def explain(error: BaseException) -> str:
    """Return an exception's type and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
