"""Known faults of the locked packages, from pip-audit in an environment of its own: exit code 1 where there is one.

pip-audit comes from the package index, its knowledge from an advisory service: without either nothing is audited, which is
said in a sentence on standard error and fails nothing. `make audit`; CI runs it too, and tells of faults without failing.
"""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

VERSION = "2.10.1"
ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements.lock", "requirements-llm.lock")


def audit(lock: Path, command: list[str], folder: Path) -> dict[str, list[str]] | None:
    """Ids of the advisories by package; None where the service gave no answer."""
    report = folder / f"{lock.name}.json"
    done = subprocess.run([*command, "--no-deps", "--disable-pip", "--timeout", "30", "--format", "json", "--output",
                           str(report), "--requirement", str(lock)], capture_output=True, text=True)
    try:
        found = json.loads(report.read_text())["dependencies"]
    except (OSError, ValueError, KeyError):
        sys.stderr.write(f"{(done.stderr.strip().splitlines() or ['no word'])[-1]:.300}\n")
        return None
    return {f"{one['name']} {one['version']}": [fault["id"] for fault in one["vulns"]] for one in found if one.get("vulns")}


def installed(folder: Path) -> list[str] | None:
    """pip-audit's command in a fresh environment; None where it cannot be installed."""
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / "bin" / "python")
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", f"pip-audit=={VERSION}"], capture_output=True)
    return [python, "-m", "pip_audit"] if done.returncode == 0 else None


def main(command: list[str] | None = None) -> int:
    """0: no known fault, or not audited; 1: at least one."""
    with tempfile.TemporaryDirectory() as folder:
        command = command or installed(Path(folder))
        if command is None:
            sys.stderr.write(f"Not audited: pip-audit {VERSION} could not be installed from the package index.\n")
            return 0
        reports = [audit(ROOT / lock, command, Path(folder)) for lock in LOCKS]
    if None in reports:
        sys.stderr.write("Not audited: the advisory service is out of reach; run make audit again with a network.\n")
        return 0
    faults = {name: ids for report in reports for name, ids in report.items()}
    sys.stdout.write("".join(f"{name}: {', '.join(ids)}\n" for name, ids in faults.items()) or "No known faults.\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or None))
