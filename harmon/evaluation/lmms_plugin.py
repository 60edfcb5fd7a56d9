"""What lmms-eval's entry point `lmms_eval.models` loads: that there is a model `harmon`, and where its class is.

Apart from the class, which imports what lmms-eval is still loading while it reads entry points.
"""

from typing import Any


def manifest() -> Any:
    """lmms-eval's ModelManifest of Harmon."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="harmon", simple_class_path="harmon.evaluation.lmms.HarmonLmms")
