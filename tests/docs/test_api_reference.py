"""The API's reference and its OpenAPI document are what the application says now; the how-tos name what exists."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from disegno.cli.main import main
from disegno.serving.kinds import KINDS
from disegno.serving.reference import DOCUMENT, PAGE, document_text, openapi, reference_page

pytestmark = pytest.mark.docs

DOCS = Path(__file__).parent.parent.parent / "docs"
AGAIN = "write it again: python -m disegno.serving.reference"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi()


def test_the_document_is_frozen(document: dict[str, Any]) -> None:
    """A change of the API is a change of this file: seen, and meant."""
    assert DOCUMENT.read_text("utf-8") == document_text(document), AGAIN


def test_the_page_is_up_to_date(document: dict[str, Any]) -> None:
    assert PAGE.read_text("utf-8") == reference_page(document), AGAIN


def test_every_kind_of_job_is_typed(document: dict[str, Any]) -> None:
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["discriminator"]["mapping"]) == set(KINDS)


def test_every_field_of_a_request_says_what_it_is(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    asked = [name for name in schemas if name.endswith("Request")]
    silent = [(name, field) for name in asked for field, told in schemas[name]["properties"].items()
              if not (told.get("description") or "$ref" in json.dumps(told))]  # fmt: skip
    assert len(asked) >= 6 and not silent


def test_the_how_to_names_flags_that_exist() -> None:
    text = (DOCS / "howto" / "serve.md").read_text("utf-8")
    shown = CliRunner().invoke(main, ["serve", "--help"]).output
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert {"--data-root", "--db", "--auth", "--workers"} <= flags
    assert all(flag in shown for flag in flags), flags
