#!/bin/bash
#SBATCH --job-name=diptych
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
# Two minutes before its time is over the job is told (USR1): it saves and exits with 75, and is put back into the queue. The
# same line continues it, to the same weights as if it had never stopped. Diptych reads SLURM's own variables: no torchrun.
srun python -m diptych pretrain "$DATA/train" --recipe barlow-twins-imagenet --out runs/imagenet --resume
code=$?
if [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
