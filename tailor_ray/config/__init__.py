"""One YAML per run: typed, documented beside each field, unknown keys refused, conflicts caught at load.

A file holds a section and what goes with it; `run.py` joins them and loads. Nothing here imports ray, torch or vllm.
"""

from tailor_ray.config.run import RunConfig, load_config

__all__ = ["RunConfig", "load_config"]
