"""The live page over a table, without its stream and without a JVM."""

from __future__ import annotations

from embedstream.cli import console
from embedstream.cli.log import show_log
from embedstream.cli.signals import catch_stop_signals
from embedstream.config.sections import StreamConfig
from embedstream.config.sections.monitoring import MonitorConfig
from embedstream.monitor.http.site import open_site
from embedstream.monitor.table_status import ObservedTable
from embedstream.table.lookup import find_table

__all__ = ["DEFAULT_ADDRESS", "serve_page"]

DEFAULT_ADDRESS = "127.0.0.1:9464"


def serve_page(config: StreamConfig, *, config_words: str = "CONFIG") -> None:
    """Serve the page at `monitor.listen`, or at `DEFAULT_ADDRESS`, until SIGINT or SIGTERM.

    `config_words` name the configuration in the commands that the page shows.

    Raises:
        SetupError: the address cannot be listened at, or the extra is missing.
    """
    if config.monitor.listen is None:
        monitor = MonitorConfig(listen=DEFAULT_ADDRESS, token=config.monitor.token)
        config = config.model_copy(update={"monitor": monitor})
    config = find_table(config)
    with (
        show_log(config.log),
        catch_stop_signals() as stop,
        ObservedTable(config) as source,
        open_site(source, config, config_words=config_words) as url,
    ):
        console.print_text(f"the page of {config.table.path}: {url} (Ctrl-C ends it)")
        stop.wait()
