"""The OpenAPI 3.1 document: what may be sent to the server, and everything that may come back.

Schemas are those of `messages`, with the limits and classes of this server. What the review page talks to is its own.
"""

import copy
from typing import Any

from src.serving import messages
from src.serving.messages import Answer, Ask, Picture, Refusal
from src.serving.spec import ServingSpec
from src.task import TaskSpec

WHY = {
    400: "The body is not what its content type says",
    401: "No key, or an unknown one",
    403: "The key is not for that; without keys, a request from elsewhere than this machine",
    404: "Nothing of yours has that name",
    408: "The body took too long",
    411: "No Content-Length",
    413: "More items or megabytes than are taken",
    415: "An unknown content type",
    422: "A field, an item or an image that cannot be used; the message says which",
    429: "More than is taken at a time, or a second",
    500: "A mistake on the server's side",
    503: "Stopping, or nothing can be written down: ask again",
}
# A white picture of 1×1 pixels, as an example that works.
DOT = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC")
RETRY = {"Retry-After": {"description": "Seconds until asking again makes sense",
                         "schema": {"type": "integer", "minimum": 1}}}
DECIDE = (400, 401, 403, 408, 411, 413, 415, 422, 429, 500, 503)
LOOK_UP = (400, 401, 403, 404, 413, 422, 429, 500, 503)


def document(task: TaskSpec, spec: ServingSpec, *, max_pixels: int, keys: bool) -> dict[str, Any]:
    """`keys`: whether clients need one. Holds no key, path or name of a model, as anybody may read it."""
    schemas = _schemas(task, spec)
    limits = (f"At most {spec.most_items} images and {spec.most_body_mb:g} MB in a request, {max_pixels} pixels in an "
              f"image; {spec.wait_s:g} s is the longest wait.")
    seconds = {"type": "number", "minimum": 0, "maximum": spec.wait_s}
    wait = [_query("wait", "As in the body; not in both", {"enum": list(messages.WAITS)}),
            _query("timeout_s", "As in the body; not in both", seconds)]
    name = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
    known = [{"name": "request", "in": "path", "required": True, "schema": name},
             _query("wait_s", "How long to wait for what is open", seconds)]
    secured: dict[str, Any] = {"security": [{"key": []}]} if keys else {}
    paths = {
        "/v1/decide": {"post": {
            "operationId": "decide", "summary": "Decide on images", "description": limits, "parameters": wait,
            "requestBody": {"required": True, "content": {
                "application/json": {"schema": _ref("Ask")}, "multipart/form-data": {
                    "schema": _ref("Form"), "encoding": {"image": {"contentType": "application/octet-stream"}}}}},
            "responses": _answers() | _refusals(DECIDE), **secured}},
        "/v1/requests/{request}": {"get": {
            "operationId": "look_up", "summary": "What is known about a request by now",
            "description": "Also after a restart of the server. Until an item is final, its label is null.",
            "parameters": known, "responses": _answers(linked=False) | _refusals(LOOK_UP), **secured}},
        "/healthz": {"get": {"operationId": "alive", "summary": "Whether the process answers",
                             "responses": _status() | _refusals((400, 403, 413))}},
        "/readyz": {"get": {"operationId": "ready", "summary": "Whether it takes requests",
                            "responses": _status() | _refusals((400, 403, 413, 503))}},
        "/metrics": {"get": {
            "operationId": "metrics", "summary": "Figures for Prometheus", **secured,
            "responses": {"200": {"description": "Text", "content": {"text/plain": {"schema": {"type": "string"}}}}}
            | _refusals((400, 401, 403, 413, 500))}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Flywheel: {task.name}", "version": str(task.version), "description": (
            "A student answers what it can be trusted with, an LLM the doubtful rest, a person what the LLM is unsure "
            f"of. {limits}")},
        "paths": paths,
        "components": {"schemas": schemas} | (
            {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if keys else {}),
    }


def _schemas(task: TaskSpec, spec: ServingSpec) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for model in (Ask, Picture, Answer, Refusal):
        schema = copy.deepcopy(model.model_json_schema(ref_template="#/components/schemas/{model}"))
        found |= schema.pop("$defs", {})
        found[model.__name__] = schema
    image = {"type": "string", "contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/]+={0,2}$", "minLength": 2,
             "examples": [DOT]}
    found["Picture"]["properties"]["image"] = {
        **image, "description": found["Picture"]["properties"]["image"]["description"]}
    found["Ask"]["properties"]["items"]["maxItems"] = spec.most_items
    _number(found["Ask"]["properties"]["timeout_s"])["maximum"] = spec.wait_s
    found["Doubtful"]["properties"]["label"]["enum"] = task.names
    label = found["Answered"]["properties"]["label"]
    found["Answered"]["properties"]["label"] = {"enum": [*task.names, None], "description": label["description"]}
    found["Form"] = {
        "type": "object", "additionalProperties": False, "required": ["image"], "title": "Form",
        "description": "The same as a form: one part named image for each item",
        "properties": {
            "image": {"type": "array", "minItems": 1, "maxItems": spec.most_items,
                      "items": {"type": "string", "format": "binary", "minLength": 1}},
            "wait": {"enum": list(messages.WAITS)},
            "timeout_s": {"type": "number", "minimum": 0, "maximum": spec.wait_s},
        },
    }
    return found


def _number(schema: dict[str, Any]) -> dict[str, Any]:
    """The number's part of one that may be null."""
    part: dict[str, Any] = next(part for part in schema["anyOf"] if part["type"] == "number")
    return part


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def _answers(*, linked: bool = True) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref("Answer")}}
    where = {"Location": {"description": "Where to ask for the rest", "schema": {"type": "string"}}}
    link = {"links": {"look_up": {"operationId": "look_up", "parameters": {"request": "$response.body#/request"}}}}
    extra = link if linked else {}
    done = "Every item is final, or the student's answers were asked for"
    return {"200": {"description": done, "content": content, **extra},
            "202": {"description": "Some items are still open", "content": content, "headers": where, **extra}}


def _status() -> dict[str, Any]:
    schema = {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}}
    return {"200": {"description": "Yes", "content": {"application/json": {"schema": schema}}}}


def _refusals(statuses: tuple[int, ...]) -> dict[str, Any]:
    found = {}
    for status in statuses:
        found[str(status)] = {"description": WHY[status], "content": {"application/json": {"schema": _ref("Refusal")}}}
        if status in (429, 503):
            found[str(status)]["headers"] = RETRY
    return found
