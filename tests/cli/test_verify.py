"""``counterpoint verify`` under torchrun and alone."""

import json
import os
import subprocess
import sys

from typer.testing import CliRunner

from counterpoint.cli.app import app
from counterpoint.verification import CASES, CONTROLS


def verify(*arguments, ranks=1):
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launch, "-m", "counterpoint", "verify", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_two_ranks_print_one_table_and_one_sentence(tmp_path):
    path = tmp_path / "report.json"
    result = verify("--only", "ddp, uneven", "--only", "shard-local", "--json", str(path), ranks=2)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("ddp, uneven") == 1
    assert "Exact on 2 ranks, cpu, float32: 1 of 1 cases held, 1 of 1 planted bugs were seen" in result.stdout
    data = json.loads(path.read_text())
    assert data["exact"] is True
    assert data["ranks"] == 2
    assert data["planted_bugs"][0]["errors"]["Grams"]["error"] > 0.1


def test_one_process_runs_what_it_can():
    result = verify("--only", "one process, 2", "--only", "ddp, 1", "--dtype", "float64", "--domains", "2")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Exact on 1 rank, cpu, float64: 1 of 1 cases held (1 not run)" in result.stdout


def test_the_help_needs_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from counterpoint.cli.app import app; "
        "result = CliRunner().invoke(app, ['verify', '--help']); "
        "sys.exit(result.exit_code or 'torch' in sys.modules or 'torchrun' not in result.output)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_list_names_everything():
    result = CliRunner().invoke(app, ["verify", "--list"])
    assert result.exit_code == 0
    assert all(name in result.output for name in (*CASES, *CONTROLS))


def test_an_unknown_name_is_one_message():
    result = verify("--only", "fsdp3")
    assert result.returncode == 1
    assert "No case or planted bug begins with 'fsdp3'" in result.stderr
    assert "Traceback" not in result.stderr
