"""The codes of failures are a closed set, and the documents name only those."""

from __future__ import annotations

import re
from pathlib import Path

from embedstream_core.errors import Code, Stage

ROOT = Path(__file__).parents[2]

# Other names that begin like codes.
OTHERS = {
    "audio_embedding",
    "audio_embeds",
    "audio_formats",
    "image_classification",
    "image_embedding",
    "image_embeds",
    "image_id",
    "media_type",
    "message_key",
    "image_labeler",
    "image_labels",
    "image_mean",
    "image_size",
    "image_std",
    "text_config",
    "text_embedding",
}


def test_the_readme_lists_every_code_by_stage() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("| stage | code |")[2]
    rows = dict(re.findall(r"^\| (\w+) \| (`.+`) \|$", table, re.MULTILINE))
    assert rows.keys() >= set(Stage)
    listed = {code for stage in Stage for code in re.findall(r"`(\w+)`", rows[stage])}
    assert listed == set(Code)


def test_every_code_that_a_document_names_exists() -> None:
    beginnings = "|".join({str(code).partition("_")[0] for code in Code})
    word = re.compile(rf"\b(?:{beginnings})_[a-z][a-z_]*\b|(?<=--code )\w+")
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        named = set(word.findall(page.read_text(encoding="utf-8")))
        assert named <= {*Code, *OTHERS}, page
