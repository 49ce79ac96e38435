"""`python -m dyme_core` is the command `dyme`, which lives in `study`."""
import runpy

runpy.run_module("study", run_name="__main__", alter_sys=True)
