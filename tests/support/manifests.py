"""What `kubectl kustomize` builds from deploy/kubernetes, for machines without kubectl.

Only what these kustomizations use is known; anything else is a KeyError.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "KUBEFLOW",
    "KUBERNETES",
    "ROOT",
    "Manifest",
    "built",
    "find",
    "get_templates",
    "read_manifests",
    "read_spark_conf",
]

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"

KUBEFLOW = "sparkoperator.k8s.io/v1beta2"

Manifest = dict[str, Any]

_LOCAL = "config.kubernetes.io/local-config"


def read_manifests(path: Path) -> list[Manifest]:
    """The objects of a file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def read_spark_conf() -> dict[str, str]:
    """The settings that spark-submit is given."""
    (settings,) = read_manifests(KUBERNETES / "base" / "spark-conf.yaml")
    conf: dict[str, str] = settings["data"]
    return conf


@cache
def built(name: str) -> list[Manifest]:
    """What a kustomization sends to the cluster."""
    return _accumulate(KUBERNETES / name, [])


def find(objects: list[Manifest], kind: str, name: str = "embedstream") -> Manifest:
    """The only object of a kind and a name."""
    (found,) = (one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)
    return found


def get_templates(application: Manifest) -> tuple[Manifest, Manifest]:
    """The pods of driver and executor."""
    spec = application["spec"]
    if application["apiVersion"] == KUBEFLOW:
        return spec["driver"]["template"], spec["executor"]["template"]
    return spec["driverSpec"]["podTemplateSpec"], spec["executorSpec"]["podTemplateSpec"]


def _accumulate(folder: Path, objects: list[Manifest]) -> list[Manifest]:
    (plan,) = read_manifests(folder / "kustomization.yaml")
    for name in plan.pop("resources", []):
        path = folder / name
        objects += _accumulate(path, []) if path.is_dir() else read_manifests(path)
    for name in plan.pop("components", []):
        objects = _accumulate(folder / name, objects)
    for generator in plan.pop("configMapGenerator", []):
        data = {name: (folder / name).read_text(encoding="utf-8") for name in generator["files"]}
        metadata = {"name": generator["name"]}
        objects += [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}]
    for replacement in plan.pop("replacements", []):
        _replace(objects, replacement)
    for entry in plan.pop("patches", []):
        objects = _patch(objects, entry)
    if namespace := plan.pop("namespace", None):
        for one in objects:
            one["metadata"]["namespace"] = namespace
            for subject in one.get("subjects", []):
                subject["namespace"] = namespace
    assert plan.keys() <= {"apiVersion", "kind", "generatorOptions"}, plan
    return [one for one in objects if _LOCAL not in one["metadata"].get("annotations", {})]


def _replace(objects: list[Manifest], replacement: Manifest) -> None:
    wanted = replacement["source"]
    (source,) = (one for one in objects if _is_selected(one, wanted))
    for target in replacement["targets"]:
        for one in objects:
            if _is_selected(one, target["select"]):
                for path in target["fieldPaths"]:
                    *keys, last = path.split(".")
                    place = one
                    for key in keys:
                        place = place.setdefault(key, {})
                    place[last] = deepcopy(source[wanted["fieldPath"]])


def _patch(objects: list[Manifest], entry: Manifest) -> list[Manifest]:
    patch = yaml.safe_load(entry["patch"])
    group = patch["apiVersion"].rpartition("/")[0]
    target = entry.get("target", {"group": group, "kind": patch["kind"]})
    chosen = [one for one in objects if _is_selected(one, target)]
    assert chosen, target
    if patch.get("$patch") == "delete":
        return [one for one in objects if one not in chosen]
    for one in chosen:
        one["spec"] = _merge(one["spec"], patch["spec"])
    return objects


def _is_selected(manifest: Manifest, selector: Manifest) -> bool:
    known = {
        "group": manifest["apiVersion"].rpartition("/")[0],
        "kind": manifest["kind"],
        "name": manifest["metadata"]["name"],
    }
    return all(known[key] == value for key, value in selector.items() if key in known)


def _merge(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}}
    return new
