"""Ray's TorchTrainer without the two processes that serve nothing here.

A `fit()` starts a controller, a placement group cleaner, a data set manager, a barrier for reports and the workers, and
each imports Ray Train. The cleaner (11 of 28 s to the first step, on 2 cores without bytecode) frees the workers'
resources should the controller die while its driver lives on; our driver starts no second run before the first has
ended, and frees them by ending. The manager hands out shards of Ray data sets; our workers read committed parts.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer

UNUSED = {"PlacementGroupCleanerCallback", "DatasetsCallback"}


class LeanTrainer(TorchTrainer):
    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if type(callback).__name__ not in UNUSED]
