"""Which one of several processes this is, as the variables of torchrun, SLURM or a person say it."""

import re
from collections.abc import Mapping

from diptych.base.errors import RecipeError

NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = dict(
    zip(
        NEEDED,
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"),
        strict=True,
    )
)  # where srun says the same


def place(env: Mapping[str, str]) -> dict[str, str] | None:
    """The variables NEEDED of this process among several; None for a single process.

    Raises RecipeError (exit code 2), naming the variable, where they are half set or contradict each other.
    """
    names = {name: name for name in NEEDED}
    if "RANK" not in env and "WORLD_SIZE" not in env:
        if "SLURM_STEP_NUM_TASKS" not in env:
            return None
        env, names = from_slurm(env), {n: n if n in env else SLURM[n] for n in NEEDED}
    numbers = [name for name in NEEDED if name != "MASTER_ADDR" and env.get(name)]
    if wrong := [name for name in numbers if not (env[name].isascii() and env[name].isdecimal())]:
        name = wrong[0]
        raise RecipeError(f"{names[name]}={env[name]!r} is not a whole number: start with torchrun, or unset it")
    single = env.get("WORLD_SIZE") == "1"
    if not single and (missing := [names[name] for name in NEEDED if not env.get(name)]):
        raise RecipeError(
            f"the environment variables for several processes are incomplete, {', '.join(missing)} missing: start with "
            "`torchrun --nproc-per-node N -m diptych ...`, or unset RANK and WORLD_SIZE for one process"
        )
    if int(env.get("RANK") or 0) >= int(env["WORLD_SIZE"]):
        raise RecipeError(
            f"{names['RANK']} is {env['RANK']}, but {names['WORLD_SIZE']} is {env['WORLD_SIZE']}, and ranks count from 0: "
            "start with torchrun"
        )
    if single:
        return None
    if not 0 < int(env["MASTER_PORT"]) < 65536:
        raise RecipeError(f"MASTER_PORT={env['MASTER_PORT']} is not a port: ports go from 1 to 65535")
    return {name: env[name] for name in NEEDED}


def from_slurm(env: Mapping[str, str]) -> dict[str, str]:
    """The variables of srun under the names of torchrun's.

    Only srun sets SLURM_STEP_NUM_TASKS. SLURM_NTASKS is also set in a batch script, which is a single process.
    """
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", ""))
    first = re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]  # gpu[03-06,9],login -> gpu03
    job = env.get("SLURM_JOB_ID", "0")
    port = str(20000 + int(job) % 20000) if job.isascii() and job.isdecimal() else job
    return {
        "RANK": env.get("SLURM_PROCID", ""),
        "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": env.get("SLURM_LOCALID", ""),
        "MASTER_ADDR": env.get("MASTER_ADDR", first),
        "MASTER_PORT": env.get("MASTER_PORT", port),
    }
