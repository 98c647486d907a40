"""The API reference as one HTML page, made from the OpenAPI document.

No script and nothing from outside, so it works offline and under a policy that allows neither.
Every operation shows its scope, parameters, body and a ``curl`` line to try it with.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from serve_apps.problems import KINDS

_STYLE = (
    ":root{color-scheme:light dark;--line:#d8dde6;--soft:#f3f5f8;--ink:#1b2230;--mute:#5b6678;"
    "--accent:#1f5fd0}@media(prefers-color-scheme:dark){:root{--line:#303848;--soft:#1a202b;"
    "--ink:#e6eaf2;--mute:#9aa5b8;--accent:#7fb0ff}}"
    "*{box-sizing:border-box}body{margin:0;color:var(--ink);background:Canvas;"
    "font:16px/1.55 system-ui,sans-serif}"
    ".wrap{display:grid;grid-template-columns:15rem minmax(0,1fr);max-width:78rem;margin:auto}"
    "nav{position:sticky;top:0;align-self:start;height:100vh;overflow:auto;padding:1.5rem 1rem;"
    "border-right:1px solid var(--line);font-size:.9rem}nav a{display:block;color:inherit;"
    "text-decoration:none;padding:.15rem 0}nav a:hover{color:var(--accent)}"
    "nav strong{display:block;margin:1rem 0 .2rem;text-transform:capitalize}"
    "main{padding:1.5rem 2rem;min-width:0}h1{margin:.2rem 0}h2{margin-top:2.5rem;"
    "text-transform:capitalize;border-bottom:1px solid var(--line)}"
    "article{border:1px solid var(--line);border-radius:10px;margin:1rem 0;padding:.8rem 1.1rem}"
    "article h3{margin:0;font-size:1.05rem}code,pre{font:.86rem/1.5 ui-monospace,monospace}"
    "pre{background:var(--soft);padding:.7rem .9rem;border-radius:8px;overflow:auto}"
    ".verb{font-weight:700;color:var(--accent)}.mute{color:var(--mute)}"
    "table{border-collapse:collapse;width:100%;font-size:.9rem}td,th{text-align:left;"
    "padding:.3rem .6rem .3rem 0;border-top:1px solid var(--line);vertical-align:top}"
    "@media(max-width:50rem){.wrap{display:block}nav{display:none}main{padding:1rem}}"
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; frame-ancestors 'none'"
)

Json = Mapping[str, Any]


def render(openapi: Json) -> str:
    """The page."""
    operations = list(_operations(openapi))
    tags = list(dict.fromkeys(tag for tag, *_ in operations))
    links, parts = [], []
    for tag in tags:
        links.append(f"<strong>{escape(tag)}</strong>")
        parts.append(f'<h2 id="{escape(tag)}">{escape(tag)}</h2>')
        for of, verb, path, operation in operations:
            if of == tag:
                anchor = escape(f"{verb}{path}", quote=True)
                links.append(f'<a href="#{anchor}">{escape(operation["summary"])}</a>')
                parts.append(_article(openapi, anchor, verb, path, operation))
    info = openapi["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>"
        f'<div class="wrap"><nav aria-label="Operations"><a href="#problems">Problems</a>'
        f"{''.join(links)}</nav><main><h1>{escape(info['title'])} API "
        f'<small class="mute">{escape(info["version"])}</small></h1>'
        f"<p>{_inline(info.get('description', ''))}</p>"
        '<p><a href="openapi.json">OpenAPI document</a></p>'
        f"{''.join(parts)}{_problems()}</main></div></body></html>"
    )


def _operations(openapi: Json) -> Iterator[tuple[str, str, str, Json]]:
    prefix = next(iter(openapi.get("servers", [])), {}).get("url", "")
    for path, item in openapi["paths"].items():
        for verb, operation in item.items():
            tag = (operation.get("tags") or ["other"])[0]
            yield tag, verb.upper(), prefix + path, operation


def _article(openapi: Json, anchor: str, verb: str, path: str, operation: Json) -> str:
    scope = operation.get("x-scope")
    body = _body_schema(openapi, operation)
    parts = [
        f'<article id="{anchor}"><h3>{escape(operation["summary"])}</h3>',
        f'<p><span class="verb">{verb}</span> <code>{escape(path)}</code>',
        f' <span class="mute">scope <code>{escape(scope)}</code></span></p>' if scope else "</p>",
        f"<p>{_inline(operation.get('description', ''))}</p>",
        _fields("Parameters", [_parameter(p) for p in operation.get("parameters", [])]),
    ]
    if body:
        parts.append(_fields("Body", list(_properties(openapi, body))))
    parts.append(f"<pre>{escape(_curl(openapi, verb, path, body))}</pre></article>")
    return "".join(parts)


def _parameter(parameter: Json) -> tuple[str, str, bool, str]:
    schema = parameter.get("schema", {})
    place = "" if parameter["in"] == "query" else f" ({parameter['in']})"
    required = bool(parameter.get("required"))
    text = parameter.get("description") or schema.get("description", "")
    return parameter["name"] + place, _type(schema), required, text


def _properties(openapi: Json, schema: Json) -> Iterator[tuple[str, str, bool, str]]:
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        yield name, _type(field), name in required, field.get("description", "")
        inner = _resolve(openapi, _items(field))
        for sub, of in inner.get("properties", {}).items():
            text = of.get("description", "")
            yield f"{name}.{sub}", _type(of), sub in inner.get("required", []), text


def _items(field: Json) -> Json:
    field = next((f for f in field.get("anyOf", []) if f.get("type") != "null"), field)
    items: Json = field.get("items", field)
    return items


def _fields(title: str, rows: list[tuple[str, str, bool, str]]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}</td>"
        f"<td>{'required' if required else ''}</td><td>{_inline(text)}</td></tr>"
        for name, kind, required, text in rows
    )
    return f"<table><caption hidden>{title}</caption>{cells}</table>"


def _type(schema: Json) -> str:
    options = [s for s in schema.get("anyOf", []) if s.get("type") != "null"]
    if options:
        return " or ".join(_type(s) for s in options)
    if "$ref" in schema:
        return "object"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}s"
    return str(schema.get("type", "any"))


def _body_schema(openapi: Json, operation: Json) -> Json:
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    schema = (schema.get("oneOf") or [schema])[0]
    return _resolve(openapi, _items(schema) if "anyOf" in schema else schema)


def _resolve(openapi: Json, schema: Json) -> Json:
    if "$ref" not in schema:
        return schema
    found: Any = openapi
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    resolved: Json = found
    return resolved


def _curl(openapi: Json, verb: str, path: str, body: Json) -> str:
    lines = [f'curl -H "Authorization: Bearer $MANTA_KEY" \\\n  -X {verb} "$MANTA_URL{path}"']
    if body:
        example = {
            name: _example(openapi, field)
            for name, field in body.get("properties", {}).items()
            if name in body.get("required", []) or len(body["properties"]) <= 3
        }
        lines.append(f"-H 'Content-Type: application/json' -d '{json.dumps(example)}'")
    return " \\\n  ".join(lines)


def _example(openapi: Json, field: Json) -> Any:
    if field.get("examples"):
        return field["examples"][0]
    if field.get("default") is not None:
        return field["default"]
    field = next((f for f in field.get("anyOf", []) if f.get("type") != "null"), field)
    inner = _resolve(openapi, field)
    if "properties" in inner:
        names = inner.get("required") or list(inner["properties"])[:2]
        return {name: _example(openapi, inner["properties"][name]) for name in names}
    if inner.get("type") == "array":
        return [_example(openapi, inner.get("items", {}))]
    return {"integer": 1, "number": 1.0, "boolean": True, "object": {}}.get(
        inner.get("type", ""), "…"
    )


def _problems() -> str:
    rows = "".join(
        f'<tr id="problem-{code}"><td><code>{code}</code></td><td>{kind.status}</td>'
        f"<td>{escape(kind.title)}</td><td>{_inline(kind.remedy)}</td></tr>"
        for code, kind in KINDS.items()
    )
    return (
        '<h2 id="problems">Problems</h2><p>A refusal is <code>application/problem+json</code> '
        "(RFC 9457) with <code>code</code>, <code>detail</code>, where it helps <code>path</code> "
        "and <code>expected</code>, and one entry in <code>errors</code> for each wrong field.</p>"
        f"<table>{rows}</table>"
    )


def _inline(text: str) -> str:
    """Text with ``code`` in backticks."""
    parts = escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))
