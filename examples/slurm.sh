#!/bin/bash
# One job on a Slurm cluster, the same as examples/sky.yaml runs:
#   sbatch examples/slurm.sh                     from the project's folder, with your pictures in ./photographs
# Many trainings at once: examples/sweep.yaml.
#SBATCH --job-name=lace-lora
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=lace-lora-%j.log
# Two minutes before the time is over the training is told, finishes its step and saves.
#SBATCH --signal=TERM@120
set -uo pipefail
source .venv/bin/activate

code=0
srun lace-lora train --config examples/lace.yaml || code=$?
if [ "$code" -eq 0 ]; then
  srun lace-lora generate --config examples/lace.yaml || code=$?
fi
# 130 says: stopped and saved. The job gets another turn and goes on.
if [ "$code" -eq 130 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
