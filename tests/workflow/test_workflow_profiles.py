"""Profiles of executors: what they say of a rule must be said of a rule that there is."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def rules() -> set[str]:
    texts = (path.read_text() for path in (ROOT / "workflows").rglob("*.smk"))
    return {name for text in texts for name in re.findall(r"^ *rule (\w+):", text, re.MULTILINE)}


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_resources_are_set_for_rules_that_exist(name):
    profile = yaml.safe_load((ROOT / "profiles" / name / "profile.yaml").read_text())
    given = profile["set-resources"].keys()
    assert {"train", "profile"} <= given <= rules()
