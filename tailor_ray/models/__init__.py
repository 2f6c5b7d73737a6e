"""Models: named by what they are, found on the node that needs them, checked before they are used."""

from tailor_ray.models.ref import ModelRef, identify, publish, read_model, resolve, write_model

__all__ = ["ModelRef", "identify", "publish", "read_model", "resolve", "write_model"]
