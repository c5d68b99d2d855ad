"""Training, a file for each of its nouns.

loop.py        `train`: the run from its start to its published folder
step.py        `train_step`: one optimizer step; `validation_loss`
epoch.py       what happens at the end of an epoch: validate, keep the best weights, report
network.py     the network of a run: new, or with the weights of a trained pipeline (`init_from`)
state.py       `TrainingState`: network, optimizer, averages and progress; what a checkpoint holds
batches.py     `TrainingData`: the images, and which of them each step sees
plan.py        what `--minutes` chooses; speed.py measures for it how fast this machine trains
horizon.py     `Horizon`: what share of the run is done, and whether it is over
optimizer.py   AdamW or Muon, their parameter groups, and the learning-rate schedule; muon.py: Muon itself
checkpoint.py  `checkpoint-N/`: written whole, verified, found again, pruned
run_folder.py  the run's folder: locked, checked, emptied or taken back to a checkpoint
records.py     config.json, the training record of results.json, and the pipeline folder
log.py         the losses of each step: metrics.jsonl, the tracker and the progress bar
dry_run.py     what a run would do, and how long it would take

The averages (`cond_ddpm.ema`) and the processes (`cond_ddpm.processes`) are outside, because other commands use them too.
"""

from cond_ddpm.training.dry_run import dry_run
from cond_ddpm.training.loop import train
from cond_ddpm.training.records import save_pipeline

__all__ = ["dry_run", "save_pipeline", "train"]
