"""The live page: what people see of a stream.

`routes` answers requests, `feed` sends what changes to the browsers that listen, `rows` keeps what
the viewer gave. The page is rendered on the server by the templates: `health` says in words how the
stream is doing, `flow` and `history` compute the drawings, `formats` turns values into text.
"""

from embedstream.monitor.page.routes import build_page

__all__ = ["build_page"]
