"""locales/: every node, input and output of the schemas has its words in every language, and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from comfyui_server import Server

LOCALES = Path(__file__).parents[2] / "locales"
LANGUAGES = ("zh", "ja", "de")
# paths, names and settings in a tooltip
CODE = re.compile(r"[\w.<>-]*[/=][\w./<>=,-]*\w|\w+_\w+|\.safetensors")


def words(language: str, name: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def schemas(run: Any) -> dict[str, Any]:
    return {node_id: node.GET_SCHEMA() for node_id, node in run.nodes.items()}


def slots(schema: Any) -> dict[str, Any]:
    """What may be named of a node, by its path in nodeDefs.json."""
    inputs = {f"inputs.{entry.id}": entry for entry in schema.inputs}
    return inputs | {f"outputs.{number}": entry for number, entry in enumerate(schema.outputs)}


def named(entry: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The words of one node by the same paths."""
    parts = {part: entry.get(part, {}) for part in ("inputs", "outputs")}
    return {f"{part}.{key}": text for part, texts in parts.items() for key, text in texts.items()}


def test_there_are_three_languages_beside_english() -> None:
    assert {path.name for path in LOCALES.iterdir()} == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_slot_of_every_node_has_a_name_and_none_is_left_of_former_ones(run: Any, language: str) -> None:
    known, texts = schemas(run), words(language, "nodeDefs")
    assert set(texts) == set(known)
    asked = {f"{node_id}.{slot}" for node_id, schema in known.items() for slot in slots(schema)}
    there = {f"{node_id}.{slot}" for node_id, entry in texts.items() for slot in named(entry)}
    assert sorted(asked - there) == [] and sorted(there - asked) == []
    for node_id, entry in texts.items():
        assert entry["display_name"] and entry["description"], node_id
        names = [text["name"] for slot, text in named(entry).items() if slot.startswith("inputs.")]
        assert all(names) and len(set(names)) == len(names), node_id


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_tooltip_is_translated_with_the_names_and_settings_in_it(run: Any, language: str) -> None:
    texts = words(language, "nodeDefs")
    for node_id, schema in schemas(run).items():
        for slot, entry in slots(schema).items():
            text = named(texts[node_id])[slot].get("tooltip", "")
            assert bool(text) == bool(entry.tooltip), f"{node_id}.{slot}"
            tooltip = entry.tooltip or ""
            options = [option for option in getattr(entry, "options", None) or () if f"{option}: " in tooltip]
            for code in [*CODE.findall(tooltip), *options]:
                assert code in text, f"{node_id}.{slot}: {code}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_categories_that_are_translated_are_categories_of_the_nodes(run: Any, language: str) -> None:
    parts = {part for schema in schemas(run).values() for part in schema.category.split("/")}
    assert set(words(language, "main")["nodeCategories"]) <= parts


def test_the_host_gives_the_words_to_its_pages(server: Server) -> None:
    given = server.get("/i18n")
    for language in LANGUAGES:
        assert given[language]["nodeDefs"] == words(language, "nodeDefs")
        assert given[language]["nodeCategories"].items() >= words(language, "main")["nodeCategories"].items()
