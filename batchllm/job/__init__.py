"""Options, environment, job file and defaults, merged into one frozen `Job`.

`settings` is the table of every setting: its flags, its help, how its value is read and whether it is part
of what the run means. `load` merges the four layers. The command line and the environment's names are
derived from the table, so that a setting is declared once.
"""

from batchllm.job.load import Loaded, load, strays
from batchllm.job.settings import Job, settings
from batchllm.job.table import Setting

__all__ = ["Job", "Loaded", "Setting", "load", "settings", "strays"]
