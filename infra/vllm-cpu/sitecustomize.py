"""Lets PyPI's torchvision load beside a torch whose build it was not compiled for, as vLLM's Qwen2-VL needs it.

Installed into vLLM's environment by install.sh. torchvision's compiled operators do not load there, and its Python
part asks for the schemas of two of them when it is imported; they are declared here, at that moment. What Qwen2-VL
uses of torchvision (resizing, normalising) is plain torch. Calling one of the declared operators raises.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept = []  # a library's declarations last as long as it does


class DeclareFirst(importlib.abc.MetaPathFinder):
    """Declares the schemas when torchvision is first looked for, and finds nothing itself."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for schema in SCHEMAS:
                library.define(schema)
            _kept.append(library)
        return None


sys.meta_path.insert(0, DeclareFirst())
