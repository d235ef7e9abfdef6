"""`embedstream run` with `index.follow`: the index holds the table when the command ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivers import kill, running, wait_until
from embedstream.config.load import load_config
from index_oracle import check_index, find_state
from oracle import check_outcomes
from small import send_pictures, write_config
from streams import Topic

pytestmark = [pytest.mark.kafka, pytest.mark.long]


def test_the_index_follows_the_stream_and_outlives_a_kill_of_the_driver(
    topic: Topic, tmp_path: Path
) -> None:
    send_pictures(topic, 24)
    path = write_config(topic, tmp_path, index={"follow": True})
    config = load_config(path)
    table = config.table.path

    def has_version() -> bool:
        if not (Path(table) / "_delta_log").exists():
            return False
        state = find_state(config.index, table)
        return state is not None and state.version is not None

    with running(path) as driver:
        wait_until(has_version, driver=driver)
        kill(driver)
    send_pictures(topic, 24)
    with running(path, "--available-now") as driver:
        output, _ = driver.communicate(timeout=200)

    assert driver.returncode == 0, output
    assert "index: it holds version" in output
    check_outcomes(Path(table), topic.positions())
    check_index(table, config.index)
