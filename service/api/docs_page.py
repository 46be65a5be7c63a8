"""/docs: the OpenAPI description as one page of HTML, without scripts and without files from other hosts."""

import base64
import hashlib
import json
import re
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import HTMLResponse, Response

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
h2 { border-top: 1px solid #ccc; padding-top: 1rem; font-size: 1.1rem }
code, pre { font-family: ui-monospace, monospace; font-size: .875rem }
pre { background: #f4f4f4; padding: .75rem; overflow-x: auto }
table { border-collapse: collapse } td, th { text-align: left; padding: .15rem .75rem .15rem 0; vertical-align: top }
.method { display: inline-block; min-width: 4.5rem; font-weight: 700 }
"""
_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
}
"""Allows no script, and no style but this one."""


def docs_routes(app: FastAPI) -> APIRouter:
    """The route /docs, which describes every route of the app."""
    routes = APIRouter()

    @routes.get("/docs", include_in_schema=False)
    def read_docs() -> Response:
        return HTMLResponse(render_page(app.openapi()), headers=HEADERS)

    return routes


def render_page(described: dict[str, Any]) -> str:
    """The HTML page for an OpenAPI description."""
    info, parts = described["info"], []
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            parts.append(_render_operation(method.upper(), path, operation))
    schemas = described.get("components", {}).get("schemas", {})
    parts += [_render_schema(name, schema) for name, schema in sorted(schemas.items())]
    title = escape(f"{info['title']} {info['version']}")
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n<p>{_prose(info.get('description', ''))}</p>\n"
        '<p>For programs: <a href="/openapi.json">/openapi.json</a>.</p>\n' + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _render_operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = [(p["in"], p["name"], p.get("description", "")) for p in operation.get("parameters", ())]
    rows += [("body", name, _schema_name(content)) for name, content in
             operation.get("requestBody", {}).get("content", {}).items()]  # fmt: skip
    answers = [(status, answer.get("description", ""), ", ".join(map(_schema_name, answer.get("content", {}).values())))
               for status, answer in operation["responses"].items()]  # fmt: skip
    return (
        f'<h2><span class="method">{escape(method)}</span> <code>{escape(path)}</code></h2>\n'
        f"<p>{_prose(operation.get('description') or operation.get('summary', ''))}</p>\n"
        f"{_render_table('Parameters', rows)}{_render_table('Answers', answers)}"
    )


def _render_schema(name: str, schema: dict[str, Any]) -> str:
    text = escape(json.dumps(schema, indent=2, ensure_ascii=False))
    anchor = escape(name, quote=True)
    return (
        f'<h2 id="{anchor}"><code>{anchor}</code></h2>\n<p>{_prose(schema.get("description", ""))}</p>\n'
        f"<details><summary>Schema</summary><pre>{text}</pre></details>"
    )


def _render_table(title: str, rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    lines = "".join("<tr>" + "".join(f"<td>{_prose(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<details open><summary>{title}</summary><table>\n{lines}</table></details>\n"


def _schema_name(content: dict[str, Any]) -> str:
    schema = content.get("schema", {})
    return f"#{schema['$ref'].rpartition('/')[2]}" if "$ref" in schema else ""


def _prose(text: str) -> str:
    """Escaped text with `code`, paragraphs and #Schema links."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)).replace("\n\n", "</p><p>")
    return re.sub(r"^#(\w+)$", r'<a href="#\1">\1</a>', marked)
