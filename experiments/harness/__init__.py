"""What every experiment shares: command line, run folder, progress, figures.

An experiment is a module `experiments/NAME.py` with
- a docstring whose first sentence is its line in the list,
- a frozen dataclass `Config`: each field is an option, its trailing comment the help; `__post_init__` raises ValueError for
  values that can't work (`preset`, `out`, `gallery`, `help` are taken); a field that asks something of a finished run, and
  isn't part of it, is `dataclasses.field(default=..., metadata={"of_run": False})`,
- `PRESETS = {"default": Config(), "smoke": Config(...)}`,
- `main(config, run)`, which trains, draws, and returns the numbers of `summary.json`, or None where it was only asked
  something; `run` is a `run.Run`.
"""
