import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys, warnings
import numpy as np
import torch
torch.set_num_threads(2)
import gecko
from gecko.encoder.forked import Lock
from gecko.encoder.packed import int8_works

warnings.simplefilter("ignore", DeprecationWarning)
spec = sys.argv[1]
texts = [f"the {i} red cat sleeps in a big house " * 6 for i in range(300)]
passages = [gecko.Passage("", "", text) for text in texts]
calls = {}
for precision in ("float32", "bfloat16", "int8") if int8_works() else ("float32", "bfloat16"):
    calls[precision] = lambda model=gecko.load(spec, precision=precision), some=texts: model.embed(some)
    calls[precision + " of one"] = lambda model=calls[precision]: model(some=texts[:1])
calls["encoder"] = lambda encoder=gecko.load_encoder(spec): encoder.passages(passages)
calls["loaded there"] = lambda: gecko.load(spec, precision="float32").embed(texts)
expected = {name: call() for name, call in calls.items()}
held = Lock()
held.__enter__()
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(200)  # of one that waits for ever
with held:
    for name, call in calls.items():
        cosines = (call() * expected[name]).sum(axis=1)
        assert cosines.min() > 0.999, (name, cosines.min())
        print(name, flush=True)
grandchild = os.fork()
if grandchild == 0:
    calls["float32"]()
    os._exit(7)
os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_of_fork_embeds(tiny_model: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_model)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 7, done.stdout + done.stderr
    assert "encoder" in done.stdout
