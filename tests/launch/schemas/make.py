"""Makes kubernetes.json, the part of the Kubernetes 1.37 API that the launch tests need.

Source: the JSON schemas in the Python package kubernetes-validate 1.37.0 (Apache-2.0), which are those of the OpenAPI
description of Kubernetes 1.37 (project kubernetes/kubernetes, Apache-2.0). Descriptions are left out, and unknown keys
are refused.

    pip install kubernetes-validate==1.37.0 importlib-resources && python tests/launch/schemas/make.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate

KINDS = ("io.k8s.api.core.v1.ConfigMap", "io.k8s.api.core.v1.Pod")


def main() -> None:
    source = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / "v1.37.0-local"
    definitions = json.loads((source / "_definitions.json").read_text())["$defs"]
    needed: dict[str, Any] = {}
    open_names = list(KINDS)
    while open_names:
        name = open_names.pop()
        if name not in needed:
            needed[name] = convert(definitions[name], open_names)
    document = {"$defs": dict(sorted(needed.items()))}
    (Path(__file__).parent / "kubernetes.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")


def convert(node: Any, references: list[str]) -> Any:
    if isinstance(node, list):
        return [convert(item, references) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        references.append(name)
        return {"$ref": f"#/$defs/{name}"}
    made = {
        key: {name: convert(child, references) for name, child in value.items()}
        if key == "properties"
        else convert(value, references)
        for key, value in node.items()
        if not key.startswith("x-") and not (key == "description" and isinstance(value, str))
    }
    if "properties" in made:
        made["additionalProperties"] = False
    return made


if __name__ == "__main__":
    main()
