"""What `accelerate launch train_cond_ddpm.py [--config FILE] [--FLAG VALUE ...]` runs: parse, then `cond_ddpm.train`."""

import sys

from cond_ddpm.cli import guarded, run_train

if __name__ == "__main__":
    sys.exit(guarded(run_train))
