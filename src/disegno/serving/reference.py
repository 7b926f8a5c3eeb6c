"""The API's reference page and its OpenAPI document, from the application itself; a test compares both with the files.

python -m disegno.serving.reference
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from disegno.core.settings import Settings
from disegno.serving.app import create_app
from disegno.serving.settings import ServerSettings

_DOCS = Path(__file__).parents[3] / "docs" / "reference"
PAGE, DOCUMENT = _DOCS / "api.md", _DOCS / "openapi.json"
_ELSEWHERE = ("/sdapi", "/controlnet", "/internal", "/queue")  # on a page of their own
_REF = "#/components/schemas/"
_TOP = """# The API of `disegno serve`

Routes of this program's own door (`/v1`), of OpenAI's images API, and of the server itself; A1111's are
[on a page of their own](a1111.md). The whole of it for programs: [openapi.json](openapi.json), or `GET /openapi.json`.

A job is submitted, acknowledged with 202 when it is on the disk, and looked at, watched or cancelled by its id:

```sh
curl -s http://127.0.0.1:7860/v1/jobs -H "Content-Type: application/json" -H "Idempotency-Key: my-first" \\
    -d '{"kind": "generate", "request": {"prompt": "a red car on a city street", "seed": 1}}'
curl -sN http://127.0.0.1:7860/v1/jobs/ID/events
curl -s http://127.0.0.1:7860/v1/jobs/ID/files/0.png -o car.png
```

Errors are `{"error": CODE, "message": ..., "field": ..., "hint": ...}`, of OpenAI's routes in OpenAI's shape. 401:
who are you? 413, 415, 422: the request; 429 with `Retry-After`: too much waits; 503 with `Retry-After`: starting or
stopping; 507: no memory or no disk.
"""


def openapi() -> dict[str, Any]:
    """Return the OpenAPI document of a server with its default settings."""
    return create_app(ServerSettings(machine=Settings())).openapi()


def document_text(document: dict[str, Any]) -> str:
    """Return the document as it is kept."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def reference_page(document: dict[str, Any]) -> str:
    """Return the page."""
    schemas: dict[str, Any] = document["components"]["schemas"]
    routes = [(path, method, item) for path, own in document["paths"].items() if not path.startswith(_ELSEWHERE)
              for method, item in own.items()]  # fmt: skip
    names = _reached([item for _, _, item in routes], schemas)
    parts = [_TOP, "\n## Routes\n"]
    parts += [_route(path, method, item) for path, method, item in routes]
    parts.append("\n## Words\n")
    parts += [_schema(name, schemas[name]) for name in sorted(names)]
    return "".join(parts)


def _route(path: str, method: str, item: dict[str, Any]) -> str:
    lines = [f"\n### {method.upper()} `{path}`\n", _one_line(str(item.get("description", ""))), ""]
    for parameter in item.get("parameters", ()):
        told = parameter.get("description") or parameter["schema"].get("description", "")
        needed = "" if parameter.get("required") else ", optional"
        lines.append(
            f"* `{parameter['name']}` ({parameter['in']}{needed}): {_type(parameter['schema'])}. {told}".rstrip()
        )
    for media, body in item.get("requestBody", {}).get("content", {}).items():
        lines.append(f"* body, {media}: {_type(body['schema'])}")
    for status, answer in item["responses"].items():
        if int(status) < 400:  # errors are the same everywhere, and stand above
            kinds = ", ".join(dict.fromkeys(_type(c.get("schema", {})) for c in answer.get("content", {}).values()))
            lines.append(f"* {status}: {kinds or answer.get('description', '')}")
    return "\n".join(lines) + "\n"


def _schema(name: str, schema: dict[str, Any]) -> str:
    lines = [f"\n### {name}\n", _one_line(str(schema.get("description", ""))), ""]
    needed = set(cast("list[str]", schema.get("required", [])))
    if properties := cast("dict[str, Any]", schema.get("properties", {})):
        lines += ["| field | type | default | |", "|---|---|---|---|"]
    for field, told in properties.items():
        default = "required" if field in needed else f"`{json.dumps(told['default'])}`" if "default" in told else ""
        lines.append(f"| `{field}` | {_type(told)} | {default} | {_one_line(str(told.get('description', '')))} |")
    return "\n".join(lines) + "\n"


def _type(schema: dict[str, Any]) -> str:
    """Return a type in words, names linked to their tables."""
    if "$ref" in schema:
        name = str(schema["$ref"]).removeprefix(_REF)
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(_type(part) for part in schema[key])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        parts = schema.get("prefixItems")
        return (
            "[" + ", ".join(_type(part) for part in parts) + "]"
            if parts
            else f"list of {_type(schema.get('items', {}))}"
        )
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return str(schema.get("type", "anything")) + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    words = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    bounds = [f"{sign} {schema[key]:g}" for key, sign in words if key in schema]
    return f" ({', '.join(bounds)})" if bounds else ""


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in cast("dict[str, Any]", value).items():
            if key == "$ref":
                yield str(inner).removeprefix(_REF)
            else:
                yield from _refs(inner)
    elif isinstance(value, list):
        for inner in cast("list[Any]", value):
            yield from _refs(inner)


def _reached(routes: list[Any], schemas: dict[str, Any]) -> set[str]:
    """Return the names of the schemas that the routes speak of, and those that these speak of."""
    found, waiting = set[str](), set(_refs(routes))
    while waiting:
        name = waiting.pop()
        if name not in found and "Validation" not in name:
            found.add(name)
            waiting |= set(_refs(schemas[name]))
    return found


if __name__ == "__main__":
    whole = openapi()
    PAGE.write_text(reference_page(whole), "utf-8")
    DOCUMENT.write_text(document_text(whole), "utf-8")
