"""The campaign of `faults.campaign`, once through; and that none of its trials is lost sight of."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
from support.project import ENVIRONMENT, ROOT

from faults.campaign import Record, plan, run_campaign, table
from faults.kinds import KINDS

pytestmark = pytest.mark.slow


@pytest.mark.skipif("FAULTS" not in os.environ, reason="some fifteen minutes: FAULTS=1 asks for it")
def test_nothing_is_lost():
    records = list(run_campaign(plan(num_trials=1, seed=1), jobs=1))
    assert not [record for record in records if record.problem], table(records)


def campaign(*arguments):
    """The command, in a process of its own; its table."""
    command = [sys.executable, "-m", "faults.campaign", *arguments]
    variables = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([f"{ROOT}/src", f"{ROOT}/tests"])}
    done = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout
    return [line for line in done.stdout.splitlines() if line.startswith("|")]


def test_two_processes_try_each_trial_once_and_a_campaign_that_was_stopped_goes_on(tmp_path):
    records, kind = tmp_path / "records.jsonl", "a learner's file damaged"
    tried = [(kind, 3, number) for number in range(KINDS[kind].factor)]
    assert plan(1, 3, "learner's file") == tried
    earlier = [asdict(Record(*trial, problem=None, seconds=-1.0)) for trial in tried[:60]]
    records.write_text("".join(f"{json.dumps(record)}\n" for record in earlier))
    rows = campaign(
        "--only",
        "learner's file",
        "--trials",
        "1",
        "--seed",
        "3",
        "--jobs",
        "2",
        "--records",
        str(records),
    )
    assert rows[-1] == "| all | 100 | 100 | 0 |"
    found = [json.loads(line) for line in records.read_text().splitlines()]
    assert sorted((r["kind"], r["seed"], r["number"]) for r in found) == tried
    assert found[:60] == earlier
    assert min(record["seconds"] for record in found[60:]) >= 0.0
