"""The OpenAPI document: what FastAPI gathers from the routes, plus the bodies that the routes read by hand."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

import torpor
from sfu.schemas import REQUESTS

REF_TEMPLATE = "#/components/schemas/{model}"

DESCRIPTION = """\
Sessions and tracks of a self-hosted realtime media server, compatible with the Cloudflare Realtime SFU API.

* Bodies are JSON under any `Content-Type`. Unknown keys and query parameters are ignored; `null` counts as absent.
* Answers are JSON objects, errors included: `errorCode` and `errorDescription`. Absent keys are omitted.
* A 200 of `tracks/new`, `tracks/update` or `tracks/close` may hold failed entries, each with its own `errorCode`.
* No request is ever redirected.
* A session may be called 50 times a second.
"""


def document(app: FastAPI) -> dict[str, Any]:
    """The document of `app`'s routes."""
    result = get_openapi(
        title="Torpor",
        version=torpor.__version__,
        description=DESCRIPTION,
        routes=app.routes,
        separate_input_output_schemas=False,
    )
    _, definitions = models_json_schema([(shape, "validation") for shape in REQUESTS], ref_template=REF_TEMPLATE)
    schemas = result.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in definitions.get("$defs", {}).items():
        schemas.setdefault(name, schema)
    # Parameters and bodies are checked by hand: FastAPI's own validation error is never sent.
    for operations in result["paths"].values():
        for operation in operations.values():
            if operation["responses"].get("422", {}).get("description") == "Validation Error":
                del operation["responses"]["422"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    result["components"]["schemas"] = dict(sorted(schemas.items()))
    return result
