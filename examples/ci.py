"""CI: a script with known findings passes, and one new finding makes the job fail.

lightning-evalguard run --json base.json train.py        # once, and committed
lightning-evalguard run --baseline base.json train.py    # in each job
"""

import subprocess
import sys
from pathlib import Path

SCRIPT = str(Path(__file__).with_name("plain_script.py"))


def guarded(*arguments):
    command = [sys.executable, "-m", "lightning_evalguard", "run", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (verdict,) = [
        line for line in done.stderr.splitlines() if "lightning-evalguard:" in line
    ]
    print(f"exit status {done.returncode}  {verdict}")
    return done


if __name__ == "__main__":
    print("the findings of today, written down:")
    guarded("--json", "base.json", SCRIPT, "no_eval", "no_no_grad")
    print("the same script again, against that file:")
    guarded("--baseline", "base.json", SCRIPT, "no_eval", "no_no_grad")
    print("somebody adds a bug:")
    done = guarded("--baseline", "base.json", "--format", "github", SCRIPT,
                   "no_eval", "no_no_grad", "no_train")  # fmt: skip
    print("and the pull request shows:")
    print(
        *[line for line in done.stdout.splitlines() if line.startswith("::")], sep="\n"
    )
