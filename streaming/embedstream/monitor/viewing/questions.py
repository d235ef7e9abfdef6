"""Search the table for what the page asks."""

from __future__ import annotations

from embedstream.config.sections import BulkFilesConfig, StreamConfig
from embedstream.follow.table_reader import list_models, open_table
from embedstream.monitor.viewer import Found, Question
from embedstream.monitor.viewing.rows import make_card
from embedstream.search.nearest import Searcher
from embedstream.search.scan import Position
from embedstream_core.errors import SetupError
from embedstream_core.settings import Isolation

__all__ = ["Questions"]

_MOST_ROWS = 100


class Questions:
    """Searches; the index and the models that were loaded stay open."""

    def __init__(self, config: StreamConfig | BulkFilesConfig) -> None:
        self._config = config
        self._searcher: Searcher | None = None

    def search(self, question: Question) -> Found:
        """Return the nearest rows.

        Raises:
            SetupError: the question is not one, or cannot be answered.
        """
        query = _read_query(question)
        self._check_model(question.model_id)
        if self._searcher is None:
            decode = self._config.decode
            isolation = Isolation(decode.timeout_s, decode.isolated_memory_bytes)
            self._searcher = Searcher(config=self._config, isolation=isolation)
        answer = self._searcher.search(
            query,
            k=min(question.k, _MOST_ROWS),
            where=question.where or None,
            model_id=question.model_id or None,
        )
        rows = answer.rows.to_pylist()
        cards = [make_card({**row, "media": _read_media(row)}) for row in rows]
        return Found(tuple(cards), answer.model_id, answer.describe())

    def close(self) -> None:
        """Close the index."""
        if self._searcher is not None:
            self._searcher.close()

    def _check_model(self, model_id: str | None) -> None:
        """Refuse other models than the table's: a name may be one of Python code to be run."""
        if not model_id:
            return
        known = list_models(open_table(self._config.table.path))
        if model_id not in known:
            raise SetupError(
                f"the table has no rows of the model '{model_id}'; it has those of "
                f"{', '.join(known)}"
            )


def _read_query(question: Question) -> bytes | str | Position:
    like = question.like
    position = None if like is None else (like.topic, like.partition, like.offset)
    given = [one for one in (position, question.upload, question.words) if one is not None]
    if len(given) != 1:
        raise SetupError("a search takes exactly one of a row, a file and words; give one of them")
    return given[0]


def _read_media(row: dict[str, object]) -> dict[str, object]:
    """Return the media of an answer's row, in the form of the table."""
    return {"type": row["media_type"], "duration_s": row["duration_s"]}
