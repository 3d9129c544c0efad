"""Write cluster/kuberay/schema/kuberay.yaml from KubeRay: `python docs/make_kuberay_schema.py CHECKOUT`.

KubeRay's custom resource definitions carry the whole of Kubernetes' pod schema several times over, 3 MB of
it. What Ray owns is kept whole. Of a pod, only the fields named in `POD_FIELDS` are kept, so a manifest that
uses another one is refused until that field's name is put here. Every object that lists its properties is
closed, so a key that does not exist is refused: KubeRay itself would drop it without a word.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

OUT = Path(__file__).resolve().parents[1] / "cluster" / "kuberay" / "schema" / "kuberay.yaml"
FOLDER = "ray-operator/config/crd/bases"
VERSION = "v1"

_POD = """
metadata spec labels annotations
affinity automountServiceAccountToken containers imagePullSecrets nodeSelector priorityClassName
restartPolicy securityContext serviceAccountName terminationGracePeriodSeconds tolerations volumes
args command env image imagePullPolicy name ports resources volumeMounts value containerPort protocol
limits requests mountPath readOnly subPath valueFrom secretKeyRef key optional
nodeAffinity requiredDuringSchedulingIgnoredDuringExecution nodeSelectorTerms matchExpressions operator
preferredDuringSchedulingIgnoredDuringExecution preference weight values effect tolerationSeconds
allowPrivilegeEscalation capabilities add drop privileged readOnlyRootFilesystem runAsGroup runAsNonRoot
runAsUser fsGroup fsGroupChangePolicy seccompProfile type supplementalGroups
emptyDir medium sizeLimit persistentVolumeClaim claimName
"""
POD_FIELDS = frozenset(_POD.split())
KEPT = ("type", "enum", "minimum", "maximum", "anyOf", "pattern", "minLength", "maxLength", "minItems")
REFERENCES = {"rayClusterSpec": "RayClusterSpec", "rayClusterConfig": "RayClusterSpec"}
PODS = {"template", "submitterPodTemplate"}
METADATA = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
        **{
            field: {"type": "object", "additionalProperties": {"type": "string"}}
            for field in ("labels", "annotations")
        },
    },
    "additionalProperties": False,
}


def pruned(node: dict[str, Any], fields: frozenset[str] | None = None, name: str = "") -> dict[str, Any]:
    """Return a schema without prose and defaults, its objects closed.

    Args:
        node: a part of an openAPIV3Schema.
        fields: names of properties to keep; None: all.
        name: of the property that `node` describes.
    """
    if name in REFERENCES:
        return {"$ref": f"#/$defs/{REFERENCES[name]}"}
    if name in PODS and fields is None:
        return {"$ref": "#/$defs/PodTemplate"}
    if name == "metadata":
        return {"type": "object"}
    kept = {key: node[key] for key in KEPT if key in node}
    if "items" in node:
        kept["items"] = pruned(node["items"], fields)
    if "properties" in node:
        kept["properties"] = {
            key: pruned(child, fields, key)
            for key, child in sorted(node["properties"].items())
            if key != "status" and (fields is None or key in fields)
        }
        kept["additionalProperties"] = False
        required = [key for key in node.get("required", ()) if key in kept["properties"]]
        if required:
            kept["required"] = required
    elif isinstance(node.get("additionalProperties"), dict):
        kept["additionalProperties"] = pruned(node["additionalProperties"])
    return kept


def resource(group: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a whole resource."""
    return {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"enum": [group]},
            "kind": {"enum": [kind]},
            "metadata": METADATA,
            "spec": spec,
        },
        "additionalProperties": False,
    }


def definitions(checkout: Path) -> dict[str, Any]:
    """Return name -> schema of everything a manifest of ours may hold."""
    specs = {}
    for kind in ("RayCluster", "RayJob", "RayService"):
        text = (checkout / FOLDER / f"ray.io_{kind.lower()}s.yaml").read_text(encoding="utf-8")
        versions = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]["versions"]
        whole = next(v for v in versions if v["name"] == VERSION)["schema"]["openAPIV3Schema"]
        specs[kind] = whole["properties"]["spec"]
    cluster = specs["RayCluster"]
    for kind, name in (("RayJob", "rayClusterSpec"), ("RayService", "rayClusterConfig")):
        inner = pruned(specs[kind]["properties"][name])
        assert inner == pruned(cluster), f"{kind}.{name} is no RayClusterSpec: write it out"
    pod = cluster["properties"]["headGroupSpec"]["properties"]["template"]
    rules = cluster["properties"]["networkPolicy"]["properties"]["head"]["properties"]
    volume = pod["properties"]["spec"]["properties"]["volumes"]["items"]["properties"]["ephemeral"]
    claim = volume["properties"]["volumeClaimTemplate"]["properties"]["spec"]
    peer = rules["ingressRules"]["items"]["properties"]["from"]["items"]["properties"]
    policy = {
        "type": "object",
        "required": ["podSelector", "policyTypes"],
        "properties": {
            "podSelector": pruned(peer["podSelector"]),
            "policyTypes": {"type": "array", "items": {"enum": ["Ingress", "Egress"]}},
            "ingress": pruned(rules["ingressRules"]),
            "egress": pruned(rules["egressRules"]),
        },
        "additionalProperties": False,
    }
    return {
        "PodTemplate": pruned(pod, POD_FIELDS),
        "RayClusterSpec": pruned(cluster),
        **{
            kind: resource(f"ray.io/{VERSION}", kind, pruned(spec) if kind != "RayCluster" else ref())
            for kind, spec in specs.items()
        },
        "NetworkPolicy": resource("networking.k8s.io/v1", "NetworkPolicy", policy),
        "PersistentVolumeClaim": resource("v1", "PersistentVolumeClaim", pruned(claim)),
    }


def ref() -> dict[str, Any]:
    """Return a reference to what all three kinds hold."""
    return {"$ref": "#/$defs/RayClusterSpec"}


def page(checkout: Path) -> str:
    """Return the whole file."""
    commit = subprocess.run(
        ["git", "-C", str(checkout), "log", "-1", "--format=commit %H of %cs"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    head = (
        f"# From KubeRay (github:ray-project/kuberay, {commit}), {FOLDER}; Apache License 2.0,\n"
        "# copyright of the KubeRay authors. Changed: pruned and closed by docs/make_kuberay_schema.py, "
        "which says how.\n# Made by that program; do not edit.\n"
    )
    body = yaml.dump({"$defs": definitions(checkout)}, sort_keys=False, Dumper=_Short, width=108)
    return head + body


class _Short(yaml.SafeDumper):
    """Writes a dictionary without inner ones on one line, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        flat = all(not isinstance(value, dict) for value in dict(mapping).values())
        return super().represent_mapping(tag, mapping, flow_style=flat)


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(page(Path(sys.argv[1])), encoding="utf-8")
