"""The `ray up` files pass Ray's own validation, and keep keys and open ports out."""

from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
FILES = sorted(CLUSTER.glob("ray-up-*.yaml"))


@pytest.fixture(params=FILES, ids=[path.stem for path in FILES])
def config(request):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load(request.param.read_text()))
    validate_config(prepared)
    return prepared


def test_on_premise_and_one_cloud_are_there():
    assert [yaml.safe_load(path.read_text())["provider"]["type"] for path in FILES] == ["aws", "local"]


def test_ray_accepts_it_and_refuses_a_misspelt_field():
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    broken = yaml.safe_load(FILES[0].read_text())
    broken["max_worker"] = 3
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(broken))


def test_the_head_starts_privately_and_authentication_comes_from_the_node(config):
    (head,) = [line for line in config["head_start_ray_commands"] if "ray start --head" in line]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "--env-file /etc/tailor.env" in config["docker"]["run_options"]
    text = yaml.safe_dump(config)
    assert "RAY_AUTH_TOKEN" not in text
    assert "API_KEY" not in text
    assert all(
        "--metrics-export-port=8080" in lines[-1]
        for lines in (config["head_start_ray_commands"], config["worker_start_ray_commands"])
    )
