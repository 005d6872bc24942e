#!/bin/bash
#SBATCH --job-name=diptych
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
# Two minutes before its time limit, the job receives USR1: it saves, exits with 75 and is requeued. The same line then
# continues it, to the same weights as without the interruption. Diptych reads SLURM's own variables, without torchrun.
srun python -m diptych pretrain "$DATA/train" --recipe barlow-twins-imagenet --out runs/imagenet --resume
code=$?
if [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
