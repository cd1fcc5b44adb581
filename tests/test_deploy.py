"""The files that start clusters: accepted by those who read them, and installing what `make setup` installs."""

from __future__ import annotations

import copy
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from actors.integrations import integrations
from cli.__main__ import make_cli
from tests.support import ROOT

CLUSTER, RAYJOB = ROOT / "ray_cluster.yaml", ROOT / "deploy/rayjob.yaml"
SECRETS = {name for i in integrations().values() for name in i.environment if name.endswith("KEY")}
SECRETS |= {"BACKFILL_DATABASE_URL"}


def load(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def pip_arguments(text: str) -> list[str]:
    """What each `pip install` in a text installs."""
    return [" ".join(found.split()) for found in re.findall(r"pip install((?: -\S+)* .*)", text)]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """ray_cluster.yaml as `ray up` sees it: loaded, defaults filled in, validated."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(load(CLUSTER))
    validate_config(config)
    return config


def test_ray_refuses_a_wrong_key_in_it() -> None:
    """The validation above can fail."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    wrong = copy.deepcopy(load(CLUSTER))
    wrong["available_node_types"]["cpu"]["instance"] = "c7i.4xlarge"
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(wrong))


def test_the_head_does_no_work_and_gpus_come_when_asked_for(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert types[cluster["head_node_type"]]["max_workers"] == 0
    assert "--num-cpus=0" in cluster["head_start_ray_commands"][-1]
    for name in ("cpu", "gpu"):
        assert types[name]["min_workers"] == 0
        assert types[name]["max_workers"] > 0
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_aws_has_these_instances_with_processors_and_a_gpu(
    cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own look-up, answered by moto's copy of the catalogue."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    from moto import mock_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    with mock_aws():
        filled = AWSNodeProvider.fillout_available_node_types_resources(copy.deepcopy(cluster))
    resources = {name: kind["resources"] for name, kind in filled["available_node_types"].items()}
    assert resources["head"]["CPU"] == 0
    assert resources["cpu"]["CPU"] == 16
    assert (resources["gpu"]["GPU"], resources["gpu"]["CPU"]) == (1, 4)


def test_each_node_installs_what_make_setup_installs(cluster: dict[str, Any]) -> None:
    makefile = pip_arguments(
        (ROOT / "Makefile").read_text().replace("$$", "$").replace("'.[dev]'", ".")
    )
    nodes = [
        line for command in cluster["worker_setup_commands"] for line in pip_arguments(command)
    ]
    image = pip_arguments((ROOT / "Dockerfile").read_text().replace(" --no-cache-dir", ""))
    assert len(makefile) == 2
    assert nodes == image == makefile


def test_what_is_copied_to_nodes_and_into_the_image_is_there(cluster: dict[str, Any]) -> None:
    for local in cluster["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).is_file(), local
    packages = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            *sources, _ = line.removeprefix("COPY ").split()
            assert all((ROOT / source).exists() for source in sources), line
            packages |= {source for source in sources if (ROOT / source).is_dir()}
    assert packages == {path.parent.name for path in ROOT.glob("*/__init__.py")}


def test_commands_survive_yaml(cluster: dict[str, Any]) -> None:
    """A # or a quote in the wrong place cuts a command off in silence."""
    for key in (
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    ):
        for command in cluster[key]:
            shlex.split(command)


def test_every_node_asks_for_the_token_and_no_file_holds_a_secret(cluster: dict[str, Any]) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in cluster[key][-1]
    for path in (CLUSTER, RAYJOB, ROOT / "Dockerfile"):
        for name in SECRETS:
            # Where a secret is given a value, the value is an example's ellipsis.
            assert not re.search(rf"{name}\s*[=:]\s*(?!…|postgresql://…)\S", path.read_text()), (
                path,
                name,
            )
    for container in containers():
        for entry in container.get("env", []):
            assert ("valueFrom" in entry) == (entry["name"] in SECRETS)


def containers() -> list[dict[str, Any]]:
    spec = load(RAYJOB)["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_the_rayjob_has_only_fields_that_kuberay_knows() -> None:
    schema = load(ROOT / "tests/schemas/rayjob.yaml")
    job = load(RAYJOB)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(job, schema)
    job["spec"]["backOffLimit"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, schema)


def test_the_rayjob_tries_again_and_its_head_does_no_work() -> None:
    spec = load(RAYJOB)["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert len({container["image"] for container in containers()}) == 1
    assert (
        f"\nray=={spec['rayClusterSpec']['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
    )


def test_the_rayjob_calls_a_command_that_exists() -> None:
    """Its options parse; nothing runs, because the dates come in the wrong order."""
    words = shlex.split(load(RAYJOB)["spec"]["entrypoint"])
    assert words[:5] == ["cd", "/app", "&&", "python", "-m"]
    assert "WORKDIR /app" in (ROOT / "Dockerfile").read_text()
    arguments = words[words.index("cli") + 1 :]
    arguments[arguments.index("--start-date") + 1] = "2030-01-01"
    import click

    with pytest.raises(click.UsageError, match="--start-date 2030-01-01 is after"):
        make_cli().main(args=arguments, prog_name="cli", standalone_mode=False)


def test_what_a_job_uploads_is_small(tmp_path: Path) -> None:
    """The zip that `ray job submit --working-dir .` makes of this folder, without the .git and .venv of a checkout."""
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    names = zipfile.ZipFile(package).namelist()
    assert {"cli/__main__.py", "actors/pool.py", "datasets/lake.py"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", ".git/", ".venv/", "data/"))]
    assert package.stat().st_size < 2 * 2**20
