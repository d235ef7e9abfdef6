"""Set the version of one Maven group in jars.toml, with the sha256 of each of its jars.

    python scripts/set_jar_version.py io.delta 4.4.0

Jars that the new version adds or no longer needs are not found: see jars.py.
"""

import hashlib
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path[:0] = ["core", "streaming"]

from embedstream.spark.jars import download_jar  # noqa: E402

LIST = Path("streaming/embedstream/spark/jars.toml")

group, version = sys.argv[1:]
line = re.compile(rf'"({re.escape(group)}:[^:"]+):[^:"]+" = "\w+"')
with TemporaryDirectory() as folder:

    def renew(match: re.Match[str]) -> str:
        coordinate = f"{match[1]}:{version}"
        sha256 = hashlib.sha256(download_jar(coordinate, Path(folder)).read_bytes()).hexdigest()
        print(coordinate)
        return f'"{coordinate}" = "{sha256}"'

    LIST.write_text(line.sub(renew, LIST.read_text()))
